"""whole scans without labels -> how far apart slices may be searched, or why none may be left out.

A 2D network scores each slice by itself, so a scan has to be labelled in full only once: which
slices a search would have scored, and what it would have missed, follows from what each slice holds
(`find_first.scored_by`). What was chosen is then run for real on the scan where it misses most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leuda_deploy.engines.engine import Scorer
from leuda_deploy.errors import ParityError
from leuda_deploy.inference.find_first import find_in, scored_by
from leuda_deploy.inference.segment import Segmentation, segment
from leuda_deploy.inference.slabs import Scoring, scoring_of
from leuda_deploy.model.model_file import ModelFile, write_model
from leuda_deploy.model.search import Search
from leuda_deploy.scans.stack import Stack
from leuda_train.export.product_file import ProductFacts
from leuda_train.export.shortcuts.same_labels import (
    LEAST_SCANS,
    MAX_DISAGREEMENT,
    WORTH_IT,
    Counts,
    Missed,
    beyond_limits,
    missed_for_real,
    missed_of,
)
from leuda_train.export.shortcuts.whole_scans import FullPass, slice_counts

Pace = tuple[float, float]  # step and margin, in mm
# shares of the smallest extent: steps and margins that are tried, the sparsest first
STEPS = (0.5, 0.25)
MARGINS = (0.125, 0.25, 0.5)


def with_search(
    model: ModelFile, engine: Scorer, passes: Sequence[FullPass], facts: ProductFacts
) -> tuple[ModelFile, dict[str, Any]]:
    """A model file, written again with the search that is proven for it.

    Args:
        model: The model file, its tiling as it will be used.
        engine: What runs it.
        passes: Scans that it labelled in full, in windows.
        facts: Of the run: structures, and how long they are.

    Returns:
        The file, and what was found, for parity.json.

    Raises:
        ParityError: No search gives the labels of the full pass, or too little is there to prove
            one on. The file is as it was.
    """
    if facts.extents_mm is None:
        raise ParityError(
            "no search is proven: an earlier leuda trained the run, which does not say how long "
            "its structures are",
            figure="search",
        )
    scoring, names = scoring_of(model.card), facts.structures
    in_windows = replace(scoring, tiling=scoring.tiling.in_windows)
    search, missed = prove_search(passes, engine, in_windows, facts.extents_mm, names)
    # what a full pass does not show: shortcuts at once, and labels that depend on slices beside
    if scoring != in_windows or scoring.refine.across_slices:
        missed = _searched_for_real(passes, engine, scoring, search, names)
        lowest = min(missed.dice.values())
        both = {"dice": lowest, "disagreement": missed.worst.disagreement, "scored": missed.scored}
        search = search.model_copy(update=both)
    card = model.card.model_copy(update={"search": search})
    report = {
        "extents_mm": facts.extents_mm,
        "dice": missed.dice,
        "scans": [asdict(row) for row in missed.rows],
    }
    return write_model(model.graph(), card, model.path), report


def _searched_for_real(
    passes: Sequence[FullPass],
    engine: Scorer,
    scoring: Scoring,
    search: Search,
    structures: Sequence[str],
) -> Missed:
    """What the search gives beside the full pass in windows. Raises ParityError if not the same."""

    def searched(stack: Stack) -> tuple[Segmentation, float]:
        find = find_in(search.step_mm, search.margin_mm, stack.slice_spacing_mm)
        found = segment(stack, engine, scoring, find=find)
        return found, found.scored / stack.depth

    missed = missed_for_real(passes, searched, structures)
    if (wrong := beyond_limits(missed)) is not None:
        raise _refused(
            f"with slices scored whole, less air or averaged, as it will be used: {wrong}"
        )
    return missed


def prove_search(
    passes: Sequence[FullPass],
    engine: Scorer,
    scoring: Scoring,
    extents: Mapping[str, float],
    structures: Sequence[str],
) -> tuple[Search, Missed]:
    """The sparsest search that gives the labels of the full pass, within the limits above.

    Args:
        passes: Scans that were labelled in full.
        engine: What labelled them.
        scoring: How.
        extents: Of each structure in training labels, in mm.
        structures: Names by class number, from 1.

    Raises:
        ParityError: There is none, or there is too little to prove one on.
    """
    lacking = [name for name in structures if name not in extents]
    if lacking:
        raise _refused(f"no training label shows how long {lacking[0]} is")
    if len(passes) < LEAST_SCANS:
        raise _refused(f"{len(passes)} scans are too few to prove it on; {LEAST_SCANS} are needed")
    total = sum(one.counts.sum(axis=0) for one in passes)
    for number, name in enumerate(structures, start=1):
        if not total[number]:
            raise _refused(f"the full pass finds no {name} in any of {len(passes)} scans")
    smallest = min(extents.values())
    refusal = "every candidate scores nearly all slices"
    for step in STEPS:
        for margin in MARGINS:
            pace = _in_whole_slices(passes, step * smallest, margin * smallest)
            missed = missed_by(passes, pace, structures)
            if missed.work > WORTH_IT:
                continue
            if (wrong := beyond_limits(missed)) is not None:
                refusal = f"a slice every {pace[0]:g} mm, {pace[1]:g} mm around: {wrong}"
                continue
            _check_for_real(passes[missed.rows.index(missed.worst)], engine, scoring, pace)
            found = Search(
                step_mm=pace[0],
                margin_mm=pace[1],
                scans=len(passes),
                slices=missed.slices,
                scored=missed.scored,
                dice=min(missed.dice.values()),
                disagreement=missed.worst.disagreement,
            )
            return found, missed
    raise _refused(refusal)


def missed_by(passes: Sequence[FullPass], pace: Pace, structures: Sequence[str]) -> Missed:
    """What a search at this pace misses of scans that were labelled in full."""

    def reckoned(one: FullPass) -> tuple[FullPass, int, float, Counts]:
        scored = _scored(one, pace)
        expected = _left_by(one, scored).sum(axis=0)
        there = one.counts.sum(axis=0)
        # background stays, and gains what is missed
        counts = Counts(full=there, other=expected, alike=np.minimum(there, expected))
        return one, int(scored.sum()), float(scored.mean()), counts

    return missed_of(map(reckoned, passes), structures)


def _left_by(one: FullPass, scored: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The scan's counts, (D, 1 + K), where all slices that are not scored are background."""
    counts = one.counts.copy()
    counts[~scored, 0] = counts[~scored].sum(axis=1)
    counts[~scored, 1:] = 0
    return counts


