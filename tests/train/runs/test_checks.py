"""What a run says before it begins."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from support import tiny

from leuda_deploy.errors import InputError
from leuda_train.config.load import load_config
from leuda_train.loop.hardware import Hardware
from leuda_train.runs import checks
from leuda_train.runs.checks import cpu_hours, plan_memory, warn_if_long
from leuda_train.stages.memory import need_of

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


def needs(**sections: object) -> list[int]:
    """Bytes of stage 2 by how many levels are computed again."""
    config = tiny.config(**{"recipe": {"window": [32, 32]}, **sections})
    return [need_of("le-uda", config, 3, CPU, levels).peak for levels in (0, 1, 2)]


def test_as_little_is_computed_again_as_fits() -> None:
    full, one, two = needs()
    for limit, levels in ((full, 0), (full - 1, 1), (one - 1, 2)):
        config = tiny.config(recipe={"window": [32, 32]}, max_memory=f"{limit}")
        plan = plan_memory(config, 3, CPU)
        assert plan["le-uda"].recomputed == levels
        assert plan["le-uda"].peak <= limit
    with pytest.raises(InputError, match="max_memory"):
        plan_memory(tiny.config(recipe={"window": [32, 32]}, max_memory=f"{two - 1}"), 3, CPU)


def test_without_a_limit_nothing_is_computed_again(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "leuda_train"):
        plan = plan_memory(tiny.config(), 3, CPU)
    assert [need.recomputed for need in plan.values()] == [0, 0]
    assert [line.split()[0] for line in caplog.messages] == ["translation", "le-uda"]


def test_too_small_a_machine_is_said_with_the_option_that_fits(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    content = {"recipe": {"window": [96, 96]}, "unet": {"widths": [16, 32], "dropout": [0.0, 0.0]}}
    full, *_, least = needs(**content)
    monkeypatch.setattr(checks, "available_bytes", lambda: (full + least) // 2)
    with pytest.raises(InputError, match="--max-memory") as refused:
        plan_memory(tiny.config(**content), 3, CPU)
    option = str(refused.value).split("--max-memory ")[1].split()[0]
    assert plan_memory(tiny.config(**content, max_memory=option), 3, CPU)["le-uda"].recomputed
    # who knows better is warned
    with caplog.at_level(logging.WARNING, "leuda_train"):
        assert not plan_memory(tiny.config(**content, max_memory="1T"), 3, CPU)["le-uda"].recomputed
    assert "1T" in caplog.text
    monkeypatch.setattr(checks, "available_bytes", lambda: least // 2)
    with pytest.raises(InputError, match="smaller"):
        plan_memory(tiny.config(**content), 3, CPU)


def test_a_compiled_network_computes_nothing_again() -> None:
    _, one, _ = needs()
    config = tiny.config(recipe={"window": [32, 32]}, max_memory=f"{one}", compile=True)
    with pytest.raises(InputError, match="compile"):
        plan_memory(config, 3, CPU)
