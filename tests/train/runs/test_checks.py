"""What a run says before it begins."""

from __future__ import annotations

import logging
import math

import pytest
import torch

from leuda_train.config.load import load_config
from leuda_train.loop.hardware import Hardware
from leuda_train.runs.checks import cpu_hours, warn_if_long

CPU = Hardware(torch.device("cpu"), "fp32")


def test_a_run_of_weeks_on_a_processor_is_said_beforehand(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "leuda_train"):
        warn_if_long(load_config("demo", "le-uda"), 5, CPU)
        assert not caplog.messages
        warn_if_long(load_config("paper-cardiac", "le-uda"), 5, CPU)
    (line,) = caplog.messages
    assert "--config small" in line
    assert "days" in line or "months" in line


def test_the_estimate_grows_with_the_steps() -> None:
    config = load_config("demo", "le-uda")
    longer = config.model_copy(
        update={"schedule": config.schedule.model_copy(update={"epochs": 1000})}
    )
    hours = cpu_hours(config, 5, CPU)
    assert math.isfinite(hours)
    assert cpu_hours(longer, 5, CPU) > 5 * hours > 0
