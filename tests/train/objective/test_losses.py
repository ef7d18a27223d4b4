"""Every equation on tensors small enough to work out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from leuda_train.objective.losses import (
    SMOOTH,
    adversarial_loss,
    discriminator_loss,
    inter_consistency,
    intra_consistency,
    pseudo_labels,
    pseudo_loss,
    segmentation_loss,
    soft_dice_loss,
    weighted_self_information,
)


def logits_of(*probabilities: list[float]) -> torch.Tensor:
    """One image of one row: a list of class probabilities a pixel -> logits (1, K, 1, W)."""
    return torch.tensor(probabilities).log().T[None, :, None, :]


# pixel 1: p = (3/4, 1/4), truth 0; pixel 2: p = (1/4, 3/4), truth 0
P = logits_of([0.75, 0.25], [0.25, 0.75])
Y = torch.zeros(1, 1, 2, dtype=torch.int64)


def test_soft_dice_squares_its_denominator_and_smooths_with_1e_5():
    assert SMOOTH == 1e-5
    background = (2 * 1.0 + 1e-5) / (0.625 + 2.0 + 1e-5)
    foreground = 1e-5 / (0.625 + 1e-5)
    expected = 1 - (background + foreground) / 2
    assert soft_dice_loss(P, Y).item() == pytest.approx(expected, rel=1e-5)


def test_soft_dice_is_taken_over_the_whole_batch():
    twice = soft_dice_loss(P.repeat(2, 1, 1, 1), Y.repeat(2, 1, 1))
    background = (2 * 2.0 + 1e-5) / (1.25 + 4.0 + 1e-5)
    assert twice.item() == pytest.approx(1 - (background + 1e-5 / 1.25) / 2, rel=1e-5)


def test_soft_dice_of_a_perfect_prediction_is_zero_even_with_an_absent_class():
    certain = torch.tensor([100.0, 0.0])[None, :, None, None].expand(1, 2, 1, 2)
    assert soft_dice_loss(certain, Y).item() == pytest.approx(0.0, abs=1e-6)


def test_segmentation_loss_is_half_dice_half_cross_entropy():
    cross_entropy = -(math.log(0.75) + math.log(0.25)) / 2
    expected = 0.5 * soft_dice_loss(P, Y).item() + 0.5 * cross_entropy
    assert segmentation_loss(P, Y).item() == pytest.approx(expected, rel=1e-6)


def test_intra_consistency_is_the_mean_square_of_softmax_differences():
    q = logits_of([0.25, 0.75], [0.25, 0.75])
    # differences: 1/2 for both classes of pixel 1, none in pixel 2
    assert intra_consistency(P, q).item() == pytest.approx(0.125, rel=1e-6)


def test_weighted_self_information_is_p_log2_p():
    found = weighted_self_information(logits_of([0.5, 0.25, 0.25]))
    torch.testing.assert_close(found.flatten(), torch.tensor([-0.5, -0.5, -0.5]))
    found = weighted_self_information(logits_of([0.875, 0.125]))
    expected = torch.tensor([0.875 * math.log2(0.875), -0.375])
    torch.testing.assert_close(found.flatten(), expected)


def test_inter_consistency_sums_over_classes_and_averages_over_pixels():
    p = logits_of([0.5, 0.5], [0.875, 0.125])
    q = logits_of([0.875, 0.125], [0.875, 0.125])
    high = 0.875 * math.log2(0.875)
    expected = ((-0.5 - high) ** 2 + (-0.5 + 0.375) ** 2 + 0 + 0) / 2
    assert inter_consistency(p, q).item() == pytest.approx(expected, rel=1e-5)


def test_adversarial_loss_pulls_scores_to_one():
    assert adversarial_loss(torch.tensor([1.0, 1.0])).item() == 0.0
    assert adversarial_loss(torch.tensor([0.0, 3.0])).item() == pytest.approx((1 + 4) / 2)


def test_discriminator_loss_pulls_real_to_one_and_fake_to_zero():
    assert discriminator_loss(torch.tensor([1.0]), torch.tensor([0.0])).item() == 0.0
    found = discriminator_loss(torch.tensor([0.0, 3.0]), torch.tensor([2.0, 4.0]))
    assert found.item() == pytest.approx(0.5 * 2.5 + 0.5 * 10.0)


@pytest.mark.parametrize("loss", [intra_consistency, inter_consistency])
def test_consistency_with_itself_is_zero(loss):
    assert loss(P, P).item() == 0.0


@pytest.mark.parametrize("height", [1e2, 1e4, 1e30])
def test_losses_and_gradients_are_finite_for_extreme_logits(height):
    p = (torch.eye(3) * height)[None, :, None, :].requires_grad_()
    q = -p.detach()
    y = torch.tensor([[[1, 1, 1]]])
    terms = (segmentation_loss(p, y), intra_consistency(p, q), inter_consistency(p, q))
    assert all(torch.isfinite(term) for term in terms)
    sum(terms).backward()
    assert torch.isfinite(p.grad).all()


def test_half_precision_inputs_are_computed_in_float32():
    generator = torch.Generator().manual_seed(0)
    p = torch.randn(2, 5, 4, 4, generator=generator).bfloat16()
    q = torch.randn(2, 5, 4, 4, generator=generator).bfloat16()
    y = torch.randint(5, (2, 4, 4), generator=generator)
    for half, single in (
        (segmentation_loss(p, y), segmentation_loss(p.float(), y)),
        (intra_consistency(p, q), intra_consistency(p.float(), q.float())),
        (inter_consistency(p, q), inter_consistency(p.float(), q.float())),
        (adversarial_loss(p), adversarial_loss(p.float())),
        (discriminator_loss(p, q), discriminator_loss(p.float(), q.float())),
    ):
        assert half.dtype == torch.float32
        assert half.item() == single.item()


def probabilities(*pixels: list[float]) -> torch.Tensor:
    """One row of pixels: (1, K, 1, N)."""
    return torch.tensor(pixels).T[None, :, None, :]


def test_pseudo_labels_trust_what_is_confident_and_at_least_half_of_every_class():
    q = probabilities([0.95, 0.05], [0.9, 0.1], [0.6, 0.4], [0.45, 0.55], [0.3, 0.7], [0.4, 0.6])
    labels, trusted = pseudo_labels(q, confidence=0.8)
    assert labels.flatten().tolist() == [0, 0, 0, 1, 1, 1]
    # class 0: median 0.9, so the threshold is 0.8; class 1: its median, 0.6
    assert trusted.flatten().tolist() == [True, True, False, False, True, True]


def test_pseudo_loss_is_the_segmentation_loss_where_everything_is_trusted():
    generator = torch.Generator().manual_seed(0)
    p = torch.randn(2, 4, 5, 6, generator=generator)
    y = torch.randint(4, (2, 5, 6), generator=generator)
    everything = torch.ones(2, 5, 6, dtype=torch.bool)
    assert pseudo_loss(p, y, everything).item() == pytest.approx(segmentation_loss(p, y).item())


def test_pseudo_loss_ignores_what_is_not_trusted():
    generator = torch.Generator().manual_seed(0)
    p = torch.randn(1, 3, 4, 4, generator=generator)
    y = torch.randint(3, (1, 4, 4), generator=generator)
    trusted = torch.zeros(1, 4, 4, dtype=torch.bool)
    trusted[..., :2] = True
    changed = p.clone()
    changed[..., 2:] += 5 * torch.randn(1, 3, 4, 2, generator=generator)
    torch.testing.assert_close(pseudo_loss(p, y, trusted), pseudo_loss(changed, y, trusted))
    nothing = torch.zeros_like(trusted)
    assert torch.isfinite(pseudo_loss(p, y, nothing))
