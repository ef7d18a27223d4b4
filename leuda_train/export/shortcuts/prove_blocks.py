"""whole scans, labelled by all windows of a 3D graph -> whether those between may be left out.

Nothing is reckoned: each scan is labelled again with the windows that `FindingScorer` leaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from leuda_deploy.engines.engine import Scorer
from leuda_deploy.inference.segment import Segmentation, segment
from leuda_deploy.inference.slabs import scoring_of
from leuda_deploy.model.model_file import ModelFile, write_model
from leuda_deploy.scans.stack import Stack
from leuda_train.export.shortcuts.same_labels import (
    LEAST_SCANS,
    WORTH_IT,
    beyond_limits,
    missed_for_real,
)
from leuda_train.export.shortcuts.whole_scans import NamedScan, label_in_full


def with_block_search(
    model: ModelFile, engine: Scorer, scans: Sequence[NamedScan]
) -> tuple[ModelFile, dict[str, Any]]:
    """A 3D model file, written again to find first among its windows, if that is proven.

    Args:
        model: The model file; its card scores every window.
        engine: What runs it.
        scans: Whole scans to try it on.

    Returns:
        The file, as it was if nothing is proven, and what was found, for parity.json: the reason in
        `refused`, else None.
    """
    names, scoring = [one.name for one in model.card.structures], scoring_of(model.card)
    if len(scans) < LEAST_SCANS:
        why = f"{len(scans)} scans are too few to prove it on; {LEAST_SCANS} are needed"
        return model, {"refused": why}
    passes = label_in_full(scans, engine, scoring, classes=1 + len(names))
    total = sum(one.counts.sum(axis=0) for one in passes)
    lacking = [name for number, name in enumerate(names, start=1) if not total[number]]
    if lacking:
        return model, {"refused": f"the full pass finds no {lacking[0]} in any of the scans"}
    tiling = scoring.tiling.model_copy(update={"find_first": True})

    def searched(stack: Stack) -> tuple[Segmentation, float]:
        found = segment(stack, engine, replace(scoring, tiling=tiling))
        assert found.along is not None
        return found, found.along[0] / found.along[1]

    missed = missed_for_real(passes, searched, names)
    refused = beyond_limits(missed)
    if missed.work > WORTH_IT:
        refused = "something is found nearly everywhere"
    report = {
        "refused": refused,
        "windows": missed.work,
        "dice": missed.dice,
        "scans": [asdict(row) for row in missed.rows],
    }
    if refused is not None:
        return model, report
    card = model.card.model_copy(update={"tiling": tiling})
    return write_model(model.graph(), card, model.path), report
