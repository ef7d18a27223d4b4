"""configs of a MONAI bundle -> what of its model card they say.

    BUNDLE/configs/metadata.json    what the network reads and gives
    BUNDLE/configs/inference.json   preprocessing, sliding window, postprocessing
    BUNDLE/models/model.onnx        or model.ts, a TorchScript

References ("@roi_size") are followed; expressions ("$...") are code, and never run. A transform is
taken over if a recipe can say the same; else the bundle is refused, with its name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leuda_deploy.errors import ModelError, printable, reading
from leuda_deploy.machine.outside import read_json
from leuda_deploy.model.tiling import Blending, Tiling
from leuda_deploy.scans.recipe import Depth, FixedIntensity, Recipe

MOST_BYTES = 16 << 20
MODELS = ("model.onnx", "model.ts")
# what changes no value: reading, types, the place of axes; and writing, turning back
NO_CHANGE = {
    "LoadImage", "EnsureChannelFirst", "AddChannel", "EnsureType", "ToTensor", "CastToType",
    "ToDevice", "SelectItems", "Identity", "Invert", "SaveImage",
}  # fmt: skip
SUFFIX = re.compile(r"(?:d|D|Dict)$")  # of the transforms of dictionaries


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """What the two files say.

    graph       its ONNX or TorchScript file
    zero_to_one the network reads 0 to 1 where the recipe gives -1 to 1
    scores      names of the network's outputs, in order; background first, unless they are regions
    regions     each output is of a region by itself
    """

    graph: Path
    name: str
    version: str
    source: str
    modality: str
    channels: tuple[str, ...]
    scores: tuple[str, ...]
    regions: bool
    recipe: Recipe
    depth: Depth
    tiling: Tiling
    zero_to_one: bool
    metadata: Mapping[str, Any]


def read_bundle(folder: Path) -> Bundle:
    """Read a bundle's configs. Raises ModelError, in one line, for what no card can say."""
    graph = next((path for name in MODELS if (path := folder / "models" / name).is_file()), None)
    if graph is None:
        raise ModelError(
            f"{folder} has neither models/model.onnx nor models/model.ts; MONAI makes one: python "
            "-m monai.bundle onnx_export"
        )
    said = _read(folder / "configs" / "metadata.json")
    config = _read(folder / "configs" / "inference.json")
    with reading(lambda what: ModelError(f"{folder} is not as MONAI writes it: {what}")):
        entry, output = _only(said, "inputs", folder), _only(said, "outputs", folder)
        count = int(entry["num_channels"])
        transforms = _transforms(config, "preprocessing", folder)
        window, tiling = _inferer(_at(config, "@inferer", folder), config, folder)
        return Bundle(
            graph=graph,
            name=printable(str(said.get("name") or said["task"]), 200),
            version=printable(str(said["version"]), 50),
            source=printable(str(said.get("data_source") or "not stated"), 500),
            modality=printable(str(entry.get("modality") or "not stated"), 50),
            channels=() if count == 1 else _channels(entry, count),
            scores=_channels(output, int(output["num_channels"])),
            regions=_regions(_transforms(config, "postprocessing", folder), folder),
            metadata=said,
            **_prepared(transforms, window, count, folder),
            tiling=tiling,
        )


def _read(path: Path) -> Any:
    if not path.is_file():
        yaml = path.with_suffix(".yaml")
        more = f"; {yaml.name} is not read, write it as JSON" if yaml.is_file() else ""
        raise ModelError(f"no such file: {path}{more}")
    return read_json(path, most=MOST_BYTES, failed=ModelError)


def _only(said: Mapping[str, Any], which: str, folder: Path) -> Mapping[str, Any]:
    """The one input or output. Raises ModelError if there are several."""
    every: Mapping[str, Any] = said["network_data_format"][which]
    if len(every) != 1:
        raise ModelError(f"{folder} has {len(every)} {which}; leuda takes networks with one")
    (one,) = every.values()
    return dict(one)


def _channels(tensor: Mapping[str, Any], count: int) -> tuple[str, ...]:
    names = tensor.get("channel_def") or {}
    return tuple(printable(str(names.get(str(k), f"channel {k}")), 100) for k in range(count))


def _at(config: Mapping[str, Any], value: Any, folder: Path) -> Any:
    """A value, with what it refers to in its place. Raises ModelError for code."""
    for _ in range(20):  # references to references
        if not isinstance(value, str) or value[:1] not in ("@", "$", "%"):
            return value
        if value[0] != "@":
            raise ModelError(f"{folder}: {printable(value, 80)} is code, which leuda does not run")
        found: Any = config
        for key in re.split(r"#|::", value[1:]):
            found = found[int(key)] if isinstance(found, list) else found[key]
        value = found
    raise ModelError(f"{folder}: {printable(str(value), 80)} refers to itself")


def _transforms(
    config: Mapping[str, Any], name: str, folder: Path
) -> list[tuple[str, Callable[..., Any]]]:
    """Names of the transforms, without the d of dictionaries, and what each says of a key."""
    compose = _at(config, f"@{name}", folder)
    every = _at(config, compose["transforms"], folder) if "transforms" in compose else [compose]
    found = []
    for given in every:
        each = _at(config, given, folder)
        if _at(config, each.get("_disabled_", False), folder):
            continue
        title = SUFFIX.sub("", str(each["_target_"]).rsplit(".", 1)[-1])

        def ask(key: str, default: Any = None, each: Mapping[str, Any] = each) -> Any:
            return _at(config, each.get(key, default), folder)

        found.append((title, ask))
    return found


