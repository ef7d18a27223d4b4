"""A MONAI bundle -> an export that gives the labels of MONAI's own pipeline; and back."""

from __future__ import annotations

import copy
import json
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import zoom
from support.command import leuda_here
from support.makers import MakeModel, oblique_affine

from leuda_deploy import Segmenter, Settings
from leuda_deploy.errors import InputError, LeudaError, ModelError
from leuda_deploy.model.card import parse_card
from leuda_deploy.model.model_file import ModelFile
from leuda_deploy.model.regions import region_mask
from leuda_deploy.scans.recipe import Depth, FixedIntensity, Recipe
from leuda_deploy.scans.stack import Stack
from leuda_deploy.scans.volume import read_volume
from leuda_train.export.elsewhere.export_monai import export_monai
from leuda_train.export.elsewhere.monai_bundle import read_bundle
from leuda_train.export.elsewhere.to_monai import bundle_metadata, to_monai

PAGE = Path(__file__).parents[4] / "docs" / "how-to" / "monai.md"
BLOCKS = re.compile(r"^<!-- test: monai -->\n```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHAPE, SPACING = (26, 30, 22), (1.2, 1.0, 1.5)
ROI = (16, 16, 16)
ORT = Settings(engine="ort-cpu", threads=1)
BRATS = ("Tumor core", "Whole tumor", "Enhancing tumor")
# what the metadata's own schema asks for, in short
REQUIRED = [
    *("schema", "version", "monai_version", "pytorch_version", "numpy_version"),
    *("required_packages_version", "task", "description", "authors", "copyright"),
    "network_data_format",
]
TENSOR = ["type", "format", "num_channels", "spatial_shape", "dtype", "value_range"]


class Net(torch.nn.Module):
    """Smooths, then scores: each further class, or region, needs a brighter sum of channels."""

    def __init__(self, channels: int, thresholds: tuple[float, ...], *, regions: bool) -> None:
        super().__init__()
        self.smooth = torch.nn.Conv3d(channels, 1, 3, padding=1, bias=False)
        torch.nn.init.constant_(self.smooth.weight, 1 / 27)
        self.regions = regions
        self.register_buffer("thresholds", torch.tensor(thresholds).reshape(1, -1, 1, 1, 1))

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        above = self.smooth(windows) - self.thresholds
        if self.regions:
            return above
        none = torch.zeros_like(above[:, :1])
        return torch.cat([none, torch.cumsum(above, dim=1)], dim=1)


def spleen() -> tuple[dict[str, Any], dict[str, Any]]:
    """metadata.json and inference.json, as a bundle of one organ on CT has them."""
    tensor = {
        "type": "image",
        "format": "hounsfield",
        "num_channels": 1,
        "spatial_shape": list(ROI),
        "dtype": "float32",
        "value_range": [0, 1],
    }
    metadata = {
        "version": "0.5.0",
        "monai_version": "1.4.0",
        "name": "Spleen CT",
        "task": "spleen segmentation",
        "data_source": "made",
        "network_data_format": {
            "inputs": {"image": {**tensor, "modality": "CT", "channel_def": {"0": "image"}}},
            "outputs": {
                "pred": {
                    **tensor,
                    "num_channels": 2,
                    "channel_def": {"0": "background", "1": "spleen"},
                }
            },
        },
    }
    config = {
        "imports": ["$import glob"],
        "roi": list(ROI),
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "image"},
                {"_target_": "EnsureChannelFirstd", "keys": "image"},
                {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
                {
                    "_target_": "Spacingd",
                    "keys": "image",
                    "pixdim": [1.5, 1.5, 2.0],
                    "mode": "bilinear",
                },
                {
                    "_target_": "ScaleIntensityRanged",
                    "keys": "image",
                    "a_min": -57,
                    "a_max": 164,
                    "b_min": 0,
                    "b_max": 1,
                    "clip": True,
                },
                {"_target_": "EnsureTyped", "keys": "image"},
            ],
        },
        "inferer": {"_target_": "SlidingWindowInferer", "roi_size": "@roi", "overlap": 0.5},
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "Activationsd", "keys": "pred", "softmax": True},
                {
                    "_target_": "Invertd",
                    "keys": "pred",
                    "transform": "@preprocessing",
                    "orig_keys": "image",
                    "nearest_interp": False,
                    "to_tensor": True,
                },
                {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
                {"_target_": "SaveImaged", "keys": "pred", "_disabled_": True},
            ],
        },
    }
    return metadata, config


