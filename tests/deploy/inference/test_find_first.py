"""A search scores few slices, and misses nothing that is as long as it steps."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.makers import MakeModel, MakeVolume, make_volume

from leuda_deploy.engines.engine import Float32
from leuda_deploy.errors import InputError, ModelError
from leuda_deploy.inference.find_first import Find, Walk, find_in, in_groups, scored_by
from leuda_deploy.inference.memory_plan import Workload, make_plan
from leuda_deploy.inference.segment import segment
from leuda_deploy.inference.segmenter import Segmenter
from leuda_deploy.inference.settings import Settings
from leuda_deploy.inference.slabs import Scoring
from leuda_deploy.inference.sliding_window import window_starts
from leuda_deploy.model.card import parse_card
from leuda_deploy.model.model_file import ModelFile
from leuda_deploy.model.refine import Refine
from leuda_deploy.model.search import Search
from leuda_deploy.model.tiling import Tiling
from leuda_deploy.scans.intensity.likeness import IntensityProfile
from leuda_deploy.scans.recipe import Depth, Recipe
from leuda_deploy.scans.stack import Stack

RECIPE = Recipe(
    slice_axis="superior",
    spacing_mm="native",
    window=(16, 16),
    clip_percentiles=(0.0, 100.0),
    normalisation="minmax",
)
SEARCH = Search(
    step_mm=20, margin_mm=5, scans=3, slices=300, scored=100, dice=1.0, disagreement=0.0
)


def rows_of(holds: NDArray[np.bool_]) -> list[range]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], holds.astype(int), [0]])))
    return [range(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True)]


@pytest.mark.parametrize("seed", range(60))
def test_every_row_as_long_as_a_step_is_scored_with_its_margin(seed: int) -> None:
    rng = np.random.default_rng(seed)
    depth, find = int(rng.integers(1, 90)), Find(step=int(rng.integers(2, 15)), margin=2)
    holds = np.repeat(rng.random(depth) < 0.4, rng.integers(1, 12, depth))[:depth]
    scored = scored_by(holds, find)
    for row in rows_of(holds):
        cut_by_an_end = 0 in row or depth - 1 in row
        if len(row) >= find.step or cut_by_an_end:
            around = slice(max(0, row.start - find.margin), row.stop + find.margin)
            assert scored[around].all()
    # and what is scored is either searched or near something that was found
    near = np.convolve(holds & scored, np.ones(2 * find.margin + 1), "same") > 0
    searched = np.isin(np.arange(depth), [*range(0, depth, find.step), depth - 1])
    between = np.zeros(depth, dtype=bool)
    places = np.flatnonzero(searched)
    for one, other in pairwise(places):
        between[one:other] = holds[one] and holds[other]
    assert not (scored & ~(near[:depth] | searched | between)).any()


def test_a_full_pass_is_one_round_of_all_slices() -> None:
    walk = Walk(7)
    assert [list(wanted) for wanted in walk] == [list(range(7))]
    assert walk.searched is None


def test_an_empty_scan_is_searched_alone() -> None:
    scored = scored_by(np.zeros(100, dtype=bool), Find(step=20, margin=3))
    assert np.flatnonzero(scored).tolist() == [0, 20, 40, 60, 80, 99]


def test_steps_are_never_longer_and_margins_never_shorter_than_proven() -> None:
    assert find_in(20.0, 5.0, 3.0) == Find(step=6, margin=2)
    assert find_in(20.0, 5.0, 2.5) == Find(step=8, margin=2)
    assert find_in(20.0, 0.1, 1.0) == Find(step=20, margin=1)
    assert find_in(20.0, 5.0, 10.1) is None


def bar(depth: int, rows: tuple[range, ...]) -> NDArray[np.int16]:
    """A scan (X, Y, Z) with noise in air, and something bright in these slices."""
    raw = np.random.default_rng(0).integers(0, 100, (20, 24, depth)).astype(np.int16)
    for row in rows:
        raw[5:12, 6:15, row.start : row.stop] = 900
    return raw


def bright(windows: Float32) -> Float32:
    return np.stack([np.zeros_like(windows[:, 0]), windows[:, 0]], axis=1)


@pytest.mark.parametrize("axis", ["superior", "right"])
@pytest.mark.parametrize("slab", [1, 5])
def test_labels_are_those_of_the_full_pass_where_all_is_found(
    make_volume: MakeVolume, axis: str, slab: int
) -> None:
    raw = bar(60, (range(17, 31), range(55, 60)))
    if axis == "right":
        raw = np.ascontiguousarray(raw.T)
    stack = Stack(
        make_volume(raw), Recipe.model_validate(RECIPE.model_dump() | {"slice_axis": axis})
    )
    seen: list[int] = []

    def engine(windows: Float32) -> Float32:
        seen.append(len(windows))
        return bright(windows)

    whole = segment(stack, bright, Scoring(slab=slab))
    found = segment(stack, engine, Scoring(slab=slab), find=Find(step=10, margin=2))
    np.testing.assert_array_equal(found.labels, whole.labels)
    assert whole.labels.any()
    assert (whole.scored, whole.searched) == (60, None)
    assert found.searched == 7  # 0, 10, ... 50, and the last
    assert found.scored < 45
    windows = 4  # of 16 x 16 in a slice of 20 x 24
    assert sum(seen) == found.scored * windows


def test_what_is_not_scored_is_background(make_volume: MakeVolume) -> None:
    stack = Stack(make_volume(bar(60, (range(11, 15), range(30, 45)))), RECIPE)
    labels = segment(stack, bright, find=Find(step=10, margin=2)).labels
    whole = segment(stack, bright).labels
    assert whole[..., 11:15].any()
    assert not labels[..., 5:20].any()  # as short as it is, it was stepped over
    np.testing.assert_array_equal(labels[..., 20:], whole[..., 20:])


def test_the_card_decides_and_the_reason_is_told(
    make_model: MakeModel, make_volume: MakeVolume, tmp_path: Path
) -> None:
    model = make_model(tmp_path, RECIPE, search=SEARCH)
    stack = Stack(make_volume(bar(60, (range(20, 40),))), RECIPE)
    thick = Stack(make_volume(bar(60, ()), np.diag([1.0, 1.0, 12.0, 1.0])), RECIPE)

    def asked(model: Path = model, **settings: Any) -> Segmenter:
        return Segmenter(model, Settings(engine="ort-cpu", threads=1, batch=4, **settings))

    assert asked().find_for(stack) == (Find(step=20, margin=5), None)
    assert asked(search="full").find_for(stack) == (None, "asked")
    assert asked().find_for(stack, uncertainty=True) == (None, "entropy map")
    assert asked().find_for(thick) == (None, "thick slices")
    none = make_model(tmp_path, RECIPE)
    assert asked(none).find_for(stack) == (None, "not proven")
    domain = IntensityProfile(scans=3, mean=(-50.0,) * 5, spread=(1.0,) * 5)
    unlike = make_model(tmp_path, RECIPE, search=SEARCH, domain=domain)
    assert asked(unlike).find_for(stack) == (None, "unlike")
    assert "search" not in asked().asked
    assert asked(search="full").asked["search"] == "full"
    with pytest.raises(InputError):
        asked(search="half")


def test_a_segmenter_says_what_it_scored(
    make_model: MakeModel, make_volume: MakeVolume, tmp_path: Path
) -> None:
    settings = Settings(engine="ort-cpu", threads=1, batch=4)
    segmenter = Segmenter(make_model(tmp_path, RECIPE, search=SEARCH), settings)
    volume = make_volume(bar(90, (range(30, 52),)))
    found = segmenter(volume)
    whole = Segmenter(segmenter.model, Settings(engine="ort-cpu", search="full", batch=4))(volume)
    np.testing.assert_array_equal(found.labels, whole.labels)
    assert (found.searched, whole.searched) == (6, None)
    assert found.scored < whole.scored == 90
    assert (found.full_because, whole.full_because) == (None, "asked")


def crowd() -> NDArray[np.int16]:
    """A scan of 48 x 40 x 60 with a body in air, and something bright in a third of the slices."""
    raw = np.random.default_rng(0).integers(0, 60, (48, 40, 60)).astype(np.int16)
    raw[10:36, 9:27] = 500
    raw[16:28, 12:20, 22:41] = 1000
    return raw


# what is left out -> windows that are scored, and their pixels: the gate against doing more
WORK = {
    (False, False, False): (60 * 5 * 4, 60 * 5 * 4 * 256),
    (True, False, False): (27 * 5 * 4, 27 * 5 * 4 * 256),
    (False, True, False): (60, 60 * 48 * 40),
    (False, False, True): (60 * 3 * 2, 60 * 3 * 2 * 256),
    (True, True, True): (27, 27 * 32 * 24),
}


@pytest.mark.parametrize("leave_out", WORK)
def test_a_scan_is_labelled_with_no_more_work_than_before(
    make_volume: MakeVolume, leave_out: tuple[bool, bool, bool]
) -> None:
    search, whole, air = leave_out
    windows, pixels = 0, 0

    def engine(batch: Float32) -> Float32:
        nonlocal windows, pixels
        windows, pixels = windows + len(batch), pixels + batch.size
        return np.stack([np.full_like(batch[:, 0], 0.5), batch[:, 0]], axis=1)

    tiling = Tiling(whole=(48, 48) if whole else None, air=0.2 if air else None)
    stack = Stack(make_volume(crowd()), RECIPE)
    find = Find(step=10, margin=2) if search else None
    found = segment(stack, engine, Scoring(tiling=tiling, multiple=8), find=find)
    np.testing.assert_array_equal(found.labels, crowd() == 1000)
    assert (windows, pixels) == WORK[leave_out]


@pytest.mark.parametrize("slab", [1, 4])
def test_slices_that_are_averaged_with_their_neighbours_are_those_of_the_full_pass(
    make_volume: MakeVolume, slab: int
) -> None:
    """Whatever round a neighbour is scored in."""
    rng = np.random.default_rng(3)
    raw = bar(60, (range(17, 31), range(44, 60)))
    # a structure that flickers, and is found and lost by what is beside it
    raw[..., rng.random(60) < 0.3] = 0
    stack = Stack(make_volume(raw), RECIPE)

    def engine(windows: Float32) -> Float32:
        """Unsure, and the more so the farther right."""
        slope = np.linspace(0.2, 1.2, windows.shape[-1], dtype=np.float32)
        return bright(windows) * slope

    scoring = Scoring(slab=slab, refine=Refine(across_slices=True))
    whole = segment(stack, engine, scoring)
    found = segment(stack, engine, scoring, find=Find(step=5, margin=4))
    plain = segment(stack, engine, Scoring(slab=slab))
    np.testing.assert_array_equal(found.labels, whole.labels)
    assert (plain.labels != whole.labels).any()
    assert whole.labels.any()
    assert found.scored < 60
    assert found.low_confidence == whole.low_confidence  # no slice counts twice
    assert found.low_confidence > 0


def test_beside_are_neighbours_that_were_scored() -> None:
    walk = Walk(10, Find(step=4, margin=1))
    assert walk.beside([0, 4, 8, 9]) == [0, 4, 8, 9]
    for index in (0, 4, 8, 9):
        walk.saw(index, index == 4)
    assert walk.beside([3, 5]) == [3, 4, 5]
    assert walk.beside([1, 2, 7]) == [0, 1, 2, 7, 8]


# --- windows of a 3D graph


def deep(spacing_mm: float = 1.0, *rows: range, depth: int = 70) -> Stack:
    raw = bar(depth, rows)
    raw[0, 0, 0] = 900  # too little to be found
    volume = make_volume(raw, np.diag([1.0, 1.0, spacing_mm, 1.0]))
    return Stack(volume, RECIPE, window_depth=Depth(slices=8, spacing_mm=1.5))


def neighbours(windows: Float32) -> Float32:
    """Scores that depend on where in the window a voxel lies, and on its neighbours."""
    x = windows[:, 0]
    rim = np.linspace(0.8, 1.2, x.shape[1], dtype=np.float32)[:, None, None]
    return np.stack([np.full_like(x, 0.2), (x + np.roll(x, 1, axis=1)) / 2 * rim], axis=1)


@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.5, 0.75, 0.8])
@pytest.mark.parametrize("depth", [1, 8, 9, 13, 40, 71])
def test_searched_windows_see_every_slice_and_touch(overlap: float, depth: int) -> None:
    starts = window_starts(depth, 8, overlap)
    groups = in_groups(starts, 8)
    assert [row for group in groups for row in group] == list(range(len(starts)))
    seen = np.zeros(depth, dtype=bool)
    for group in groups:
        seen[starts[group[-1]] : starts[group[-1]] + 8] = True
    assert seen.all()
    if overlap >= 0.5 and len(starts) > 3:
        assert len(groups) <= len(starts) / 2 + 1
    if overlap < 0.5:  # none can be left out
        assert len(groups) == len(starts)


@pytest.mark.parametrize("overlap", [0.5, 0.75])
@pytest.mark.parametrize(
    ("rows", "spacing_mm"),
    [
        ((range(30, 41),), 1.5),
        ((range(30, 41),), 3.0),
        ((range(0, 6), range(50, 70)), 1.0),
        ((), 1.5),
        ((), 1.0),
    ],
)
def test_labels_of_few_windows_are_those_of_all(
    overlap: float, rows: tuple[range, ...], spacing_mm: float
) -> None:
    stack = deep(spacing_mm, *rows)
    full = Scoring(tiling=Tiling(overlap=overlap), batch=3)
    few = Scoring(tiling=Tiling(overlap=overlap, find_first=True), batch=3)
    whole, found = segment(stack, neighbours, full), segment(stack, neighbours, few)
    np.testing.assert_array_equal(found.labels, whole.labels)
    assert whole.labels.any() == bool(rows)
    assert whole.along is not None
    assert found.along is not None
    assert whole.along[0] == whole.along[1] == found.along[1]
    assert found.along[0] < whole.along[0]
    if not rows and overlap == 0.5:
        assert found.along[0] <= whole.along[0] / 2 + 1


def test_where_something_is_found_scores_are_those_of_all_windows_to_the_bit() -> None:
    stack = deep(1.5, range(0, 70))
    tilings = (Tiling(), Tiling(find_first=True))
    found = [
        segment(stack, neighbours, Scoring(tiling=tiling), uncertainty=True) for tiling in tilings
    ]
    np.testing.assert_array_equal(found[0].uncertainty, found[1].uncertainty)
    assert found[0].along == found[1].along


def test_the_plan_holds_what_a_search_of_windows_uses() -> None:
    classes = 40

    def engine(windows: Float32) -> Float32:
        scores = np.repeat(windows, classes, axis=1)
        scores[:, 1] += 0.5
        return scores

    volume = make_volume(np.random.default_rng(0).integers(0, 99, (64, 64, 40)).astype(np.int16))
    stack = Stack(volume, RECIPE, window_depth=Depth(slices=8))
    assert stack.intensity.high > 0
    tiling = Tiling(find_first=True)
    plan = make_plan(stack, Workload(classes=classes, tiling=tiling), batch=1)
    tracemalloc.start()
    try:
        segment(stack, engine, Scoring(tiling=tiling, batch=1))
        used = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    own = 4 * classes * 8 * 16 * 16
    planned = plan.parts["slabs"] + plan.parts["labels"] + own
    assert used < planned < 1.6 * used


def test_a_3d_card_decides_and_the_reason_is_told(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(tmp_path, RECIPE, depth=Depth(slices=8), tiling=Tiling(find_first=True))
    volume = make_volume(bar(60, (range(20, 30),)))

    def asked(**settings: Any) -> Segmenter:
        return Segmenter(model, Settings(engine="ort-cpu", threads=1, batch=4, **settings))

    found, whole = asked()(volume), asked(search="full")(volume)
    np.testing.assert_array_equal(found.labels, whole.labels)
    assert (found.full_because, whole.full_because) == (None, "asked")
    assert found.along is not None
    assert found.along[0] < found.along[1]
    assert whole.along == (found.along[1], found.along[1])
    assert asked()(volume, uncertainty=True).full_because == "entropy map"
    with pytest.raises(ModelError):
        parse_card(
            ModelFile.open(model).card.model_copy(update={"depth": None}).to_json(), "a card"
        )
