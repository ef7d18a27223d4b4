"""labelled windows + the product -> how far its own doubts can be believed (see `DiceCurve`).

Scans of training alone would say how things are where all goes well. So noise is added, too, more
and more, until the labels go wrong: then both the Dice and what the network expects of it fall.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from leuda_deploy.engines.engine import Float32, Scorer
from leuda_deploy.inference.labels import ExpectedDice, winners
from leuda_deploy.model.dice_curve import ENDS, DiceCurve
from leuda_deploy.scans.grid.edges import by_edges, follow_edges

NOISE = (0.0, 0.15, 0.3, 0.45, 0.6)  # standard deviations of an image
MOST_SCANS, MOST_SLICES = 8, 40  # more of them cost time and say the same
FEWEST = 6  # pairs of an expected and a true Dice, for two figures
BATCH = 8
LARGE = 0.05  # a difference above which a pair counts for less


@dataclass(frozen=True, kw_only=True)
class LabelledScan:
    """Windows (n, h, w) of one scan, normalised, and their class numbers (n, h, w)."""

    images: Float32
    labels: NDArray[np.uint8]


def spread(rows: NDArray[np.int64], most: int = MOST_SLICES) -> NDArray[np.int64]:
    """At most so many of them, evenly."""
    if len(rows) <= most:
        return rows
    places = np.linspace(0, len(rows) - 1, most).round().astype(int)
    return np.asarray(rows[places])


def fit_dice_curve(
    engine: Scorer,
    scans: Sequence[LabelledScan],
    *,
    classes: int,
    held_out: bool,
    edges: bool = False,
    seed: int = 0,
) -> DiceCurve | None:
    """Fit the curve on labelled scans.

    Args:
        engine: (B, 1, h, w) -> logits (B, K, h, w): the product.
        scans: What to fit it on; MOST_SCANS of them, evenly.
        classes: K, with the background.
        held_out: Whether training had not seen the labels.
        edges: Whether labels are drawn to the slices' edges.
        seed: Of the noise.

    Returns:
        The curve; None where too few structures are found to fit one.
    """
    chosen = spread(np.arange(len(scans)), MOST_SCANS)
    rng = np.random.default_rng(seed)
    pairs = [
        pair
        for strength in NOISE
        for k in chosen
        for pair in dice_pairs(
            engine, _with_noise(scans[k], strength, rng), classes, edges=edges
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
    engine: Scorer, scan: LabelledScan, classes: int, *, edges: bool = False
) -> dict[int, tuple[float, float]]:
    """By class that is found or is there: the Dice that is expected, and the true one."""
    doubts = ExpectedDice(classes)
    found, there, both = np.zeros((3, classes))
    for start in range(0, len(scan.images), BATCH):
        part = slice(start, start + BATCH)
        images = np.ascontiguousarray(scan.images[part], dtype=np.float32)
        scores = engine(images[:, None])
        if edges:
            scores = by_edges(scores, images)
        flat = np.moveaxis(scores, 1, 0).reshape(classes, -1)
        powers = np.exp(flat - flat.max(axis=0))
        won, truth = winners(flat), scan.labels[part].ravel()
        doubts.add(won, powers / powers.sum(axis=0))
        found += np.bincount(won, minlength=classes)
        there += np.bincount(truth, minlength=classes)
        both += np.bincount(won[won == truth], minlength=classes)
    return {
        k: (expected, float(2 * both[k] / (found[k] + there[k])))
        for k, expected in doubts.by_class().items()
    }


def kept_by_edges(scans: Sequence[LabelledScan], *, classes: int) -> dict[int, float]:
    """By class that is there: the Dice of true labels with the same, drawn to the slices' edges."""
    both, sizes = np.zeros((2, classes))
    for scan in scans:
        for image, labels in zip(scan.images, scan.labels, strict=True):
            q = np.ascontiguousarray((labels == np.arange(classes)[:, None, None]), np.float32)
            follow_edges(q, np.ascontiguousarray(image, np.float32))
            drawn = q.argmax(axis=0)
            both += np.bincount(labels[drawn == labels], minlength=classes)
            sizes += np.bincount(labels.ravel(), minlength=classes)
            sizes += np.bincount(drawn.ravel(), minlength=classes)
    return {k: float(2 * both[k] / sizes[k]) for k in range(1, classes) if sizes[k]}


def _with_noise(scan: LabelledScan, strength: float, rng: np.random.Generator) -> LabelledScan:
    if not strength:
        return scan
    noise = rng.standard_normal(scan.images.shape, dtype=np.float32)
    scale = np.float32(strength * scan.images.std())
    return LabelledScan(images=scan.images + scale * noise, labels=scan.labels)
