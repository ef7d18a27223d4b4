"""whole scans without labels -> how far apart slices may be searched, or why none may be left out.

A 2D network scores each slice by itself, so a scan has to be labelled in full only once: which
slices a search would have scored, and what it would have missed, follows from what each slice holds
(`find_first.scored_by`). What was chosen is then run for real on the scan where it misses most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leuda_deploy.engines.engine import Scorer
from leuda_deploy.engines.open_engine import reference_engine
from leuda_deploy.errors import ParityError
from leuda_deploy.inference.find_first import find_in, scored_by
from leuda_deploy.inference.segment import segment
from leuda_deploy.inference.slabs import Scoring
from leuda_deploy.machine.progress import Progress
from leuda_deploy.model.model_file import ModelFile, write_model
from leuda_deploy.model.search import Search
from leuda_train.export.product_file import ProductFacts
from leuda_train.export.whole_scans import FullPass, NamedScan, label_in_full, slice_counts

Pace = tuple[float, float]  # step and margin, in mm
LEAST_SCANS = 2
MIN_DICE = 0.995  # with the full pass, of every structure over all scans
MIN_SCAN_DICE = 0.98  # of a structure of a millilitre or more in any one scan
LEAST_ML = 1.0
MAX_DISAGREEMENT = 1e-3  # share of the voxels of any one scan
WORTH_IT = 0.9  # of the slices: a search that scores more gains too little for what it may miss
# shares of the smallest extent: steps and margins that are tried, the sparsest first
STEPS = (0.5, 0.25)
MARGINS = (0.125, 0.25, 0.5)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One scan of a proof: its slices, how many are scored, what that costs.

    disagreement  share of its voxels that get another label than in the full pass
    dice          by structure, with the full pass
    """

    scan: str
    slices: int
    scored: int
    disagreement: float
    dice: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Missed:
    """What a search scores of the scans, and how its labels differ from those of the full pass.

    rows       scan by scan
    dice       by structure, over all scans
    scan_dice  the smallest of a structure of LEAST_ML in one scan; 1 if there is none
    """

    rows: tuple[Row, ...]
    dice: dict[str, float]
    scan_dice: float

    @property
    def worst(self) -> Row:
        """The scan with the largest share of other labels."""
        return max(self.rows, key=lambda row: row.disagreement)

    @property
    def share(self) -> float:
        """Of the slices, how many are scored."""
        return sum(row.scored for row in self.rows) / sum(row.slices for row in self.rows)


def with_search(
    model: ModelFile, scans: Sequence[NamedScan], facts: ProductFacts, progress: Progress
) -> tuple[ModelFile, dict[str, Any]]:
    """A model file, written again with the search that is proven for it.

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
    engine, card = reference_engine(model), model.card
    scoring = Scoring(tiling=card.tiling, probabilities=card.probabilities)
    passes = label_in_full(
        scans, engine, scoring, classes=1 + len(card.structures), progress=progress
    )
    search, missed = prove_search(passes, engine, scoring, facts.extents_mm, facts.structures)
    card = card.model_copy(update={"search": search})
    report = {
        "extents_mm": facts.extents_mm,
        "dice": missed.dice,
        "scans": [asdict(row) for row in missed.rows],
    }
    return write_model(model.graph(), card, model.path), report


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
            if missed.share > WORTH_IT:
                continue
            if (wrong := _beyond_limits(missed)) is not None:
                refusal = f"a slice every {pace[0]:g} mm, {pace[1]:g} mm around: {wrong}"
                continue
            _check_for_real(passes[missed.rows.index(missed.worst)], engine, scoring, pace)
            found = Search(
                step_mm=pace[0],
                margin_mm=pace[1],
                scans=len(passes),
                slices=sum(row.slices for row in missed.rows),
                scored=sum(row.scored for row in missed.rows),
                dice=min(missed.dice.values()),
                disagreement=missed.worst.disagreement,
            )
            return found, missed
    raise _refused(refusal)


def missed_by(passes: Sequence[FullPass], pace: Pace, structures: Sequence[str]) -> Missed:
    """What a search at this pace misses of scans that were labelled in full."""
    rows, whole_organs = [], [1.0]
    every, lost = (np.zeros(1 + len(structures), dtype=np.int64) for _ in range(2))
    for one in passes:
        scored = _scored(one, pace)
        there, gone = one.counts.sum(axis=0), one.counts[~scored].sum(axis=0)
        dice = _dice(there, gone)
        whole_organs += dice[1:][there[1:] * one.voxel_ml >= LEAST_ML].tolist()
        rows.append(
            Row(
                scan=one.name,
                slices=len(one.counts),
                scored=int(scored.sum()),
                disagreement=float(gone[1:].sum() / there.sum()),
                dice=dict(zip(structures, dice[1:].tolist(), strict=True)),
            )
        )
        every, lost = every + there, lost + gone
    return Missed(
        rows=tuple(rows),
        dice=dict(zip(structures, _dice(every, lost)[1:].tolist(), strict=True)),
        scan_dice=min(whole_organs),
    )


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


def _dice(there: NDArray[np.int64], gone: NDArray[np.int64]) -> NDArray[np.float64]:
    """Of labels `there` with the same less what is `gone`, by class; 1 where there is nothing."""
    size = 2 * there - gone
    return np.where(size > 0, 2 * (there - gone) / np.maximum(size, 1), 1.0)


def _beyond_limits(missed: Missed) -> str | None:
    """Which limit the search passes, in words."""
    name = min(missed.dice, key=lambda name: missed.dice[name])
    worst = missed.worst
    if missed.dice[name] < MIN_DICE:
        return f"Dice of {name} with the full pass is {missed.dice[name]:.4f}, allowed {MIN_DICE}"
    if missed.scan_dice < MIN_SCAN_DICE:
        return f"Dice of a structure in one scan is {missed.scan_dice:.4f}, allowed {MIN_SCAN_DICE}"
    if worst.disagreement > MAX_DISAGREEMENT:
        return (
            f"{worst.disagreement:.3%} of the voxels of {worst.scan} get another label, allowed "
            f"{MAX_DISAGREEMENT:.1%}"
        )
    return None


def _check_for_real(one: FullPass, engine: Scorer, scoring: Scoring, pace: Pace) -> None:
    """The search gives what was reckoned: the labels of the full pass in the slices it scores."""
    stack = one.open_again()
    found = segment(stack, engine, scoring, find=find_in(*pace, stack.slice_spacing_mm))
    counts = slice_counts(stack.of_scan(found.labels), one.counts.shape[1])
    expected, left_out = one.counts.copy(), ~_scored(one, pace)
    expected[left_out, 0] = expected[left_out].sum(axis=1)
    expected[left_out, 1:] = 0
    # batches of other slices may round a score another way
    apart = np.abs(counts - expected).sum() / expected.sum()
    if apart > MAX_DISAGREEMENT / 10:
        raise _refused(
            f"it gives {one.name} other labels than the full pass in slices that both score "
            f"({apart:.3%} of the voxels): the graph mixes its batch"
        )


def _refused(why: str) -> ParityError:
    return ParityError(f"no search is proven: {why}", figure="search")
