"""Shared by the tests of the deployment half: scans, cards, and a model small enough to reason on.

The model is one 1x1 convolution. Its three logits are 0, x - t1 and 2x - t1 - t2, so that the
largest one says between which thresholds x lies: its labels are known without running it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from leuda_deploy.model.card import ModelCard, Provenance, Structure
from leuda_deploy.model.export_folder import MODEL_FILE
from leuda_deploy.model.model_file import write_model
from leuda_deploy.scans.recipe import Recipe
from leuda_deploy.scans.volume import Volume

THRESHOLDS = (-0.3001, 0.2503)  # on a "minmax" scan, which goes from -1 to 1

MakeVolume = Callable[..., Volume]
MakeCard = Callable[..., ModelCard]
MakeModel = Callable[..., Path]
ThresholdLabels = Callable[[NDArray[Any]], NDArray[np.uint8]]


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Trials of engines are kept in a folder of the test session's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LEUDA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def make_volume() -> MakeVolume:
    """A Volume in memory; keyword arguments replace the defaults."""

    def make(raw: NDArray[Any], affine: NDArray[np.float64] | None = None, **other: Any) -> Volume:
        settings: dict[str, Any] = {
            "name": "scan",
            "slope": 1.0,
            "inter": 0.0,
            "header": None,
            "shape": raw.shape,
        }
        affine = np.eye(4) if affine is None else affine
        return Volume(raw=raw, affine=affine, **(settings | other))

    return make


@pytest.fixture(scope="session")
def make_card() -> MakeCard:
    """A valid card for two structures; keyword arguments replace its fields."""

    def make(**other: Any) -> ModelCard:
        colours = ((230, 159, 0), (86, 180, 233))
        fields: dict[str, Any] = {
            "name": "thresholds",
            "modality": "CT",
            "recipe": Recipe(
                slice_axis="superior",
                spacing_mm="native",
                window=(16, 16),
                clip_percentiles=(0.0, 100.0),
                normalisation="minmax",
            ),
            "structures": tuple(
                Structure(name=name, value=value, colour=colours[value - 1])
                for value, name in enumerate(("grey", "bright"), start=1)
            ),
            "feed": "target",
            "opset": 20,
            "licence": "MIT",
            "provenance": Provenance(
                method="none",
                network="thresholds",
                cohort="none",
                cohort_sha256="0" * 64,
                config={"thresholds": list(THRESHOLDS)},
                seed=0,
                steps=0,
                created="2026-01-01",
                versions={},
            ),
            "sha256": "0" * 64,
        }
        return ModelCard(**(fields | other))

    return make


@pytest.fixture(scope="session")
def make_model(make_card: MakeCard) -> MakeModel:
    """Write the threshold model with its card into a folder; returns the model file.

    With a `depth` in the card it is a 3D graph.
    """

    def make(folder: Path, recipe: Recipe | None = None, **card_fields: Any) -> Path:
        card = make_card(**({"recipe": recipe} if recipe else {}), **card_fields)
        low, high = THRESHOLDS
        sides = [None] * len(card.window)
        weight = np.array([0, 1, 2], dtype=np.float32).reshape(3, 1, *(1 for _ in sides))
        bias = np.array([0, -low, -low - high], dtype=np.float32)
        graph = helper.make_graph(
            [helper.make_node("Conv", ["windows", "weight", "bias"], ["logits"])],
            "thresholds",
            [helper.make_tensor_value_info("windows", TensorProto.FLOAT, ["batch", 1, *sides])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3, *sides])],
            [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(bias, "bias")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        onnx.checker.check_model(model)
        path = folder / MODEL_FILE
        write_model(model, card, path)
        return path

    return make


@pytest.fixture(scope="session")
def threshold_labels() -> ThresholdLabels:
    """What the threshold model must say of a scan at native spacing, worked out directly."""

    def label(values: NDArray[Any]) -> NDArray[np.uint8]:
        values = np.asarray(values, dtype=np.float64)
        low, high = values.min(), values.max()
        x = 2 * (values - low) / (high - low) - 1
        gap = min(float(np.abs(x - threshold).min()) for threshold in THRESHOLDS)
        assert gap > 1e-5, "the test scan has a voxel on a threshold, where float32 may differ"
        return sum((x > threshold).astype(np.uint8) for threshold in THRESHOLDS)  # type: ignore[return-value]

    return label


@pytest.fixture
def scan_file(tmp_path: Path) -> Path:
    """A CT-like int16 scan, oblique and anisotropic."""
    values = np.random.default_rng(0).integers(0, 1001, (19, 37, 6)).astype(np.int16)
    values[0, 0, :2] = 0, 1000
    path = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(values, oblique_affine((0.8, 1.3, 5.0))), path)
    return path


def oblique_affine(spacing_mm: tuple[float, float, float]) -> NDArray[np.float64]:
    """RAS-like axes, turned by 20 degrees about z and 10 about x."""
    about_z, about_x = np.radians(20), np.radians(10)
    turn_z = [
        [np.cos(about_z), -np.sin(about_z), 0],
        [np.sin(about_z), np.cos(about_z), 0],
        [0, 0, 1],
    ]
    turn_x = [
        [1, 0, 0],
        [0, np.cos(about_x), -np.sin(about_x)],
        [0, np.sin(about_x), np.cos(about_x)],
    ]
    affine = np.eye(4)
    affine[:3, :3] = np.array(turn_z) @ np.array(turn_x) @ np.diag(spacing_mm)
    affine[:3, 3] = (-40.0, 12.5, 7.25)
    return affine


@pytest.fixture(scope="session", name="oblique_affine")
def oblique_affine_fixture() -> Callable[[tuple[float, float, float]], NDArray[np.float64]]:
    """The affine of an oblique scan, by voxel size in mm."""
    return oblique_affine
