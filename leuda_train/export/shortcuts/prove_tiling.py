"""whole scans, labelled in windows -> what of a slice need not be scored, and whether at once.

A network sees other surroundings where windows end, so that labels change a little. Which tilings
change next to nothing is tried on whole scans, the one that saves most first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from math import prod
from typing import Any

from leuda_deploy.engines.engine import Scorer
from leuda_deploy.inference.segment import Segmentation, segment
from leuda_deploy.inference.slabs import Part, Scoring, part_of, scoring_of
from leuda_deploy.model.model_file import ModelFile, write_model
from leuda_deploy.model.tiling import Tiling
from leuda_deploy.scans.stack import Stack
from leuda_train.export.shortcuts.same_labels import (
    LEAST_SCANS,
    WORTH_IT,
    Missed,
    beyond_limits,
    missed_for_real,
)
from leuda_train.export.shortcuts.whole_scans import FullPass

AIR = (0.15, 0.05)  # shares of the way from the darkest value to the brightest that are tried


def with_tiling(
    model: ModelFile, engine: Scorer, passes: Sequence[FullPass]
) -> tuple[ModelFile, list[dict[str, Any]]]:
    """A model file, written again with the tiling that saves most of those that are proven.

    Args:
        model: The model file; its card lays windows over all of each slice.
        engine: What runs it.
        passes: Scans that it labelled so.

    Returns:
        The file, and each tiling that was tried, for parity.json. The file is as it was if none is
        proven.
    """
    scoring, names = scoring_of(model.card), [one.name for one in model.card.structures]
    tried: list[dict[str, Any]] = []
    if len(passes) < LEAST_SCANS or not all(sum(one.counts.sum(axis=0) for one in passes)):
        return model, tried
    for tiling in _candidates(scoring):
        largest = [0, 0]
        work = [_work(one.open_again(), scoring, tiling, largest) for one in passes]
        if sum(work) / len(work) > WORTH_IT:
            continue
        if tiling.whole:
            tiling = tiling.model_copy(update={"whole": tuple(largest)})
        missed = _labelled(passes, engine, scoring, tiling, names)
        wrong = beyond_limits(missed)
        tried.append(
            {
                "whole": tiling.whole,
                "air": tiling.air,
                "refused": wrong,
                "pixels": missed.work,
                "dice": missed.dice,
                "scans": [asdict(row) for row in missed.rows],
            }
        )
        if wrong is None:
            card = model.card.model_copy(update={"tiling": tiling})
            return write_model(model.graph(), card, model.path), tried
    return model, tried


def _candidates(scoring: Scoring) -> list[Tiling]:
    """Whole slices less air, whole slices, windows less air: whole ones need an open graph."""
    usual, any_size = scoring.tiling, (8192, 8192)
    airs = [usual.model_copy(update={"air": air}) for air in AIR]
    if scoring.multiple is None:
        return airs
    wholes = [tiling.model_copy(update={"whole": any_size}) for tiling in (*airs, usual)]
    return [*wholes, *airs]


def _work(stack: Stack, scoring: Scoring, tiling: Tiling, largest: list[int]) -> float:
    """Share of the pixels of the usual windows that are scored; `largest` grows to the part."""
    part, usual = (part_of(stack, some, scoring.multiple) for some in (tiling, scoring.tiling))
    largest[:] = map(max, largest, part.shape)
    return _pixels(part, tiling) / _pixels(usual, scoring.tiling)


def _pixels(part: Part, tiling: Tiling) -> int:
    return prod(part.window) * prod(part.window_counts(tiling.overlap))


def _labelled(
    passes: Sequence[FullPass],
    engine: Scorer,
    scoring: Scoring,
    tiling: Tiling,
    structures: Sequence[str],
) -> Missed:
    def label(stack: Stack) -> tuple[Segmentation, float]:
        found = segment(stack, engine, replace(scoring, tiling=tiling))
        return found, _work(stack, scoring, tiling, [0, 0])

    return missed_for_real(passes, label, structures)
