"""plans.json and dataset.json of a model of nnU-Net -> what of its model card they say.

What nnU-Net does with a scan before its network and after it is said by the recipe; what the recipe
has no words for is refused. nnU-Net numbers axes z, y, x, a scan's file x, y, z.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leuda_deploy.errors import ModelError, reading
from leuda_deploy.machine.outside import read_json
from leuda_deploy.model.card import PALETTE, Structure
from leuda_deploy.model.tiling import MirrorAxis
from leuda_deploy.scans.recipe import Depth, FixedIntensity, Recipe, SliceAxis

MOST_BYTES = 256 << 20  # of a plans.json, which may hold a fingerprint of every scan
LEAST_STD = 1e-8  # that nnU-Net divides by
READERS = ("SimpleITKIO", "NibabelIO")  # which turn nothing
# What is refused if it is another: key of a configuration -> the values that can be expressed
RESAMPLING = {
    "preprocessor_name": "DefaultPreprocessor",
    "resampling_fn_data": "resample_data_or_seg_to_shape",
    "resampling_fn_data_kwargs": {
        "is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None,
    },
    "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
    "resampling_fn_probabilities_kwargs": {
        "is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None,
    },
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Plans:
    """What the two files say of one configuration.

    swap     rows and columns of the recipe's windows change places in the graph
    architecture  class name, its arguments, and which of these are names of classes
    rescaled      the network reads 0 to 1 where the recipe gives -1 to 1
    """

    name: str
    dataset: str
    modality: str
    channels: tuple[str, ...]
    structures: tuple[Structure, ...]
    regions: bool
    recipe: Recipe
    depth: Depth | None
    swap: bool
    rescaled: bool
    architecture: Mapping[str, Any]
    configuration: Mapping[str, Any]

    def mirror_axes(self, axes: tuple[int, ...]) -> tuple[MirrorAxis, ...]:
        """Axes of nnU-Net's windows, by number from 0 -> those of the recipe's, by name."""
        rows, columns = ("columns", "rows") if self.swap else ("rows", "columns")
        names = ("slices", rows, columns) if self.depth else (rows, columns)
        found = {names[axis] for axis in axes}
        every: tuple[MirrorAxis, ...] = ("slices", "rows", "columns")
        return tuple(name for name in every if name in found)


def read_plans(folder: Path, name: str) -> Plans:
    """Read the configuration `name`. Raises ModelError for what cannot be expressed."""
    plans, said = _read(folder / "plans.json"), _read(folder / "dataset.json")
    with reading(lambda what: ModelError(f"{folder} is not as nnU-Net writes it: {what}")):
        configuration = _configuration(plans, name)
        _check(configuration, folder)
        axes, swap = _axes(plans, folder)
        patch, spacing = [*configuration["patch_size"]], [*configuration["spacing"]]
        depth = None
        if len(patch) == 3:
            depth = Depth(slices=patch.pop(0), spacing_mm=spacing.pop(0))
        if swap:
            patch.reverse()
            spacing.reverse()
        channels = tuple(_channels(said).values())
        scheme = _scheme(configuration["normalization_schemes"], folder)
        regions = any(not isinstance(value, int) for value in said["labels"].values())
        recipe = Recipe(
            slice_axis=axes,
            spacing_mm=(spacing[0], spacing[1]),
            window=(patch[0], patch[1]),
            clip_percentiles=(0.0, 100.0),
            crop="nonzero",
            resampling="spline",
            outside="floor" if scheme == "RescaleTo01Normalization" else "zero",
            # the other schemes of nnU-Net look at no mask
            only_inside=scheme == "ZScoreNormalization" and all(configuration["use_mask_for_norm"]),
            **_normalisation(scheme, plans),
        )
        return Plans(
            name=name,
            dataset=str(plans["dataset_name"]),
            modality=", ".join(channels),
            channels=channels if len(channels) > 1 else (),
            structures=_regions(said, folder) if regions else _structures(said["labels"], folder),
            regions=regions,
            recipe=recipe,
            depth=depth,
            swap=swap,
            rescaled=scheme == "RescaleTo01Normalization",
            architecture=configuration["architecture"],
            configuration=configuration,
        )


def _read(path: Path) -> Any:
    if not path.is_file():
        raise ModelError(
            f"{path.parent} has no {path.name}: expected a folder as nnU-Net 2 leaves it in "
            "nnUNet_results, DatasetXXX_Name/TRAINER__PLANS__CONFIGURATION"
        )
    return read_json(path, most=MOST_BYTES, failed=ModelError)


def _configuration(plans: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The configuration with all that it inherits."""
    own = dict(plans["configurations"][name])
    parent = own.pop("inherits_from", None)
    return {**_configuration(plans, parent), **own} if parent else own


