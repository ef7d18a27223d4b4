"""engine + windows -> milliseconds a window and memory growth by batch, within the time allowed."""

from __future__ import annotations

import time

import numpy as np

from leuda_deploy.engines.engine import MAX_SCORE_BYTES, Engine, Float32, score_bytes
from leuda_deploy.machine.memory import resident_bytes

BATCHES = (1, 2, 4, 8, 16)
LONG_SECONDS = 0.5  # a batch that takes this long gains nothing from being larger


def one_window(engine: Engine, windows: Float32) -> float:
    """Seconds of one window, the second time that it is scored."""
    engine(windows[:1])
    began = time.perf_counter()
    engine(windows[:1])
    return time.perf_counter() - began


def sweep(
    engine: Engine, windows: Float32, allowed: float
) -> tuple[dict[int, float], dict[int, int]]:
    """Milliseconds a window and memory growth by batch, doubling until a batch takes long.

    Or until twice the batch would take longer than what is left of the seconds allowed. As many
    windows as the engine works on side by side are tried in any case.
    """
    start, loaded = time.perf_counter(), resident_bytes() or 0
    window_ms: dict[int, float] = {}
    growth: dict[int, int] = {}
    for batch in BATCHES:
        # scores of many classes outgrow everything else
        if batch > 1 and batch * score_bytes(engine.card) > MAX_SCORE_BYTES:
            break
        group = np.ascontiguousarray(np.resize(windows, (batch, *windows.shape[1:])))
        seconds = []
        for _ in range(3):  # the first warms up
            began = time.perf_counter()
            engine(group)
            seconds.append(time.perf_counter() - began)
        window_ms[batch] = round(1e3 * min(seconds[1:]) / batch, 4)
        growth[batch] = max(0, (resident_bytes() or 0) - loaded)
        if batch < engine.streams:
            continue
        left = allowed - (time.perf_counter() - start)
        # large windows fill the processor one by one
        if min(seconds) > LONG_SECONDS or 2 * sum(seconds) > left:
            break
    return window_ms, growth
