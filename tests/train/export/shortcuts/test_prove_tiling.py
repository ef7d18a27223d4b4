"""A tiling that scores less gets into a card only if it gives the labels of windows."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from support.makers import MakeModel, make_volume

from leuda_deploy.engines.engine import Float32
from leuda_deploy.errors import ParityError
from leuda_deploy.inference.segment import segment
from leuda_deploy.inference.slabs import Scoring, scoring_of
from leuda_deploy.model.card import GraphOptions
from leuda_deploy.model.model_file import ModelFile
from leuda_deploy.scans.recipe import Recipe
from leuda_deploy.scans.stack import Stack
from leuda_train.export.product_file import ProductFacts
from leuda_train.export.shortcuts.prove_search import with_search
from leuda_train.export.shortcuts.prove_tiling import with_tiling
from leuda_train.export.shortcuts.whole_scans import FullPass, label_in_full

RECIPE = Recipe(
    slice_axis="superior",
    spacing_mm="native",
    window=(16, 16),
    clip_percentiles=(0.0, 100.0),
    normalisation="minmax",
)
STRUCTURES = ("grey", "bright")
OPEN = GraphOptions(dynamic_window=True, window_multiple=8)
Scorer = Callable[[Float32], Float32]


def scan(seed: int, recipe: Recipe = RECIPE) -> Stack:
    """48 x 40 x 60: noise in air, a body, something grey and bright in a third of the slices."""
    raw = np.random.default_rng(seed).integers(0, 60, (48, 40, 60)).astype(np.int16)
    raw[10:38, 10:30] = 250
    raw[16:28, 12:20, 20 + seed : 40] = 500
    raw[28:34, 14:24, 25 : 45 - seed] = 1000
    return Stack(make_volume(raw, np.diag([2.0, 2.0, 1.0, 1.0])), recipe)


def pixelwise(windows: Float32) -> Float32:
    x = windows[:, 0]
    return np.stack([np.full_like(x, 0.3), 0.7 - np.abs(x), 2 * x - 0.5], axis=1)


def rim(windows: Float32) -> Float32:
    """Sees nothing grey in the outer pixels of a window."""
    scores = pixelwise(windows)
    inside = np.zeros(windows.shape[-2:], dtype=bool)
    inside[3:-3, 3:-3] = True
    scores[:, 1][:, ~inside] = -9.0
    return scores


def mean_of(windows: Float32) -> Float32:
    """Normalises by what is in the window."""
    return pixelwise(windows - windows.mean(axis=(-2, -1), keepdims=True) + np.float32(-0.75))


def passes_of(engine: Scorer, model: ModelFile, *scans: partial[Stack]) -> list[FullPass]:
    named = [(f"scan {k}", opening) for k, opening in enumerate(scans)]
    return label_in_full(named, engine, scoring_of(model.card), classes=3)


TWO = (partial(scan, 0), partial(scan, 1))


def test_the_least_work_that_changes_nothing_is_taken(
    make_model: MakeModel, tmp_path: Path
) -> None:
    model = ModelFile.open(make_model(tmp_path, RECIPE, options=OPEN))
    passes = passes_of(pixelwise, model, *TWO)
    written, tried = with_tiling(model, pixelwise, passes)
    again = ModelFile.open(model.path)
    assert again.sha256 == written.sha256 != model.sha256
    assert (again.card.tiling.air, again.card.tiling.whole) == (0.15, (24, 32))
    (only,) = json.loads(json.dumps(tried))
    assert only["refused"] is None
    assert only["pixels"] == pytest.approx(24 * 32 / (4 * 5 * 16 * 16))
    assert min(only["dice"].values()) == 1
    for one in passes:
        found = segment(one.open_again(), pixelwise, scoring_of(again.card))
        np.testing.assert_array_equal(one.open_again().of_scan(found.labels), one.labels)


@pytest.mark.parametrize("engine", [rim, mean_of])
def test_a_network_that_sees_where_windows_end_keeps_its_windows(
    make_model: MakeModel, tmp_path: Path, engine: Scorer
) -> None:
    model = ModelFile.open(make_model(tmp_path, RECIPE, options=OPEN))
    written, tried = with_tiling(model, engine, passes_of(engine, model, *TWO))
    assert written.card.tiling.whole is None
    assert ModelFile.open(model.path).sha256 == written.sha256
    refused = [row for row in tried if row["whole"]]
    assert refused
    assert all(row["refused"] for row in refused)


def test_a_graph_with_a_fixed_window_leaves_out_air_alone(
    make_model: MakeModel, tmp_path: Path
) -> None:
    model = ModelFile.open(make_model(tmp_path, RECIPE))
    written, tried = with_tiling(model, pixelwise, passes_of(pixelwise, model, *TWO))
    assert (written.card.tiling.air, written.card.tiling.whole) == (0.15, None)
    assert tried[0]["pixels"] == pytest.approx(2 * 3 / (4 * 5))


def test_nothing_is_taken_on_one_scan_or_where_nothing_is_saved(
    make_model: MakeModel, tmp_path: Path
) -> None:
    model = ModelFile.open(make_model(tmp_path, RECIPE))
    assert with_tiling(model, pixelwise, passes_of(pixelwise, model, TWO[0])) == (model, [])
    wide = RECIPE.model_copy(update={"window": (64, 64)})
    model = ModelFile.open(make_model(tmp_path, wide))
    passes = passes_of(pixelwise, model, partial(scan, 0, wide), partial(scan, 1, wide))
    assert with_tiling(model, pixelwise, passes) == (model, [])


def test_a_search_is_proven_together_with_the_tiling(make_model: MakeModel, tmp_path: Path) -> None:
    model = ModelFile.open(make_model(tmp_path, RECIPE, options=OPEN))
    facts = ProductFacts.model_construct(
        extents_mm=dict.fromkeys(STRUCTURES, 19.0), structures=STRUCTURES
    )
    passes = passes_of(pixelwise, model, *TWO)
    tiled, _ = with_tiling(model, pixelwise, passes)
    searched, report = with_search(tiled, pixelwise, passes, facts)
    assert searched.card.search is not None
    assert searched.card.tiling == tiled.card.tiling
    assert searched.card.search.dice == min(report["dice"].values()) == 1

    def less(windows: Float32) -> Float32:
        """Finds nothing where it is given other windows than those of the full passes."""
        return pixelwise(windows if windows.shape[-1] == 16 else np.full_like(windows, -1))

    with pytest.raises(ParityError, match="whole"):
        with_search(tiled, less, passes, facts)


def test_scoring_takes_other_sizes_where_the_graph_does(
    make_model: MakeModel, tmp_path: Path
) -> None:
    fixed, free = (
        ModelFile.open(make_model(tmp_path / name, RECIPE, **fields)).card
        for name, fields in (("fixed", {}), ("free", {"options": OPEN}))
    )
    assert scoring_of(fixed) == Scoring()
    assert scoring_of(free) == Scoring(multiple=8)
