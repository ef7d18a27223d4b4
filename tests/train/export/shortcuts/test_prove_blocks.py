"""Windows of a 3D graph are left out only if whole scans get the labels of all windows."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from support.makers import MakeModel, make_volume

from leuda_deploy.engines.engine import Float32
from leuda_deploy.model.model_file import ModelFile
from leuda_deploy.scans.recipe import Depth
from leuda_deploy.scans.stack import Stack
from leuda_train.export.shortcuts.prove_blocks import with_block_search
from leuda_train.export.shortcuts.whole_scans import NamedScan, named_scans

DEPTH = Depth(slices=8)


def scan(*rows: range, model: ModelFile, depth: int = 64) -> Stack:
    """Something grey, and in it something bright, in these slices."""
    raw = np.random.default_rng(0).integers(0, 60, (20, 24, depth)).astype(np.int16)
    for row in rows:
        raw[4:16, 5:19, row] = 500
        raw[7:12, 8:14, row] = 950
    raw[0, 0, 0] = 1000
    volume = make_volume(raw, np.diag([5.0, 5.0, 1.0, 1.0]))
    return Stack(volume, model.card.recipe, window_depth=DEPTH)


def engine(windows: Float32) -> Float32:
    """Background, grey and bright by what the voxel and those above and below it are."""
    x = windows[:, 0]
    mean = (x + np.roll(x, 1, axis=1) + np.roll(x, -1, axis=1)) / 3
    return np.stack([np.full_like(x, 0.05), 0.6 - np.abs(mean), 4 * mean - 2], axis=1)


def forgetful(windows: Float32) -> Float32:
    """Finds something only where it stands in the first half of a window."""
    x = windows[:, 0]
    scores = np.stack([np.full_like(x, 0.05), 0.6 - np.abs(x), 4 * x - 2], axis=1)
    scores[:, 1:, windows.shape[2] // 2 :] = 0
    return scores


@pytest.fixture
def model(make_model: MakeModel, tmp_path: Path) -> ModelFile:
    return ModelFile.open(make_model(tmp_path, depth=DEPTH))


def named(model: ModelFile, *scans: tuple[range, ...]) -> list[NamedScan]:
    return [(f"scan {k}", partial(scan, *rows, model=model)) for k, rows in enumerate(scans)]


def test_what_is_proven_is_in_the_card(model: ModelFile) -> None:
    scans = named(model, (range(20, 31),), (range(40, 52),))
    written, report = with_block_search(model, engine, scans)
    assert report["refused"] is None
    assert 0.5 < report["windows"] < 0.85
    assert min(report["dice"].values()) > 0.995
    assert json.loads(json.dumps(report))["scans"][1]["scan"] == "scan 1"
    assert ModelFile.open(model.path).card.tiling.find_first
    assert written.sha256 != model.sha256


@pytest.mark.parametrize("why", ["one scan", "nothing", "everywhere", "missed"])
def test_what_is_not_proven_changes_nothing(model: ModelFile, why: str) -> None:
    usual, short = ((range(20, 31),), (range(40, 52),)), ((range(20, 31),), (range(36, 39),))
    scans = {
        "one scan": usual[:1],
        "nothing": ((), ()),
        "everywhere": ((range(64),), (range(64),)),
        "missed": short,
    }[why]
    scorer = forgetful if why == "missed" else engine
    written, report = with_block_search(model, scorer, named(model, *scans))
    assert isinstance(report["refused"], str)
    assert written == model
    assert not ModelFile.open(model.path).card.tiling.find_first


def test_scans_of_a_user_are_opened_with_the_graphs_depth(model: ModelFile, tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 20), np.int16), np.eye(4)), path)
    ((_, opening),) = named_scans([path], model.card.recipe, DEPTH)
    assert opening().window_slices == 8