def _check(configuration: Mapping[str, Any], folder: Path) -> None:
    """Raises ModelError for what no recipe can say."""
    if configuration.get("previous_stage"):
        raise ModelError(f"{folder} is the second stage of a cascade; export a 2d or 3d_fullres")
    if "architecture" not in configuration:
        raise ModelError(
            f"{folder / 'plans.json'} does not name its network: nnU-Net before 2.4 wrote it; "
            "plan again with a later one, or move the weights"
        )
    for key, wanted in RESAMPLING.items():
        if configuration[key] != wanted:
            raise ModelError(
                f"{folder / 'plans.json'}: {key} is {configuration[key]}, and leuda can only do "
                f"{wanted}"
            )
    if len({*configuration["use_mask_for_norm"]}) > 1:
        raise ModelError(
            f"{folder / 'plans.json'}: use_mask_for_norm is {configuration['use_mask_for_norm']}; "
            "leuda can only do the same for all channels"
        )


def _axes(plans: Mapping[str, Any], folder: Path) -> tuple[SliceAxis, bool]:
    """Which axis of the scan the slices are stacked along; whether rows and columns swap."""
    reader = plans["image_reader_writer"]
    if reader not in READERS:
        raise ModelError(
            f"{folder / 'plans.json'}: its scans are read by {reader}; leuda can do {READERS}"
        )
    # of the network's axes, which of x, y, z of the scan as it is stored
    depth, rows, _ = (2 - int(axis) for axis in plans["transpose_forward"])
    stored: tuple[SliceAxis, ...] = ("array-0", "array-1", "array-2")
    return stored[depth], rows != min({0, 1, 2} - {depth})


def _normalisation(scheme: str, plans: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the recipe. Raises ModelError."""
    if scheme == "ZScoreNormalization":
        return {"normalisation": "zscore"}
    if scheme == "RescaleTo01Normalization":
        return {"normalisation": "minmax"}
    if scheme == "CTNormalization":
        of = plans["foreground_intensity_properties_per_channel"]["0"]
        fixed = FixedIntensity(
            low=of["percentile_00_5"],
            high=of["percentile_99_5"],
            shift=of["mean"],
            scale=max(of["std"], LEAST_STD),
        )
        return {"normalisation": "fixed", "fixed": fixed}
    raise ModelError(f"its normalisation is {scheme}; leuda can do CT, ZScore and RescaleTo01")


def _channels(said: Mapping[str, Any]) -> Mapping[str, str]:
    """Names of the channels, in order."""
    channels = said.get("channel_names", said.get("modality"))
    return {str(key): str(channels[key]) for key in sorted(channels, key=int)}


def _scheme(schemes: Sequence[str], folder: Path) -> str:
    """How all channels are normalised. Raises ModelError if not all are alike."""
    several = len(schemes) > 1
    if len({*schemes}) > 1 or (several and schemes[0] != "ZScoreNormalization"):
        raise ModelError(
            f"{folder / 'plans.json'} normalises its channels by {', '.join(schemes)}; of "
            "several, leuda can do ZScoreNormalization"
        )
    return schemes[0]


def _structures(labels: Mapping[str, Any], folder: Path) -> tuple[Structure, ...]:
    """Raises ModelError for numbers with gaps."""
    of = {value: name for name, value in labels.items() if name != "ignore" and value != 0}
    if sorted(of) != list(range(1, len(of) + 1)):
        raise ModelError(f"{folder / 'dataset.json'} numbers its labels with gaps: {sorted(of)}")
    return tuple(
        Structure(name=of[value], value=value, colour=PALETTE[(value - 1) % len(PALETTE)])
        for value in sorted(of)
    )


def _regions(said: Mapping[str, Any], folder: Path) -> tuple[Structure, ...]:
    """One for each score, in order. Raises ModelError for another order in the label map."""
    names = [
        name for name, value in said["labels"].items() if name != "ignore" and value not in (0, [0])
    ]
    order = [*said.get("regions_class_order", ())]
    if order != list(range(1, len(names) + 1)):
        raise ModelError(
            f"{folder / 'dataset.json'}: regions_class_order is {order}; leuda can do 1, 2, ... "
            "for the regions as they stand"
        )
    return tuple(
        Structure(name=name, value=value, colour=PALETTE[(value - 1) % len(PALETTE)])
        for value, name in enumerate(names, start=1)
    )
