"""scans labelled in full, and again with less work -> how far labels differ; limits for that."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leuda_deploy.inference.segment import Segmentation
from leuda_deploy.scans.stack import Stack
from leuda_train.export.shortcuts.whole_scans import FullPass

MIN_DICE = 0.995  # with the full pass, of every structure over all scans
MIN_SCAN_DICE = 0.98  # of a structure of a millilitre or more in any one scan
LEAST_ML = 1.0
MAX_DISAGREEMENT = 1e-3  # share of the voxels of any one scan
LEAST_SCANS = 2
WORTH_IT = 0.9  # of the work: what does more gains too little for what it may change


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Voxels of a scan by class, (1 + K,) each: in the full pass, in the other, alike in both."""

    full: NDArray[np.int64]
    other: NDArray[np.int64]
    alike: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One scan of a proof: its slices, how many are scored, what the shortcut costs.

    work          share of the full pass's: slices of a search, pixels of a tiling
    disagreement  share of its voxels that get another label than in the full pass
    dice          by structure, with the full pass
    """

    scan: str
    slices: int
    scored: int
    work: float
    disagreement: float
    dice: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Missed:
    """How labels differ from those of the full pass.

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
    def slices(self) -> int:
        """Of all scans."""
        return sum(row.slices for row in self.rows)

    @property
    def scored(self) -> int:
        """How many of the slices were."""
        return sum(row.scored for row in self.rows)

    @property
    def work(self) -> float:
        """Share of that of the full passes."""
        return sum(row.work * row.slices for row in self.rows) / self.slices


def missed_of(
    found: Iterable[tuple[FullPass, int, float, Counts]], structures: Sequence[str]
) -> Missed:
    """Scans with what was scored of each, the share of the work, and voxels by class -> Missed."""
    rows, whole_organs = [], [1.0]
    total = np.zeros((3, 1 + len(structures)), dtype=np.int64)
    for one, scored, work, counts in found:
        dice = _dice(counts)
        large = np.maximum(counts.full, counts.other)[1:] * one.voxel_ml >= LEAST_ML
        whole_organs += dice[1:][large].tolist()
        rows.append(
            Row(
                scan=one.name,
                slices=len(one.counts),
                scored=scored,
                work=work,
                disagreement=float(1 - counts.alike.sum() / counts.full.sum()),
                dice=dict(zip(structures, dice[1:].tolist(), strict=True)),
            )
        )
        total += np.stack([counts.full, counts.other, counts.alike])
    every = Counts(full=total[0], other=total[1], alike=total[2])
    return Missed(
        rows=tuple(rows),
        dice=dict(zip(structures, _dice(every)[1:].tolist(), strict=True)),
        scan_dice=min(whole_organs),
    )


def missed_for_real(
    passes: Sequence[FullPass],
    label: Callable[[Stack], tuple[Segmentation, float]],
    structures: Sequence[str],
) -> Missed:
    """Label the scans again, by a function that also says the share of the work -> Missed."""

    def again(one: FullPass) -> tuple[FullPass, int, float, Counts]:
        stack = one.open_again()
        found, work = label(stack)
        one_labels, other = one.labels, stack.of_scan(found.labels)
        classes = 1 + len(structures)
        counts = Counts(
            full=np.bincount(one_labels.ravel(), minlength=classes),
            other=np.bincount(other.ravel(), minlength=classes),
            alike=np.bincount(one_labels[one_labels == other], minlength=classes),
        )
        return one, found.scored, work, counts

    return missed_of(map(again, passes), structures)


def beyond_limits(found: Missed) -> str | None:
    """Which limit the labels pass, in words; None: they are the same within the limits above."""
    name = min(found.dice, key=lambda name: found.dice[name])
    worst = found.worst
    if found.dice[name] < MIN_DICE:
        return f"Dice of {name} with the full pass is {found.dice[name]:.4f}, allowed {MIN_DICE}"
    if found.scan_dice < MIN_SCAN_DICE:
        return f"Dice of a structure in one scan is {found.scan_dice:.4f}, allowed {MIN_SCAN_DICE}"
    if worst.disagreement > MAX_DISAGREEMENT:
        return (
            f"{worst.disagreement:.3%} of the voxels of {worst.scan} get another label, allowed "
            f"{MAX_DISAGREEMENT:.1%}"
        )
    return None


def _dice(counts: Counts) -> NDArray[np.float64]:
    """By class; 1 where neither has it."""
    size = counts.full + counts.other
    return np.where(size > 0, 2 * counts.alike / np.maximum(size, 1), 1.0)
