"""What a teacher sees its images under: normal noise, clipped, the same for the same seed."""

from __future__ import annotations

import pytest
import torch
from support import tiny

from leuda_train.loop.ranks import ALONE, Ranks
from leuda_train.objective.teacher_noise import teacher_noise


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def noise_on(images: torch.Tensor, ranks: Ranks = ALONE) -> torch.Tensor:
    """(2, B, 1, H, W): that of two of three streams."""
    sets = dict.fromkeys(("source", "target", "source_cycled"), images)
    asked = ("source", "target")
    found = teacher_noise(sets, asked, tiny.config().objective, generator(), ranks)
    assert tuple(found) == asked
    return torch.stack([noisy - images for noisy in found.values()])


def test_noise_is_normal_clipped_at_its_limit():
    noise = noise_on(torch.zeros(4, 1, 64, 64))
    assert noise.abs().max() == pytest.approx(0.2)
    assert noise.mean().abs() < 0.005
    assert (noise.abs() == noise.abs().max()).float().mean() == pytest.approx(0.0455, abs=0.01)
    inner = noise[noise.abs() < 0.1]
    assert len(inner) / noise.numel() == pytest.approx(0.683, abs=0.02)
    assert torch.equal(noise, noise_on(torch.zeros(4, 1, 64, 64)))
    assert not torch.equal(noise[0], noise[1])


def test_each_process_gets_its_share_of_the_noise_of_all():
    joint = noise_on(torch.zeros(4, 1, 8, 8))
    shares = [noise_on(torch.zeros(2, 1, 8, 8), Ranks(n, 2)) for n in range(2)]
    assert torch.equal(joint, torch.cat(shares, dim=1))