def brats() -> tuple[dict[str, Any], dict[str, Any]]:
    """The same of four channels and three regions, as they are stored."""
    metadata, config = spleen()
    ends = metadata["network_data_format"]
    ends["inputs"]["image"] |= {
        "num_channels": 4,
        "modality": "MR",
        "channel_def": dict(zip("0123", ("T1c", "T1", "T2", "FLAIR"), strict=True)),
    }
    ends["outputs"]["pred"] |= {
        "num_channels": 3,
        "channel_def": dict(zip("012", BRATS, strict=True)),
    }
    config["preprocessing"]["transforms"] = [
        {"_target_": "LoadImaged", "keys": "image"},
        {
            "_target_": "NormalizeIntensityd",
            "keys": "image",
            "nonzero": True,
            "channel_wise": True,
        },
    ]
    config["postprocessing"]["transforms"] = [
        {"_target_": "Activationsd", "keys": "pred", "sigmoid": True},
        {"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.5},
        {"_target_": "Lambdad", "keys": "pred", "func": "$lambda x: x"},
    ]
    return metadata, config


def write_bundle(
    folder: Path, said: tuple[dict[str, Any], dict[str, Any]], net: Net, *, script: bool
) -> Path:
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    for name, content in zip(("metadata", "inference"), said, strict=True):
        (folder / "configs" / f"{name}.json").write_text(json.dumps(content))
    example = torch.zeros(2, net.smooth.in_channels, *ROI)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(net.eval(), example)
        if script:
            traced.save(str(folder / "models" / "model.ts"))
        else:
            torch.onnx.export(
                traced,
                (example,),
                folder / "models" / "model.onnx",
                dynamo=False,
                dynamic_axes={"in": {0: "batch"}, "out": {0: "batch"}},
                input_names=["in"],
                output_names=["out"],
            )
    return folder


def blobs(seed: int, *, zero: bool = False) -> NDArray[np.float32]:
    """Smooth values about 0 to 100; with `zero`, 0 around a block of them."""
    coarse = np.random.default_rng(seed).normal(50, 60, (6, 6, 5))
    values = zoom(coarse, np.array(SHAPE) / coarse.shape, order=1).astype(np.float32)
    if zero:
        inside = np.zeros(SHAPE, bool)
        inside[3:-3, 4:-4, 2:-2] = True
        values = np.where(inside, values, 0).astype(np.float32)
    return values


def write_scans(folder: Path) -> list[Path]:
    """A CT, and four MR of one grid."""
    affine = oblique_affine(SPACING) @ np.diag([-1.0, 1.0, 1.0, 1.0])
    names = ("scan", "t1c", "t1", "t2", "flair")
    paths = [folder / f"{name}.nii.gz" for name in names]
    for seed, path in enumerate(paths):
        nib.save(nib.Nifti1Image(blobs(seed, zero=seed > 0), affine), path)
    return paths


def as_monai(config: dict[str, Any], net: Net, image: Any) -> NDArray[Any]:
    """Scan or scans -> what MONAI's own pipeline gives, (K or 1, X, Y, Z)."""
    pytest.importorskip("monai", reason="pip install monai: it labels beside the export")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        from monai.bundle import ConfigParser

        config = copy.deepcopy(config)
        del config["imports"]
        config["postprocessing"]["transforms"] = [
            each for each in config["postprocessing"]["transforms"] if each["_target_"] != "Lambdad"
        ]
        parser = ConfigParser(config)
        data = parser.get_parsed_content("preprocessing")({"image": image})
        data["pred"] = parser.get_parsed_content("inferer")(data["image"][None], net.eval())[0]
        return np.asarray(parser.get_parsed_content("postprocessing")(data)["pred"])


@pytest.mark.parametrize("turned_first", [True, False])
@pytest.mark.parametrize("oblique", [True, False])
def test_a_scan_is_resampled_as_by_monai(tmp_path: Path, oblique: bool, turned_first: bool) -> None:
    transforms = pytest.importorskip("monai.transforms", reason="pip install monai")
    flip = np.diag([-1.0, 1.0, -1.0, 1.0])
    affine = (oblique_affine(SPACING) if oblique else np.diag([*SPACING, 1.0])) @ flip
    path = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(blobs(0)[:25, :, :21], affine), path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = transforms.EnsureChannelFirst()(transforms.LoadImage()(str(path)))
        steps = [
            transforms.Orientation("RAS"),
            transforms.Spacing((1.5, 1.3, 2.0), mode="bilinear"),
        ]
        for step in steps if turned_first else reversed(steps):
            image = step(image)
    recipe = Recipe(
        slice_axis="RAS",
        spacing_mm=(1.3, 2.0),
        window=(16, 16),
        normalisation="fixed",
        fixed=FixedIntensity(low=-1e6, high=1e6),
        resampling="linear",
        grid="first" if turned_first else "first-stored",
    )
    stack = Stack(read_volume(path), recipe, window_depth=Depth(slices=16, spacing_mm=1.5))
    found, expected = stack.images(0, stack.depth), np.asarray(image[0])
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=0.01)  # of 200


