"""What a teacher sees its images under: normal noise, clipped, the same for the same seed."""

from __future__ import annotations

import pytest
import torch

from leuda_train.loop.ranks import Ranks
from leuda_train.objective.teacher_noise import teacher_noise


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_noise_is_normal_clipped_at_its_limit():
    noise = teacher_noise(torch.zeros(4, 1, 64, 64), 0.1, 0.2, generator())
    assert noise.abs().max() == pytest.approx(0.2)
    assert noise.mean().abs() < 0.005
    assert (noise.abs() == noise.abs().max()).float().mean() == pytest.approx(0.0455, abs=0.01)
    inner = noise[noise.abs() < 0.1]
    assert len(inner) / noise.numel() == pytest.approx(0.683, abs=0.02)
    again = teacher_noise(torch.zeros(4, 1, 64, 64), 0.1, 0.2, generator())
    assert torch.equal(noise, again)


def test_each_process_gets_its_share_of_the_noise_of_all():
    joint = teacher_noise([torch.zeros(4, 1, 8, 8)] * 2, 0.1, 0.2, generator())
    own = torch.zeros(2, 1, 8, 8)
    shares = [teacher_noise([own] * 2, 0.1, 0.2, generator(), Ranks(n, 2)) for n in range(2)]
    assert torch.equal(joint, torch.cat(shares, dim=1))
