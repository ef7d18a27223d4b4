"""Teachers' probabilities get the class frequencies of the source's labels."""

from __future__ import annotations

import torch

from leuda_train.objective.class_prior import LIMIT, ClassPrior


def probabilities(shares: list[float], spread: float = 0.5) -> torch.Tensor:
    """(2, K, 64, 64) around some shares."""
    noise = torch.randn(2, len(shares), 64, 64, generator=torch.Generator().manual_seed(0))
    return (torch.tensor(shares).log()[:, None, None] + spread * noise).softmax(dim=1)


def settled(prior: ClassPrior, q: torch.Tensor) -> torch.Tensor:
    for _ in range(400):
        found = prior(q)
    return found


def test_a_timid_class_is_raised_and_a_generous_one_lowered_to_the_source_shares():
    prior = ClassPrior(torch.tensor([0.8, 0.15, 0.05]))
    q = probabilities([0.85, 0.07, 0.08])
    before, after = q.mean((0, 2, 3)), settled(prior, q).mean((0, 2, 3))
    assert before[1] < 0.09 < 0.12 < after[1]
    assert after[2] < 0.07 < before[2]
    assert torch.allclose(settled(prior, q).sum(1), torch.ones(2, 64, 64))


def test_frequencies_that_are_right_change_nothing():
    q = probabilities([0.7, 0.2, 0.1])
    prior = ClassPrior(q.mean((0, 2, 3)))
    assert torch.allclose(prior(q), q, atol=1e-5)


def test_no_class_is_weighted_beyond_the_limit():
    prior = ClassPrior(torch.tensor([0.5, 0.5]))
    q = torch.tensor([0.99, 0.01])[None, :, None, None].expand(1, 2, 4, 4)
    found = settled(prior, q)
    ratio = (found[0, 1, 0, 0] / found[0, 0, 0, 0]) / (0.01 / 0.99)
    assert LIMIT < ratio < LIMIT * 2  # the rare class by the limit, the other by at least a half


def test_a_class_without_labels_keeps_its_odds_against_what_is_right():
    prior = ClassPrior(torch.tensor([1.0, 0.0]))
    q = probabilities([0.9, 0.1])
    assert settled(prior, q).isfinite().all()
    assert settled(prior, q)[:, 1].mean() > 0.05


def test_what_was_found_is_part_of_the_state():
    prior = ClassPrior(torch.tensor([0.5, 0.5]))
    settled(prior, probabilities([0.9, 0.1]))
    other = ClassPrior(torch.tensor([0.5, 0.5]))
    other.load_state_dict(prior.state_dict())
    assert torch.equal(other.found, prior.found)
    assert other.found[0] > 0.8


def test_half_strength_goes_half_the_way():
    q = probabilities([0.9, 0.1], spread=0.0)
    shares = torch.tensor([0.8, 0.2])
    odds = []
    for strength in (0.0, 0.5, 1.0):
        found = settled(ClassPrior(shares, strength), q)
        odds.append((found[0, 1, 0, 0] / found[0, 0, 0, 0]).log())
    assert torch.allclose(odds[1], (odds[0] + odds[2]) / 2, atol=1e-4)