@pytest.mark.slow
@pytest.mark.parametrize("spacing", [False, True])
def test_a_torchscript_gives_the_labels_of_monai(tmp_path: Path, spacing: bool) -> None:
    scan, *_ = write_scans(tmp_path)
    said, net = spleen(), Net(1, (0.45,), regions=False)
    if not spacing:
        del said[1]["preprocessing"]["transforms"][3]
    bundle = write_bundle(tmp_path / "bundle", said, net, script=True)
    with pytest.raises(InputError, match="--prove"):
        export_monai(bundle, tmp_path / "out")
    model = export_monai(bundle, tmp_path / "out", scans=[scan])
    assert json.loads((tmp_path / "out" / "parity.json").read_text())["stages"]
    assert model.card.label_names == {1: "spleen"}
    found = Segmenter(tmp_path / "out", ORT)(scan).labels
    (expected,) = as_monai(said[1], net, str(scan))
    assert 0.1 < expected.mean() < 0.9
    assert (found == expected).mean() >= 0.999


@pytest.mark.slow
def test_regions_of_several_channels_are_those_of_monai(tmp_path: Path) -> None:
    _, *scans = write_scans(tmp_path)
    said, net = brats(), Net(4, (1.2, 0.1, 2.4), regions=True)
    bundle = write_bundle(tmp_path / "bundle", said, net, script=False)
    with pytest.raises(InputError, match="region-order"):
        export_monai(bundle, tmp_path / "out")
    order = (BRATS[1], BRATS[0], BRATS[2])
    card = export_monai(bundle, tmp_path / "out", order=order).card
    assert tuple(each.name for each in card.structures) == order
    found = Segmenter(tmp_path / "out", ORT)(scans)
    expected = as_monai(said[1], net, [str(path) for path in scans])
    for value, name in enumerate(order, start=1):
        truth = expected[BRATS.index(name)]
        assert truth.any()
        assert (region_mask(found.regions, value) == truth).mean() >= 0.999
    assert (found.labels[expected[2] > 0] == 3).mean() >= 0.99


@pytest.mark.slow
def test_the_commands_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_scans(tmp_path)
    write_bundle(
        tmp_path / "spleen_ct_segmentation", spleen(), Net(1, (0.45,), regions=False), script=True
    )
    net = Net(4, (1.2, 0.1, 2.4), regions=True)
    write_bundle(tmp_path / "brats_mri_segmentation", brats(), net, script=False)
    commands = [line for block in BLOCKS.findall(PAGE.read_text()) for line in block.splitlines()]
    assert len(commands) == 5
    for command in commands:
        done = leuda_here(*shlex.split(command, comments=True)[1:])
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    assert len(list((tmp_path / "masks").iterdir())) == 3
    check_with_monai(tmp_path, "bundles/spleen/configs/metadata.json")