def _in_whole_slices(passes: Sequence[FullPass], step_mm: float, margin_mm: float) -> Pace:
    """The pace that every one of these scans keeps to, though its slices are whole.

    In a scan of thick slices a step is shorter than it was meant, and a margin longer. What is
    written down is no sparser than what was proven on any scan.
    """
    finds = [
        (find, one.slice_spacing_mm)
        for one in passes
        if (find := find_in(step_mm, margin_mm, one.slice_spacing_mm)) is not None
    ]
    step_mm = min((find.step * size for find, size in finds), default=step_mm)
    margin_mm = max((find.margin * size for find, size in finds), default=margin_mm)
    return round(step_mm, 3), round(margin_mm, 3)


def _scored(one: FullPass, pace: Pace) -> NDArray[np.bool_]:
    """Which slices of a scan are scored at this pace: (D,)."""
    find = find_in(*pace, one.slice_spacing_mm)
    if find is None:
        return np.ones(len(one.counts), dtype=bool)
    return scored_by(one.holds, find)


def _check_for_real(one: FullPass, engine: Scorer, scoring: Scoring, pace: Pace) -> None:
    """The search gives what was reckoned: the labels of the full pass in the slices it scores."""
    stack = one.open_again()
    found = segment(stack, engine, scoring, find=find_in(*pace, stack.slice_spacing_mm))
    counts = slice_counts(stack.of_scan(found.labels), one.counts.shape[1])
    expected = _left_by(one, _scored(one, pace))
    # batches of other slices may round a score another way
    apart = np.abs(counts - expected).sum() / expected.sum()
    if apart > MAX_DISAGREEMENT / 10:
        raise _refused(
            f"it gives {one.name} other labels than the full pass in slices that both score "
            f"({apart:.3%} of the voxels): the graph mixes its batch"
        )


def _refused(why: str) -> ParityError:
    return ParityError(f"no search is proven: {why}", figure="search")
