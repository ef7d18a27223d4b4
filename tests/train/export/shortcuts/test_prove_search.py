"""A search gets into a card only if it gives the labels of the full pass on whole scans."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from support.makers import MakeModel, make_volume

from leuda_deploy.engines.engine import Float32
from leuda_deploy.errors import InputError, ParityError, TrainingError
from leuda_deploy.inference.find_first import find_in
from leuda_deploy.inference.segment import segment
from leuda_deploy.inference.slabs import Scoring
from leuda_deploy.model.model_file import ModelFile
from leuda_deploy.scans.recipe import Recipe
from leuda_deploy.scans.stack import Stack
from leuda_train.export.shortcuts.extents import extents_mm
from leuda_train.export.shortcuts.prove_search import prove_search, with_search
from leuda_train.export.shortcuts.whole_scans import (
    MOST_SCANS,
    NamedScan,
    label_in_full,
    named_scans,
    target_scans,
)

RECIPE = Recipe(
    slice_axis="superior",
    spacing_mm="native",
    window=(16, 16),
    clip_percentiles=(0.0, 100.0),
    normalisation="minmax",
)
STRUCTURES = ("grey", "bright")
GREY, BRIGHT = 500, 950
LONG = {"grey": 20.0, "bright": 24.0}


def affine(spacing_mm: float) -> NDArray[np.float64]:
    return np.diag([5.0, 5.0, spacing_mm, 1.0])


def scan(*rows: tuple[int, range], depth: int = 80, spacing_mm: float = 1.0) -> Stack:
    """A scan with something of this value in these slices."""
    raw = np.random.default_rng(0).integers(0, 100, (16, 16, depth)).astype(np.int16)
    for value, row in rows:
        raw[4:12, 4 + (value == BRIGHT) * 4 : 8 + (value == BRIGHT) * 4, row] = value
    raw[0, 0, 0] = 0
    return Stack(make_volume(raw, affine(spacing_mm)), RECIPE)


def engine(windows: Float32) -> Float32:
    """Background, grey and bright by what the pixel is, on a scan from -1 to 1."""
    x = windows[:, 0]
    return np.stack([np.zeros_like(x), 1 - np.abs(x) * 2, 4 * x - 2], axis=1)


USUAL = (
    partial(scan, (GREY, range(10, 31)), (BRIGHT, range(18, 45))),
    partial(scan, (GREY, range(40, 62)), (BRIGHT, range(50, 76)), spacing_mm=1.5),
    partial(scan, (GREY, range(0, 12)), (BRIGHT, range(5, 30))),
)


def named(scans: tuple[partial[Stack], ...]) -> list[NamedScan]:
    return [(f"scan {k}", opening) for k, opening in enumerate(scans)]


def test_what_is_proven_gives_the_labels_of_the_full_pass() -> None:
    scoring = Scoring()
    passes = label_in_full(named(USUAL), engine, scoring, classes=3)
    assert [one.name for one in passes] == ["scan 0", "scan 1", "scan 2"]
    search, missed = prove_search(passes, engine, scoring, LONG, STRUCTURES)
    assert search.step_mm <= 10  # half of the shortest
    assert (search.scans, search.slices) == (3, 240)
    assert search.scored < 0.7 * search.slices
    assert search.dice == 1
    assert search.disagreement == 0
    scored = 0
    for opening in USUAL:
        stack = opening()
        find = find_in(search.step_mm, search.margin_mm, stack.slice_spacing_mm)
        found = segment(stack, engine, find=find)
        np.testing.assert_array_equal(found.labels, segment(stack, engine).labels)
        scored += found.scored
    assert scored == search.scored == missed.scored


def test_what_a_step_leaves_out_makes_it_shorter_or_refuses_it() -> None:
    # an island of five slices between two searched ones
    island = partial(scan, (GREY, range(10, 31)), (BRIGHT, range(18, 45)), (GREY, range(64, 69)))
    passes = label_in_full(named((*USUAL, island)), engine, Scoring(), classes=3)
    search, _ = prove_search(passes, engine, Scoring(), LONG, STRUCTURES)
    assert search.step_mm == 4.5  # a quarter of the shortest, in slices of 1.5 mm
    islands = partial(scan, *((GREY, range(k, k + 1)) for k in (3, 33, 62, 68)))
    passes = label_in_full(named((*USUAL, islands)), engine, Scoring(), classes=3)
    with pytest.raises(ParityError) as refused:
        prove_search(passes, engine, Scoring(), LONG, STRUCTURES)
    assert refused.value.figure == "search"


def test_too_little_to_prove_it_on_is_refused() -> None:
    def refused(scans: tuple[partial[Stack], ...], extents: dict[str, float]) -> str:
        passes = label_in_full(named(scans), engine, Scoring(), classes=3)
        with pytest.raises(ParityError) as found:
            prove_search(passes, engine, Scoring(), extents, STRUCTURES)
        return str(found.value)

    no_bright = partial(scan, (GREY, range(10, 31)))
    everywhere = partial(scan, (GREY, range(80)), (BRIGHT, range(80)))
    reasons = {
        refused(USUAL[:1], LONG),
        refused((no_bright, no_bright), LONG),
        refused(USUAL, {"grey": 20.0}),
        refused((everywhere, everywhere), LONG),
        refused(USUAL, dict.fromkeys(LONG, 2.0)),  # no slice may be left out
    }
    assert len(reasons) == 4  # the last two are one


def test_a_graph_that_mixes_its_batch_is_caught_by_the_run_for_real() -> None:
    def mixing(windows: Float32) -> Float32:
        brightest = windows.max(axis=(1, 2, 3))
        scores = engine(windows)
        # a slice beside an empty one loses its labels
        scores[:, 1:] -= 9.0 * bool(brightest.min() < 0)
        return scores

    passes = label_in_full(named(USUAL), mixing, Scoring(batch=1), classes=3)
    with pytest.raises(ParityError, match="batch"):
        prove_search(passes, mixing, Scoring(batch=8), LONG, STRUCTURES)


def test_extents_are_of_the_longest_row_and_ends_cut_them() -> None:
    def labels(*rows: tuple[int, range]) -> Stack:
        raw = np.zeros((4, 5, 40), dtype=np.uint8)
        for number, row in rows:
            raw[1, 2, row] = number
        return Stack(make_volume(raw, affine(2.0)), RECIPE)

    first = labels((1, range(3, 12)), (1, range(20, 22)), (2, range(30, 40)))
    second = labels((1, range(30, 40)), (2, range(12)), (1, range(15, 22)))
    found = extents_mm([first, second], {"a": 1, "b": 2, "c": 3})
    # b is cut by an end in both: it is at least as long as the longer of the two
    assert found == {"a": 18.0, "b": 24.0}


def test_a_card_gets_its_search_and_says_so(make_model: MakeModel, tmp_path: Path) -> None:
    from leuda_train.export.product_file import ProductFacts

    model = ModelFile.open(make_model(tmp_path, RECIPE))
    facts = ProductFacts.model_construct(extents_mm=LONG, structures=STRUCTURES)
    passes = label_in_full(named(USUAL), engine, Scoring(), classes=3)
    written, report = with_search(model, engine, passes, facts)
    again = ModelFile.open(model.path)
    assert again.sha256 == written.sha256 != model.sha256
    assert again.card.search is not None
    assert again.card.search.scans == 3
    assert json.loads(json.dumps(report))["scans"][0]["scan"] == "scan 0"
    facts = ProductFacts.model_construct(extents_mm=None, structures=STRUCTURES)
    with pytest.raises(ParityError):
        with_search(model, engine, passes, facts)


def test_a_runs_unlabelled_target_scans_are_found(tmp_path: Path) -> None:
    image = tmp_path / "there.nii.gz"
    image.touch()
    rows = [
        {"role": role, "subject": name, "image": str(path), "pixel_spacing_mm": [1.0, 2.0]}
        for role, name, path in (
            ("target unlabelled", "one", image),
            ("target unlabelled", "gone", tmp_path / "gone.nii.gz"),
            ("target test", "two", image),
            ("source labelled", "three", image),
        )
    ]
    assert target_scans(tmp_path, RECIPE) == []
    (tmp_path / "scans.json").write_text(json.dumps({"scans": rows}))
    assert [name for name, _ in target_scans(tmp_path, RECIPE)] == ["one"]
    (tmp_path / "scans.json").write_text("{}")
    with pytest.raises(TrainingError):
        target_scans(tmp_path, RECIPE)
    with pytest.raises(InputError):
        named_scans([tmp_path / "gone.nii.gz"], RECIPE)


def test_many_scans_are_spread_over() -> None:
    looked = []

    def opening(k: int) -> Stack:
        looked.append(k)
        return scan(depth=2)

    scans = [(str(k), partial(opening, k)) for k in range(100)]
    label_in_full(scans, engine, Scoring(), classes=3)
    assert len(looked) == MOST_SCANS
    assert (looked[0], looked[-1]) == (0, 99)