def _prepared(
    transforms: Sequence[tuple[str, Callable[..., Any]]],
    window: tuple[int, ...],
    channels: int,
    folder: Path,
) -> dict[str, Any]:
    """Recipe, depth and zero_to_one. Raises ModelError for a transform that no recipe can say."""
    axes, spacing, grid, intensity, seen = "array-0", None, "field", None, set[str]()
    for name, ask in transforms:
        if name in NO_CHANGE:
            continue
        kind = "intensity" if "Intensity" in name else name
        if kind in seen:
            raise ModelError(f"{folder}: its preprocessing has a second {name}")
        seen.add(kind)
        if name == "Orientation" and ask("axcodes") in ("RAS", "LPS"):
            axes = str(ask("axcodes"))
        elif name == "Spacing" and _first(ask("mode", "bilinear")) in ("bilinear", 1):
            if "intensity" in seen:
                raise ModelError(f"{folder}: it normalises before Spacing; no recipe can say that")
            spacing = [float(side) for side in ask("pixdim")]
            if not ask("scale_extent", False):
                grid = "first" if "Orientation" in seen else "first-stored"
        elif (intensity := _intensity(name, ask, channels)) is None:
            raise ModelError(f"{folder}: no recipe can say {name} as its preprocessing has it")
    if intensity is None:
        raise ModelError(f"{folder}: its preprocessing normalises nothing; no recipe can say that")
    zero_to_one = bool(intensity.pop("zero_to_one", False))
    return {
        "recipe": Recipe(
            slice_axis=axes,
            spacing_mm="native" if spacing is None else (spacing[1], spacing[2]),
            window=(window[1], window[2]),
            resampling="linear",
            grid=grid,
            outside="zero",
            **intensity,
        ),
        "depth": Depth(slices=window[0], spacing_mm="native" if spacing is None else spacing[0]),
        "zero_to_one": zero_to_one,
    }


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list) else value


def _intensity(name: str, ask: Callable[..., Any], channels: int) -> dict[str, Any] | None:
    """The recipe's fields; None if it has none for this."""
    each_alone = channels == 1 or bool(ask("channel_wise", False))
    if name == "ScaleIntensityRange" and ask("clip", False):
        low, high = float(ask("a_min")), float(ask("a_max"))
        least, most = ask("b_min"), ask("b_max")
        if least is None or most is None:
            return None
        scale = (high - low) / (float(most) - float(least))
        fixed = FixedIntensity(low=low, high=high, shift=low - float(least) * scale, scale=scale)
        return {"normalisation": "fixed", "fixed": fixed}
    if name == "NormalizeIntensity" and each_alone:
        if ask("subtrahend") is not None or ask("divisor") is not None:
            return None
        return {
            "normalisation": "zscore",
            "clip_percentiles": (0.0, 100.0),
            "only_nonzero": bool(ask("nonzero", False)),
        }
    if name == "ScaleIntensity" and each_alone and ask("factor") is None:
        return _to_range((ask("minv", 0.0), ask("maxv", 1.0)), (0.0, 100.0))
    if name == "ScaleIntensityRangePercentiles" and each_alone:
        if not ask("clip", False) or ask("relative", False):
            return None
        return _to_range((ask("b_min"), ask("b_max")), (float(ask("lower")), float(ask("upper"))))
    return None


def _to_range(to: tuple[Any, Any], percentiles: tuple[float, float]) -> dict[str, Any] | None:
    if to not in ((0, 1), (-1, 1)):
        return None
    return {
        "normalisation": "minmax",
        "clip_percentiles": percentiles,
        "zero_to_one": to == (0, 1),
    }


def _inferer(
    inferer: Mapping[str, Any], config: Mapping[str, Any], folder: Path
) -> tuple[tuple[int, ...], Tiling]:
    """Window and tiling. Raises ModelError for another way to cover a scan."""

    def ask(key: str, default: Any) -> Any:
        return _at(config, inferer.get(key, default), folder)

    name = str(inferer["_target_"]).rsplit(".", 1)[-1]
    window = ask("roi_size", ())
    if name != "SlidingWindowInferer" or len(window) != 3 or min(window) < 8:
        raise ModelError(
            f"{folder}: leuda covers scans with a SlidingWindowInferer of three sides, from 8 "
            f"voxels; it has {name}, {window}"
        )
    overlap, mode = _first(ask("overlap", 0.25)), str(ask("mode", "constant")).lower()
    if ask("padding_mode", "constant") != "constant" or float(ask("cval", 0.0)) != 0:
        raise ModelError(f"{folder}: its windows hold something else than 0 beyond the scan")
    blending: dict[str, Blending] = {"constant": "constant", "gaussian": "gaussian"}
    if mode not in blending:
        raise ModelError(f"{folder}: windows are blended {mode!r}; leuda can do {[*blending]}")
    return (
        tuple(int(side) for side in window),
        Tiling(overlap=float(overlap), steps="fixed", blending=blending[mode]),
    )


def _regions(transforms: Sequence[tuple[str, Callable[..., Any]]], folder: Path) -> bool:
    """Whether outputs are regions. Raises ModelError for what the labels go through besides."""
    regions = False
    for name, ask in transforms:
        if name == "Activations":
            regions = bool(ask("sigmoid", False))
        elif name == "AsDiscrete":
            threshold = ask("threshold")
            if threshold is not None and float(threshold) != 0.5:
                raise ModelError(f"{folder}: its threshold is {threshold}; leuda's is 0.5")
            regions = regions or threshold is not None
        elif name not in NO_CHANGE and not (regions and name == "Lambda"):
            raise ModelError(f"{folder}: leuda does nothing like {name} of its postprocessing")
    return regions