def check_with_monai(folder: Path, metadata: str) -> None:
    """`python -m monai.bundle verify_metadata`, with a schema that is there: it downloads none."""
    pytest.importorskip("monai", reason="pip install monai jsonschema")
    pytest.importorskip("jsonschema")
    pytest.importorskip("fire")
    tensors = {
        "type": "object",
        "additionalProperties": {"type": "object", "required": TENSOR},
    }
    ends = {"inputs": tensors, "outputs": tensors}
    schema = {
        "type": "object",
        "required": REQUIRED,
        "properties": {
            "schema": {"type": "string"},
            "changelog": {"type": "object"},
            "required_packages_version": {"type": "object"},
            "network_data_format": {"required": [*ends], "properties": ends},
        },
    }
    (folder / "schema.json").write_text(json.dumps(schema))
    command = [*(sys.executable, "-m", "monai.bundle", "verify_metadata")]
    command += ["--meta_file", metadata, "--filepath", "schema.json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-800:]
    assert "verified with no error" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"transforms": [{"_target_": "CropForegroundd"}]}, "CropForeground"),
        ({"transforms": [{"_target_": "LoadImaged"}]}, "normalises nothing"),
        ({"transforms": [{"_target_": "ScaleIntensityd", "factor": 2.0}]}, "ScaleIntensity"),
        ({"transforms": [{"_target_": "Orientationd", "axcodes": "PIR"}]}, "Orientation"),
        ({"transforms": "$[1 for _ in open('x')]"}, "is code"),
        ({"transforms": ["@loop"]}, "refers to itself"),
        ({"transforms": 2 * [{"_target_": "ScaleIntensityd"}]}, "second"),
        (
            {"transforms": [{"_target_": "ScaleIntensityd"}, {"_target_": "Spacingd"}]},
            "before Spacing",
        ),
        ({"inferer": {"_target_": "SimpleInferer"}}, "SimpleInferer"),
        ({"inferer": {"_target_": "SlidingWindowInferer", "roi_size": [96, 96]}}, "three sides"),
        ({"post": [{"_target_": "KeepLargestConnectedComponentd"}]}, "KeepLargest"),
        ({"inputs": {"a": {}, "b": {}}}, "2 inputs"),
    ],
)
def test_what_no_card_can_say_is_refused(tmp_path: Path, change: dict[str, Any], what: str) -> None:
    metadata, config = spleen()
    config["loop"] = "@loop"
    if "transforms" in change:
        config["preprocessing"]["transforms"] = change["transforms"]
    if "post" in change:
        config["postprocessing"]["transforms"] = change["post"]
    if "inputs" in change:
        metadata["network_data_format"]["inputs"] = change["inputs"]
    config["inferer"] = change.get("inferer", config["inferer"])
    folder = tmp_path / "bundle"
    (folder / "configs").mkdir(parents=True)
    with pytest.raises(ModelError, match="neither"):
        read_bundle(folder)
    (folder / "models").mkdir()
    (folder / "models" / "model.onnx").touch()
    with pytest.raises(ModelError, match="no such file"):
        read_bundle(folder)
    for name, content in (("metadata", metadata), ("inference", config)):
        (folder / "configs" / f"{name}.json").write_text(json.dumps(content))
    with pytest.raises(LeudaError, match=what) as refused:
        read_bundle(folder)
    assert "\n" not in str(refused.value)


def test_metadata_say_what_the_network_reads_and_gives() -> None:
    from support.makers import make_card

    card = parse_card(make_card().to_json(), "the card")
    said = bundle_metadata(card)
    assert {*REQUIRED} <= {*said}
    entry = said["network_data_format"]["inputs"]["image"]
    output = said["network_data_format"]["outputs"]["pred"]
    assert (entry["num_channels"], entry["format"], entry["value_range"]) == (
        1,
        "hounsfield",
        [-1, 1],
    )
    assert output["channel_def"] == {"0": "background", "1": "grey", "2": "bright"}
    assert {*TENSOR} <= {*entry} & {*output}


def test_a_bundle_of_others_is_never_replaced(tmp_path: Path, make_model: MakeModel) -> None:
    model = ModelFile.open(make_model(tmp_path))
    folder = to_monai(model, tmp_path / "bundles")
    assert to_monai(model, tmp_path / "bundles") == folder  # its own
    (folder / "models" / "model.pt").write_text("weights of the user")
    with pytest.raises(InputError, match="did not write"):
        to_monai(model, tmp_path / "bundles")
    assert (folder / "models" / "model.pt").read_text() == "weights of the user"
    (folder / "models" / "model.pt").unlink()
    (folder / "configs" / "metadata.json").write_text('{"changelog": {"1.0.0": "by hand"}}')
    with pytest.raises(InputError, match="did not write"):
        to_monai(model, tmp_path / "bundles")
