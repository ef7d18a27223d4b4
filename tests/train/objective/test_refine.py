"""Probabilities follow the edges of the slices: they fill an organ and stop where it ends."""

from __future__ import annotations

import torch

from leuda_train.objective.refine import follow_edges


def organ() -> tuple[torch.Tensor, torch.Tensor]:
    """A bright square on grey, and probabilities that find all but its last columns."""
    generator = torch.Generator().manual_seed(0)
    images = torch.zeros(1, 32, 32)
    images[:, 8:24, 8:24] = 2.0
    images += 0.1 * torch.randn(images.shape, generator=generator)
    found = torch.zeros(1, 32, 32)
    found[:, 8:24, 8:20] = 0.9
    return images, torch.stack([1 - found, found], dim=1)


def test_a_structure_is_filled_up_to_its_edge() -> None:
    images, q = organ()
    refined = follow_edges(q, images)
    torch.testing.assert_close(refined.sum(dim=1), torch.ones(1, 32, 32))
    found = refined.argmax(dim=1)[0] == 1
    assert found[10:22, 20:23].float().mean() > 0.9  # was missed
    assert found[:, 25:].sum() == 0  # is not it
    assert found[8:24, 8:20].float().mean() > 0.95


def test_grey_values_count_by_their_spread_alone() -> None:
    images, q = organ()
    torch.testing.assert_close(
        follow_edges(q, 100 * images + 7), follow_edges(q, images), atol=1e-2, rtol=0
    )
