"""How far probabilities can be believed is found on labelled scans, and what that predicts."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import softmax

from leuda_deploy.inference.refine.across_slices import averaged
from leuda_deploy.inference.refine.edges import follow_edges
from leuda_deploy.model.dice_curve import DiceCurve
from leuda_deploy.model.refine import Refine
from leuda_train.evaluation.dice_curve import (
    LabelledScan,
    dice_pairs,
    fit_dice_curve,
    kept_by,
    some_of,
)

Float32 = NDArray[np.float32]
TOO_SURE = 12.0


def scans_of(seed: int, count: int = 6) -> list[LabelledScan]:
    """Slices whose class is the sign of what is seen, fainter from scan to scan."""
    rng = np.random.default_rng(seed)
    made = []
    for k in range(count):
        labels = (rng.random((6, 24, 24)) < 0.4).astype(np.uint8)
        seen = (labels - 0.5) * (1 - 0.12 * k) + rng.normal(scale=0.25, size=labels.shape)
        made.append(LabelledScan(images=seen.astype(np.float32), labels=labels, rows=np.arange(6)))
    return made


def engine(windows: Float32) -> Float32:
    """A network that sees right and is far too sure of it."""
    scores: Float32 = np.concatenate([-windows, windows], axis=1) * np.float32(TOO_SURE)
    return scores


def test_a_network_that_is_too_sure_is_corrected() -> None:
    curve = fit_dice_curve(engine, scans_of(0), classes=2, held_out=True)
    assert curve is not None
    assert curve.held_out
    assert curve.scans == 6
    off = []
    for scan in scans_of(1):  # others of the same kind
        ((expected, true),) = dice_pairs(engine, scan, 2).values()
        assert curve.predict(expected) <= expected
        off.append((expected - true, curve.predict(expected) - true))
    before, after = np.abs(np.array(off)).mean(axis=0)
    assert after < 0.7 * before
    assert curve.error == pytest.approx(after, abs=0.05)


def test_a_curve_never_promises_more_than_the_model_and_never_falls() -> None:
    curve = DiceCurve(shift=2.0, slope=1.5, error=0.0, scans=1, held_out=False)
    expected = np.linspace(0, 1, 101)
    predicted = np.array([curve.predict(value) for value in expected])
    assert (predicted <= expected).all()
    assert (np.diff(predicted) >= 0).all()
    assert curve.predict(0.0) == 0.0


def test_too_little_to_fit_a_curve_is_no_curve() -> None:
    nothing = LabelledScan(
        images=np.full((2, 8, 8), -9.0, np.float32),
        labels=np.zeros((2, 8, 8), np.uint8),
        rows=np.arange(2),
    )
    assert fit_dice_curve(engine, [nothing], classes=2, held_out=False) is None
    assert fit_dice_curve(engine, [], classes=2, held_out=False) is None


def test_rows_are_spread() -> None:
    rows = np.arange(100)
    assert some_of(rows, 3).tolist() == [0, 50, 99]
    assert some_of(rows[:2], 3).tolist() == [0, 1]
    assert some_of(rows, 6, together=2).tolist() == [0, 1, 49, 50, 98, 99]


def test_true_labels_tell_what_refining_costs() -> None:
    thin = np.zeros((7, 24, 24), np.uint8)
    thin[1:6, 4:12, 4:12] = 1
    thin[3, 16:20, 16:20] = 2  # of one slice
    image = np.where(thin == 1, 2.0, 0.0).astype(np.float32)
    scan = LabelledScan(images=image, labels=thin, rows=np.arange(7))
    apart = LabelledScan(images=image, labels=thin, rows=2 * np.arange(7))
    across = Refine(across_slices=True)
    kept = kept_by(across, [scan], classes=3)
    assert kept == {1: 1.0, 2: 0.0}  # a slice by itself ties with what is beside it
    assert kept_by(across, [apart], classes=3) == {1: 1.0, 2: 1.0}
    kept = kept_by(Refine(edges=True), [scan], classes=3)
    assert kept[1] == 1.0
    assert kept[2] < 0.9  # it has no edge


@pytest.mark.parametrize("refine", [Refine(edges=True), Refine(edges=True, across_slices=True)])
def test_dice_is_expected_of_what_is_refined(refine: Refine) -> None:
    scan = scans_of(2, 1)[0]
    ((expected, true),) = dice_pairs(engine, scan, 2, refine).values()
    q = softmax(engine(scan.images[:, None]), axis=1)
    for of_slice, image in zip(q, scan.images, strict=True):
        follow_edges(of_slice, image)
    if refine.across_slices:
        q = averaged(range(len(q)), q)
    won = q.argmax(axis=1)
    inside, p = won == 1, q[:, 1]
    assert expected == pytest.approx(2 * p[inside].sum() / (inside.sum() + p.sum()), rel=1e-5)
    assert true == pytest.approx(
        2 * (inside & (scan.labels == 1)).sum() / (inside.sum() + (scan.labels == 1).sum())
    )
