"""The batched step is the stream-by-stream step, where batch norm runs by stream."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from support import tiny

from leuda_train.stages.adapt import Adaptation

PLAIN = Path(__file__).parents[3] / "benchmarks" / "parts" / "plain_step.py"
STEPS = 6


@pytest.fixture(scope="module")
def plain_step():
    spec = importlib.util.spec_from_file_location("plain_step", PLAIN)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def both(plain_step, batchnorm_over: str):
    """A trainer and a plain loop after the same steps, and the losses of each."""
    config = tiny.config(
        unet={"dropout": [0.0, 0.0]},
        schedule={"learning_rate": 3e-4},
        objective={"batchnorm_over": batchnorm_over},
    )
    batched = Adaptation(tiny.aligned_sets(), config, tiny.CPU, tiny.generator())
    plain = plain_step.PlainLoop(tiny.aligned_sets(), config, torch.device("cpu"))
    ours, theirs = [], []
    for step in range(STEPS):
        ours.append({name: term.item() for name, term in batched.step(step).items()})
        theirs.append(plain.step(step))
    return batched, plain, ours, theirs


def test_by_stream_the_batched_step_has_the_losses_and_weights_of_a_forward_a_stream(plain_step):
    batched, plain, ours, theirs = both(plain_step, "stream")
    for row, expected in zip(ours, theirs, strict=True):
        assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    names = (
        "student",
        "intra_teacher",
        "inter_teacher",
        "intra_discriminator",
        "inter_discriminator",
    )
    for name in names:
        found = dict(getattr(batched.nets, name).named_parameters())
        for key, expected in getattr(plain, name).named_parameters():
            if expected.ndim > 1 or "discriminator" in name:  # a bias before a norm cancels out
                torch.testing.assert_close(found[key], expected, atol=1e-5, rtol=1e-3)
    for name in names[:3]:
        found = dict(getattr(batched.nets, name).named_buffers())
        for key, expected in getattr(plain, name).named_buffers():
            if "running_var" in key or "num_batches" in key:
                torch.testing.assert_close(found[key], expected, atol=1e-5, rtol=1e-3)


def test_over_the_batch_the_first_loss_differs(plain_step):
    *_, ours, theirs = both(plain_step, "batch")
    assert ours[0]["L_seg"] != pytest.approx(theirs[0]["L_seg"], rel=1e-3)
