"""A model folder as nnU-Net leaves it -> an export that gives the labels of nnU-Net's predictor."""

from __future__ import annotations

import copy
import json
import re
import shlex
import warnings
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import tomlkit
import torch
from scipy.ndimage import map_coordinates
from support import tiny
from support.command import leuda_here
from support.makers import oblique_affine

from leuda_deploy import Segmenter, Settings
from leuda_deploy.errors import InputError, LeudaError, ModelError
from leuda_deploy.scans.recipe import Recipe
from leuda_deploy.scans.stack import Stack, stack_of
from leuda_deploy.scans.volume import read_volume
from leuda_train.export.elsewhere.export_nnunet import (
    build_network,
    export_nnunet,
    read_checkpoints,
    untrained,
)
from leuda_train.export.elsewhere.nnunet_plans import read_plans

pytest.importorskip(
    "dynamic_network_architectures", reason="pip install 'leuda[nnunet]': the networks of nnU-Net"
)
PAGE = Path(__file__).parents[4] / "docs" / "how-to" / "nnunet.md"
BLOCKS = re.compile(r"^<!-- test: nnunet -->\n```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPACING = (1.0, 1.2, 2.5)  # x, y, z
SHAPE = (44, 40, 14)
FINGERPRINT = {"mean": 20.0, "std": 60.0, "percentile_00_5": -90.0, "percentile_99_5": 180.0}


def make_scan(path: Path) -> Path:
    """Smooth blobs, and around them voxels that are 0."""
    rng = np.random.default_rng(0)
    coarse = rng.normal(size=(7, 6, 5))
    grid = np.meshgrid(
        *(np.linspace(0, n - 1, m) for n, m in zip(coarse.shape, SHAPE, strict=True)), indexing="ij"
    )
    values = 100 * map_coordinates(coarse, grid, order=1) + 30
    values[:3], values[:, -4:], values[..., :1] = 0, 0, 0
    nib.save(nib.Nifti1Image(values.astype(np.int16), oblique_affine(SPACING)), path)
    return path


def configuration(dimensions: int, **other: Any) -> dict[str, Any]:
    """Of plans.json, for a network of three stages."""
    sampling = {"is_seg": False, "order_z": 0, "force_separate_z": None}
    stride = [1, 2, 2][3 - dimensions :]
    said: dict[str, Any] = {
        "data_identifier": "nnUNetPlans",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [8, 24, 32][3 - dimensions :],
        "spacing": [2.0, 1.3, 0.9][3 - dimensions :],
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {**sampling, "order": 3},
        "resampling_fn_seg_kwargs": {**sampling, "is_seg": True, "order": 1},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {**sampling, "order": 1},
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": 3,
                "features_per_stage": [6, 8, 8],
                "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d",
                "kernel_sizes": [[3] * dimensions] * 3,
                "strides": [[1] * dimensions, [2] * dimensions, stride],
                "n_conv_per_stage": [1, 1, 1],
                "n_conv_per_stage_decoder": [1, 1],
                "conv_bias": True,
                "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d",
                "norm_op_kwargs": {"eps": 1e-5, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        "batch_dice": True,
    }
    return said | other


def make_folder(
    root: Path,
    dimensions: int,
    *,
    transpose: tuple[int, ...] = (0, 1, 2),
    reader: str = "SimpleITKIO",
    folds: tuple[str, ...] = ("0",),
    labels: dict[str, Any] | None = None,
    channels: dict[str, str] | None = None,
    order: tuple[int, ...] | None = None,
    **said: Any,
) -> Path:
    """A model folder with plans, and as many folds, each trained for some steps."""
    name = "2d" if dimensions == 2 else "3d_fullres"
    folder = root / f"nnUNetTrainer__nnUNetPlans__{name}"
    folder.mkdir(parents=True)
    plans = {
        "dataset_name": "Dataset007_Blobs",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [2.5, 1.2, 1.0],
        "original_median_shape_after_transp": [14, 40, 44],
        "image_reader_writer": reader,
        "transpose_forward": list(transpose),
        "transpose_backward": np.argsort(transpose).tolist(),
        "configurations": {name: configuration(dimensions, **said)},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": dict.fromkeys(
            channels or {"0": "CT"}, FINGERPRINT
        ),
    }
    (folder / "plans.json").write_text(json.dumps(plans))
    dataset = {
        "channel_names": channels or {"0": "CT"},
        "labels": labels or {"background": 0, "grey": 1, "bright": 2},
        "numTraining": 1,
        "file_ending": ".nii.gz",
        **({"regions_class_order": list(order)} if order else {}),
    }
    (folder / "dataset.json").write_text(json.dumps(dataset))
    if (labels or channels) and not (channels and order):
        return with_checkpoint(folder, name, {}, "0")
    for fold in folds:
        with_checkpoint(folder, name, trained(folder, name, seed=len(fold) + ord(fold[0])), fold)
    return folder


def with_checkpoint(folder: Path, name: str, weights: dict[str, Any], fold: str) -> Path:
    """What nnU-Net keeps: its own names, losses as numbers of numpy, no tensors alone."""
    (folder / f"fold_{fold}").mkdir()
    state = {
        "network_weights": weights,
        "optimizer_state": {},
        "grad_scaler_state": None,
        "logging": {"train_losses": [np.float32(0.5), np.float64(0.25)]},
        "_best_ema": np.float64(0.5),
        "current_epoch": 3,
        "init_args": {"configuration": name, "device": torch.device("cpu")},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1) if name == "2d" else (0, 1, 2),
    }
    torch.save(state, folder / f"fold_{fold}" / "checkpoint_final.pth")
    return folder


