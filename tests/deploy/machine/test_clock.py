"""Seconds by phase add up, whether or not the work succeeds."""

from __future__ import annotations

import pytest

from leuda_deploy.machine import clock
from leuda_deploy.machine.clock import Clock


def test_seconds_add_up_by_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(clock.time, "perf_counter", lambda: now)
    timed = Clock()
    for phase, seconds in (("read", 1.0), ("write", 2.0), ("read", 0.5)):
        with timed(phase):
            now += seconds

    def fail() -> None:
        nonlocal now
        with timed("write"):
            now += 4.0
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    assert timed.seconds == {"read": 1.5, "write": 6.0}
