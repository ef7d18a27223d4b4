"""labelled windows + the product -> how far its probabilities can be believed (see `DiceCurve`).

Scans of training alone would say how things are where all goes well. So noise is added, too, more
and more, until the labels go wrong: then both the Dice and what the network expects of it fall.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from leuda_deploy.engines.engine import Float32, Scorer
from leuda_deploy.inference.labels import dice_sums, expected_dice, winners
from leuda_deploy.inference.refine.refined import Refined
from leuda_deploy.model.dice_curve import ENDS, DiceCurve
from leuda_deploy.model.refine import AS_PREDICTED, Refine

NOISE = (0.0, 0.15, 0.3, 0.45, 0.6)  # standard deviations of an image
MOST_SCANS, MOST_SLICES, TOGETHER = 8, 40, 8  # more of them cost time and say the same
FEWEST = 6  # pairs of an expected and a true Dice, for two figures
BATCH = 8
LARGE = 0.05  # a difference above which a pair counts for less


@dataclass(frozen=True, kw_only=True)
class LabelledScan:
    """Windows (n, h, w) of one scan, normalised, their class numbers (n, h, w), and which they are.

    rows  (n,) rising; those one apart are neighbours in the scan
    """

    images: Float32
    labels: NDArray[np.uint8]
    rows: NDArray[np.int64]


def some_of(
    rows: NDArray[np.int64], most: int = MOST_SLICES, *, together: int = 1
) -> NDArray[np.int64]:
    """At most so many of them, evenly, some side by side."""
    if len(rows) <= most:
        return rows
    starts = np.linspace(0, len(rows) - together, most // together).round().astype(int)
    return np.asarray(rows[(starts[:, None] + np.arange(together)).ravel()])


def fit_dice_curve(
    engine: Scorer,
    scans: Sequence[LabelledScan],
    *,
    classes: int,
    held_out: bool,
    refine: Refine = AS_PREDICTED,
    seed: int = 0,
) -> DiceCurve | None:
    """Fit the curve on labelled scans.

    Args:
        engine: (B, 1, h, w) -> logits (B, K, h, w): the product.
        scans: What to fit it on; MOST_SCANS of them, evenly.
        classes: K, with the background.
        held_out: Whether training had not seen the labels.
        refine: What is done to probabilities before labels are taken.
        seed: Of the noise.

    Returns:
        The curve; None where too few structures are found to fit one.
    """
    chosen = some_of(np.arange(len(scans)), MOST_SCANS)
    rng = np.random.default_rng(seed)
    pairs = [
        pair
        for strength in NOISE
        for k in chosen
        for pair in dice_pairs(
            engine, _with_noise(scans[k], strength, rng), classes, refine
        ).values()
    ]
    if len(pairs) < FEWEST:
        return None
    expected, true = np.array(pairs).T
    at = np.log(np.clip(expected, ENDS, 1 - ENDS) / (1 - np.clip(expected, ENDS, 1 - ENDS)))

    def off(line: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(1 / (1 + np.exp(-(line[0] + line[1] * at))) - true)

    shift, slope = least_squares(
        off, (0.0, 1.0), bounds=([-20, 0], [20, 20]), loss="soft_l1", f_scale=LARGE
    ).x
    curve = DiceCurve(
        shift=round(float(shift), 4),
        slope=round(float(slope), 4),
        error=0.0,
        scans=len(chosen),
        held_out=held_out,
    )
    error = np.mean([abs(curve.predict(pair[0]) - pair[1]) for pair in pairs])
    return curve.model_copy(update={"error": round(float(error), 4)})


def dice_pairs(
    engine: Scorer, scan: LabelledScan, classes: int, refine: Refine = AS_PREDICTED
) -> dict[int, tuple[float, float]]:
    """By class that is found or is there: the Dice that is expected, and the true one."""

    def scores(part: slice) -> Float32:
        return engine(np.ascontiguousarray(scan.images[part, None], dtype=np.float32))

    expected, found = np.zeros((2, 3, classes))
    refined = Refined(refine)
    for labels, probabilities in _slice_by_slice(scan, scores, refined):
        flat = probabilities.reshape(classes, -1)
        won = winners(flat)
        expected += dice_sums(won, flat)
        found += _counts(won, labels.ravel(), classes)
    dice = _dice(found)
    return {k: (one, dice[k]) for k, one in expected_dice(expected).items()}


def kept_by(refine: Refine, scans: Sequence[LabelledScan], *, classes: int) -> dict[int, float]:
    """By class that is there: the Dice of true labels with the same, refined."""
    found = np.zeros((3, classes))
    for scan in scans:

        def certain(part: slice, scan: LabelledScan = scan) -> Float32:
            each = np.arange(classes)[:, None, None]
            return np.ascontiguousarray(scan.labels[part, None] == each, np.float32)

        refined = Refined(refine, probabilities=True)
        for labels, probabilities in _slice_by_slice(scan, certain, refined):
            found += _counts(probabilities.argmax(axis=0).ravel(), labels.ravel(), classes)
    return _dice(found)


def _slice_by_slice(
    scan: LabelledScan, scores: Callable[[slice], Float32], refined: Refined
) -> Iterator[tuple[NDArray[np.uint8], Float32]]:
    """Labels (h, w) and refined probabilities (K, h, w) of each slice."""

    def done() -> Iterator[tuple[Sequence[int], Float32]]:
        for start in range(0, len(scan.images), BATCH):
            part = slice(start, start + BATCH)
            images = np.ascontiguousarray(scan.images[part], dtype=np.float32)
            yield from refined(scan.rows[part].tolist(), scores(part), images)
        yield from refined.finish()

    for rows, probabilities in done():
        yield from zip(scan.labels[np.searchsorted(scan.rows, rows)], probabilities, strict=True)


def _counts(found: NDArray[np.integer], true: NDArray[np.uint8], classes: int) -> NDArray[np.int64]:
    """(3, K): pixels that are in both, found, true."""
    each = found[found == true], found, true
    return np.stack([np.bincount(one, minlength=classes) for one in each])


def _dice(counts: NDArray[np.float64]) -> dict[int, float]:
    """By class that was found or is true, without the background."""
    rows = enumerate(counts.T)
    return {
        k: float(2 * both / (found + true)) for k, (both, found, true) in rows if k and found + true
    }


def _with_noise(scan: LabelledScan, strength: float, rng: np.random.Generator) -> LabelledScan:
    if not strength:
        return scan
    noise = rng.standard_normal(scan.images.shape, dtype=np.float32)
    scale = np.float32(strength * scan.images.std())
    return replace(scan, images=scan.images + scale * noise)