def trained(folder: Path, name: str, seed: int) -> dict[str, Any]:
    """Weights that tell dark, grey and bright, a little better than by chance."""
    plans = read_plans(folder, name)
    torch.manual_seed(seed)
    network = untrained(plans).train()
    shape = [*plans.configuration["patch_size"]]
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(25):
        smooth = torch.nn.functional.interpolate(
            torch.randn(4, 1, *(side // 4 for side in shape)), size=shape
        )
        if plans.regions:  # where the first channel is bright, and where it is very bright
            given = smooth.repeat(1, 2, *(1 for _ in shape))
            truth = torch.cat([(smooth > -0.3).float(), (smooth > 0.6).float()], dim=1)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(network(given), truth)
        else:
            truth = ((smooth > -0.3).long() + (smooth > 0.6).long())[:, 0]
            loss = torch.nn.functional.cross_entropy(network(smooth), truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.state_dict()


def predicted(folder: Path, *scans: Path, mirror: bool) -> np.ndarray:
    """Labels (X, Y, Z) of nnU-Net's own predictor."""
    pytest.importorskip("nnunetv2", reason="pip install nnunetv2: it predicts beside the export")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        predictor = nnUNetPredictor(
            use_mirroring=mirror, device=torch.device("cpu"), allow_tqdm=False
        )
        predictor.initialize_from_trained_model_folder(str(folder), use_folds=None)
        reader = PlansManager(str(folder / "plans.json")).image_reader_writer_class()
        image, properties = reader.read_images([str(scan) for scan in scans])
        labels = predictor.predict_single_npy_array(image, properties)
        theirs = scans[0].with_name("theirs.nii.gz")
        reader.write_seg(labels, str(theirs), properties)
    return np.asarray(nib.load(theirs).dataobj)


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    return make_scan(tmp_path / "scan.nii.gz")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dimensions", "mirror", "said"),
    [
        (2, False, {"folds": ("0", "1")}),
        (
            3,
            True,
            {"transpose": (1, 0, 2), "normalization_schemes": ["ZScoreNormalization"]},
        ),
        (
            3,
            False,
            {
                "normalization_schemes": ["RescaleTo01Normalization"],
                "spacing": [4.0, 1.3, 0.9],  # over three times: the nearest slice
            },
        ),
    ],
)
def test_labels_are_those_of_nnunets_predictor(
    dimensions: int,
    mirror: bool,
    said: dict[str, Any],
    scan: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = make_folder(tmp_path / "results", dimensions, **said)
    in_halves = predicted(folder, scan, mirror=mirror)
    # it sums the scores of windows in float16, and so differs from itself by a thousandth
    monkeypatch.setattr(torch, "half", torch.float32)
    expected = predicted(folder, scan, mirror=mirror)
    monkeypatch.undo()
    assert min(np.bincount(expected.ravel(), minlength=3)) > 0.01 * expected.size
    model, _ = export_nnunet(folder, tmp_path / "out", scans=[scan])
    settings = Settings(engine="ort-cpu", mirror=mirror, threads=1)
    found = Segmenter(tmp_path / "out", settings)(scan).labels
    assert (found == expected).mean() >= 0.999
    assert (found == in_halves).mean() >= 0.998
    assert (found[:3] == 0).all()
    card = model.card
    assert card.label_names == {1: "grey", 2: "bright"}
    assert (card.depth is None) == (dimensions == 2)
    assert card.provenance.cohort == "Dataset007_Blobs"


@pytest.mark.slow
def test_channels_and_regions_are_those_of_nnunets_predictor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans = [make_scan(tmp_path / f"scan_{k:04d}.nii.gz") for k in range(2)]
    second = nib.load(scans[1])
    turned = np.asarray(second.dataobj)[::-1].copy()  # another channel, with another box
    nib.save(nib.Nifti1Image(turned, second.affine), scans[1])
    folder = make_folder(
        tmp_path / "results",
        3,
        channels={"0": "T1", "1": "T2"},
        labels={"background": 0, "whole": [1, 2], "core": [2]},
        order=(1, 2),
        normalization_schemes=["ZScoreNormalization"] * 2,
        use_mask_for_norm=[False, False],
    )
    monkeypatch.setattr(torch, "half", torch.float32)
    expected = predicted(folder, *scans, mirror=False)
    monkeypatch.undo()
    assert min(np.bincount(expected.ravel(), minlength=3)) > 0.01 * expected.size
    card = export_nnunet(folder, tmp_path / "out", scans=[scans[0]])[0].card
    assert (card.channels, card.options.regions) == (("T1", "T2"), True)
    assert card.label_names == {1: "whole", 2: "core"}
    found = Segmenter(tmp_path / "out", Settings(engine="ort-cpu", threads=1))(scans)
    assert (found.labels == expected).mean() >= 0.999


def make_brain(path: Path, seed: int = 0) -> Path:
    """A body in zeros, with holes: closed ones, one with a way out, one open at the scan's end."""
    values = np.asarray(nib.load(make_scan(path)).dataobj).astype(np.int16).copy()
    values += (np.abs(values) < 3).astype(np.int16) * 5  # nothing is 0 by chance
    x, y, _ = np.indices(values.shape) / np.array(values.shape)[:, None, None, None]
    values[(x - 0.5) ** 2 + (y - 0.5) ** 2 > 0.16] = 0
    at = np.array(values.shape)
    values[tuple(slice(int(0.40 * n), int(0.48 * n)) for n in at)] = 0  # closed
    values[at[0] // 2 :, at[1] // 3, at[2] // 3] = 0  # leads to the outside
    values[at[0] // 2, at[1] // 2 : at[1] // 2 + 3, at[2] // 2 :] = 0  # to the scan's end
    values[at[0] // 3, at[1] // 2, at[2] // 2 + seed] = 0  # a voxel
    nib.save(nib.Nifti1Image(values, oblique_affine(SPACING)), path)
    return path


def in_masks(channels: int = 1) -> dict[str, Any]:
    """Of plans.json: normalisation within what is not 0, its holes filled."""
    return {
        "normalization_schemes": ["ZScoreNormalization"] * channels,
        "use_mask_for_norm": [True] * channels,
    }


@pytest.mark.parametrize("transpose", [(0, 1, 2), (1, 0, 2)])
@pytest.mark.parametrize("channels", [1, 2])
def test_within_a_mask_the_network_reads_what_nnunets_preprocessor_gives(
    channels: int, transpose: tuple[int, ...], tmp_path: Path
) -> None:
    pytest.importorskip("nnunetv2", reason="pip install nnunetv2: it prepares beside the recipe")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        scans = [make_brain(tmp_path / f"scan_{k:04d}.nii.gz", k) for k in range(channels)]
        if channels == 2:  # 0 in one channel alone is inside
            second = nib.load(scans[1])
            values = np.asarray(second.dataobj).copy()
            values[: len(values) // 2] = 0
            nib.save(nib.Nifti1Image(values, second.affine), scans[1])
        folder = make_folder(
            tmp_path / "results",
            3,
            transpose=transpose,
            labels={"background": 0, "grey": 1},
            channels={str(k): f"T{k}" for k in range(channels)},
            **in_masks(channels),
        )
        manager = PlansManager(str(folder / "plans.json"))
        data, properties = manager.image_reader_writer_class().read_images([*map(str, scans)])
        dataset = json.loads((folder / "dataset.json").read_text())
        theirs, mask, _ = DefaultPreprocessor(verbose=False).run_case_npy(
            data, None, properties, manager, manager.get_configuration("3d_fullres"), dataset
        )
    plans = read_plans(folder, "3d_fullres")
    volume = read_volume(scans[0])
    volume = replace(volume, more=tuple(read_volume(scan) for scan in scans[1:]))
    stack = stack_of(volume, plans.recipe, plans.depth)
    ours = stack.images(0, stack.depth)
    ours = np.moveaxis(ours, 1, 0) if channels > 1 else ours[None]
    ours = ours.swapaxes(-1, -2) if plans.swap else ours
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert 0.05 < (mask < 0).mean() < 0.95


@pytest.mark.slow
@pytest.mark.parametrize("dimensions", [2, 3])
def test_labels_within_a_mask_are_those_of_nnunets_predictor(
    dimensions: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    brain = make_brain(tmp_path / "brain.nii.gz")
    folder = make_folder(tmp_path / "results", dimensions, **in_masks())
    monkeypatch.setattr(torch, "half", torch.float32)
    expected = predicted(folder, brain, mirror=False)
    monkeypatch.undo()
    assert min(np.bincount(expected.ravel(), minlength=3)) > 0.01 * expected.size
    model, _ = export_nnunet(folder, tmp_path / "out", scans=[brain])
    assert model.card.recipe.only_inside
    found = Segmenter(tmp_path / "out", Settings(engine="ort-cpu", threads=1))(brain).labels
    assert (found == expected).mean() >= 0.999


@pytest.mark.slow
def test_the_command_exports_and_needs_a_scan_to_prove_it_on(scan: Path, tmp_path: Path) -> None:
    folder, out = make_folder(tmp_path / "results", 2), tmp_path / "out"
    done = leuda_here("export", "--from-nnunet", folder, "-o", out)
    assert done.returncode == 2
    assert "--prove" in done.stderr
    done = leuda_here("export", "--from-nnunet", folder, "-o", out, "--prove", scan, "--fold", "0")
    assert done.returncode == 0, done.stderr
    assert "nnU-Net" in done.stdout
    assert (out / "parity.json").is_file()
    both = leuda_here("export", folder, "--from-nnunet", folder, "-o", out)
    assert both.returncode == 2
    assert "one thing" in both.stderr


def make_datasets(folder: Path) -> None:
    """Two data sets as nnU-Net keeps them, with the names of the page."""
    rng = np.random.default_rng(0)
    for name in ("Dataset001_HeartMR", "Dataset002_HeartCT"):
        for case in (f"{name[-2:].lower()}_{k}" for k in range(3)):
            image = rng.integers(0, 1000, size=(18, 16, 3), dtype=np.int16)
            labels = np.zeros(image.shape, np.uint8)
            labels[2:6, 3:9], labels[8:12, 3:9] = 1, 2
            tiny.write_scan(folder / name / "imagesTr" / f"{case}_0000.nii.gz", image)
            tiny.write_scan(folder / name / "labelsTr" / f"{case}.nii.gz", labels)
        said = {
            "channel_names": {"0": name[-2:]},
            "labels": {"background": 0, "MYO": 1, "LVC": 2},
            "numTraining": 3,
            "file_ending": ".nii.gz",
        }
        (folder / name / "dataset.json").write_text(json.dumps(said))


@pytest.mark.slow
def test_the_commands_of_the_page(
    scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_datasets(tmp_path)
    make_folder(tmp_path, 3)
    (tmp_path / "tiny.toml").write_text(tomlkit.dumps(tiny.CONFIG))
    commands = [line for block in BLOCKS.findall(PAGE.read_text()) for line in block.splitlines()]
    assert len(commands) == 5
    for command in commands:
        command = command.replace("paper-cardiac", "tiny.toml --method source-only")
        done = leuda_here(*shlex.split(command, comments=True)[1:])
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    written = [nib.load(tmp_path / f"{name}.nii.gz").get_fdata() for name in ("labels", "mirrored")]
    assert all({0, 1, 2} == {*np.unique(labels)} for labels in written)
    assert (written[0] != written[1]).any()
    evaluation = json.loads((tmp_path / "runs" / "hearts" / "evaluation.json").read_text())
    assert evaluation["structures"].keys() >= {"MYO", "LVC"}


@pytest.mark.parametrize("transpose", list(permutations(range(3))))
def test_axes_are_those_that_nnunet_gives_its_network(
    transpose: tuple[int, ...], tmp_path: Path
) -> None:
    folder = make_folder(tmp_path, 3, transpose=transpose, labels={"grey": 1})
    plans = read_plans(folder, "3d_fullres")
    values = np.arange(2 * 3 * 4, dtype=np.int16).reshape(2, 3, 4)
    image = nib.Nifti1Image(values, np.diag([-1.0, 1.0, 1.0, 1.0]))
    nib.save(image, tmp_path / "numbered.nii.gz")
    recipe = Recipe(slice_axis=plans.recipe.slice_axis, spacing_mm="native", window=(8, 8))
    stack = Stack(read_volume(tmp_path / "numbered.nii.gz"), recipe)
    given = stack.images(0, stack.depth)
    given = given.swapaxes(1, 2) if plans.swap else given
    expected = values.transpose(2, 1, 0).transpose(transpose)
    # normalisation keeps the order of the values
    np.testing.assert_array_equal(np.argsort(given.ravel()), np.argsort(expected.ravel()))
    assert given.shape == expected.shape
    patch = [*plans.recipe.window][:: -1 if plans.swap else 1]
    assert [plans.depth.slices, *patch] == [8, 24, 32]


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ({"labels": {"background": 0, "whole": [1, 2], "core": [2]}, "order": (2, 1)}, "order"),
        ({"labels": {"background": 0, "a": 1, "b": 3}}, "gaps"),
        ({"normalization_schemes": ["CTNormalization", "ZScoreNormalization"]}, "channels"),
        (
            {
                "channels": {"0": "T1", "1": "T2"},
                "normalization_schemes": ["ZScoreNormalization"] * 2,
                "use_mask_for_norm": [True, False],
            },
            "use_mask_for_norm",
        ),
        ({"normalization_schemes": ["RGBTo01Normalization"]}, "RGBTo01"),
        ({"previous_stage": "3d_lowres"}, "cascade"),
        ({"resampling_fn_data": "resample_torch_fornnunet"}, "resample_torch"),
        ({"reader": "NibabelIOWithReorient"}, "WithReorient"),
        ({"patch_size": "big"}, "not as nnU-Net writes it"),
    ],
)
def test_what_no_recipe_can_say_is_refused(said: dict[str, Any], what: str, tmp_path: Path) -> None:
    if "labels" not in said and "channels" not in said:
        said = {"labels": {"background": 0, "grey": 1}, **said}
    folder = make_folder(tmp_path, 2, **said)
    with pytest.raises(ModelError, match=what):
        read_plans(folder, "2d")


def of_another_module(plans: dict[str, Any]) -> None:
    plans["configurations"]["2d"]["architecture"]["network_class_name"] = "os.system"


def of_another_width(plans: dict[str, Any]) -> None:
    kwargs = plans["configurations"]["2d"]["architecture"]["arch_kwargs"]
    kwargs["features_per_stage"] = [5, 8, 8]


@pytest.mark.parametrize(
    ("change", "what"), [(of_another_module, "os.system"), (of_another_width, "do not fit")]
)
def test_a_network_that_is_not_the_plans_is_refused(
    change: Callable[[dict[str, Any]], None], what: str, tmp_path: Path
) -> None:
    folder = make_folder(tmp_path, 2)
    plans = json.loads((folder / "plans.json").read_text())
    changed = copy.deepcopy(plans)
    change(changed)
    (folder / "plans.json").write_text(json.dumps(changed))
    state = read_checkpoints(folder).states[0]
    with pytest.raises(ModelError, match=what):
        build_network(read_plans(folder, "2d"), state, "nnUNetTrainer")


def test_folders_and_folds_that_are_not_there_are_named(tmp_path: Path, scan: Path) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        read_checkpoints(tmp_path / "none")
    with pytest.raises(ModelError, match="finished are none"):
        read_checkpoints(tmp_path)
    folder = make_folder(tmp_path, 2, labels={"grey": 1})
    with pytest.raises(ModelError, match=r"fold_4 .*finished are fold_0"):
        read_checkpoints(folder, ("0", "4"))
    with pytest.raises(InputError, match="--prove"):
        export_nnunet(folder, tmp_path / "out", scans=[])
    (folder / "fold_0" / "checkpoint_final.pth").write_bytes(b"no checkpoint")
    with pytest.raises(LeudaError, match="checkpoint_final"):
        read_checkpoints(folder)
    assert not (tmp_path / "out").exists()
