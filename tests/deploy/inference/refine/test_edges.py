"""Probabilities follow the edges of the slices: they fill an organ and stop where it ends."""

from __future__ import annotations

import numpy as np

from leuda_deploy.inference.refine.edges import Float32, follow_edges


def organ(size: int = 32) -> tuple[Float32, Float32]:
    """A bright square on grey, and probabilities that find all but its last columns."""
    image = np.zeros((size, size), np.float32)
    image[8:24, 8:24] = 2.0
    image += 0.1 * np.random.default_rng(0).normal(size=image.shape).astype(np.float32)
    found = np.zeros((size, size), np.float32)
    found[8:24, 8:20] = 0.9
    return image, np.stack([1 - found, found, np.zeros_like(found)])


def drawn(image: Float32, q: Float32) -> Float32:
    q = q.copy()
    follow_edges(q, image)
    return q


def test_a_structure_is_filled_up_to_its_edge() -> None:
    image, q = organ()
    refined = drawn(image, q)
    np.testing.assert_allclose(refined.sum(axis=0), 1, atol=1e-5)
    found = refined.argmax(axis=0) == 1
    assert found[10:22, 20:23].mean() > 0.9  # was missed
    assert found[:, 25:].sum() == 0  # is not it
    assert found[8:24, 8:20].mean() > 0.95
    assert not refined[2].any()


def test_grey_values_count_by_their_spread_alone() -> None:
    image, q = organ()
    np.testing.assert_allclose(drawn(100 * image + 7, q), drawn(image, q), atol=1e-2)


def test_what_is_far_away_changes_nothing() -> None:
    """Only a box around what is probable is looked at."""
    image, q = organ(96)
    np.testing.assert_allclose(drawn(image[:60, :60], q[:, :60, :60]), drawn(image, q)[:, :60, :60])
    empty = np.stack([np.ones_like(image), np.zeros_like(image)])
    np.testing.assert_array_equal(drawn(image, empty), empty)
