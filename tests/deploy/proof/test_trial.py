"""Trials of engines: what lasts is kept on disk, what may pass is not."""

from __future__ import annotations

import sys
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.makers import MakeModel

from leuda_deploy.engines.engine import EngineName, EngineSettings, Float32
from leuda_deploy.engines.onnx_runtime import OnnxEngine
from leuda_deploy.errors import LeudaError
from leuda_deploy.machine.cache_folder import cache_folder
from leuda_deploy.machine.gpu import Gpu, find_gpu
from leuda_deploy.model.model_file import ModelFile
from leuda_deploy.proof import trial as module
from leuda_deploy.proof.measure import one_window, sweep
from leuda_deploy.proof.parity import TOLERANCES
from leuda_deploy.proof.trial import (
    Trial,
    kept_trial,
    run_trial,
    tolerances_of,
    trial_key,
    try_engine,
)

ALONE = EngineSettings(threads=1)
WINDOWS = np.random.default_rng(0).normal(size=(4, 1, 16, 16)).astype(np.float32)


@pytest.fixture
def model(make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelFile:
    """A model on a machine where nothing was tried, in this process or before."""
    monkeypatch.setenv("LEUDA_CACHE", str(tmp_path / "cache"))
    forget(monkeypatch)
    return ModelFile.open(make_model(tmp_path / "model"))


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the next process."""
    monkeypatch.setattr(module, "_tried_here", {})


def tried(model: ModelFile, name: EngineName = "ort-cpu", windows: Float32 = WINDOWS) -> Trial:
    return try_engine(model, name, ALONE, lambda: windows)


def kept_files() -> list[Path]:
    return list(cache_folder().glob("*"))


def replace_engine(monkeypatch: pytest.MonkeyPatch, engine: type[OnnxEngine]) -> None:
    """Another engine in the place of every one that is tried, in this process."""
    monkeypatch.setattr(module, "open_engine", lambda model, name, settings: engine(model))
    monkeypatch.setattr(module, "run_isolated", lambda timeout_s, function, *args: function(*args))


class Wrong(OnnxEngine):
    """Its classes are in the wrong order."""

    def __call__(self, windows: Float32) -> Float32:
        return super().__call__(windows)[:, ::-1]


class Full(OnnxEngine):
    """No memory is left for it."""

    def __call__(self, windows: Float32) -> Float32:
        raise MemoryError


def test_a_trial_measures_each_batch_and_is_made_once(
    model: ModelFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = tried(model)
    assert (found.failure, found.disagreement) == (None, None)  # it is the reference itself
    assert set(found.window_ms) == set(found.growth_bytes) == {1, 2, 4, 8, 16}
    assert found.batch in found.window_ms
    assert found == kept_trial(model, "ort-cpu", ALONE)
    assert len(kept_files()) == 1
    monkeypatch.setattr(module, "run_isolated", lambda *given: pytest.fail("tried again"))
    assert tried(model) == found


def test_a_crash_is_kept_with_its_reason(
    model: ModelFile, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # an interpreter that dies as a driver would kill it
    dying = tmp_path / "dying"
    dying.write_text("#!/bin/sh\necho 'the driver fell over' >&2\nkill -SEGV $$\n")
    dying.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(dying))
    found = tried(model)
    assert found.failure == "crashed"
    assert "the driver fell over" in found.detail
    assert kept_trial(model, "ort-cpu", ALONE) == found
    assert len(kept_files()) == 1


def test_a_timeout_is_kept(model: ModelFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TRIAL_SECONDS", 0.05)
    found = tried(model)
    assert found.failure == "too long"
    assert kept_trial(model, "ort-cpu", ALONE) == found
    monkeypatch.setattr(module, "TRIAL_SECONDS", 900.0)
    assert tried(model) == found


def test_what_an_engine_says_on_opening_holds_for_this_process_alone(
    model: ModelFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = replace(model, content=model.content[:-900])  # no engine opens it
    found = tried(broken)
    assert found.failure == "not opened"
    assert found.detail
    assert kept_trial(model, "ort-cpu", ALONE) == found
    assert not kept_files()
    assert tried(model) == found
    forget(monkeypatch)
    assert kept_trial(model, "ort-cpu", ALONE) is None
    assert tried(model).failure is None


def test_memory_that_is_taken_may_be_free_later(
    model: ModelFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_engine(monkeypatch, Full)
    assert tried(model).failure == "no memory"
    assert not kept_files()


def test_an_engine_that_disagrees_is_kept_as_one(
    model: ModelFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_engine(monkeypatch, Wrong)
    found = tried(model, "openvino")
    assert found.failure == "disagrees"
    assert found.window_ms  # it runs, so it can be asked for by name
    assert kept_trial(model, "openvino", ALONE) == found
    assert len(kept_files()) == 1


def test_a_scan_of_air_judges_no_engine_and_keeps_nothing(
    model: ModelFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_engine(monkeypatch, Wrong)
    air = np.full_like(WINDOWS, -1.0)
    found = tried(model, "openvino", air)
    assert found.failure == "not judged"
    assert found.window_ms
    assert kept_trial(model, "openvino", ALONE) is None
    assert not kept_files()
    air[2] = WINDOWS[2]  # one window of something is enough to judge
    assert tried(model, "openvino", air).failure == "disagrees"
    assert len(kept_files()) == 1


def test_openvino_agrees_with_the_reference(model: ModelFile) -> None:
    pytest.importorskip("openvino", reason="the openvino extra is not installed")
    found = run_trial(model, "openvino", replace(ALONE, precision="fp32"), WINDOWS)
    assert (found.failure, found.disagreement) == (None, 0.0)


def test_an_engine_is_held_to_the_precision_that_it_runs_in() -> None:
    assert [tolerances_of(p) for p in ("fp32", "fp16")] == [TOLERANCES["fp32"], TOLERANCES["fp16"]]
    # eight bits of mantissa: the labels are what has to stay
    assert tolerances_of("bf16") == tolerances_of("int8") == TOLERANCES["int8"]


def test_another_gpu_or_driver_is_another_trial(
    model: ModelFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def keys(gpu: str, driver: str) -> list[str]:
        monkeypatch.setattr(module, "find_gpu", lambda: Gpu(name=gpu, capability="8.9"))
        monkeypatch.setattr(module, "driver_version", lambda: driver)
        names: tuple[EngineName, ...] = ("ort-cuda", "ort-cpu")
        return [trial_key(model, name, ALONE) for name in names]

    cuda, cpu = keys("RTX 4090", "12.4")
    for gpu, driver in (("A100", "12.4"), ("RTX 4090", "13.0")):
        other_cuda, other_cpu = keys(gpu, driver)
        assert other_cuda != cuda
        assert other_cpu == cpu
    assert keys("RTX 4090", "12.4") == [cuda, cpu]


@pytest.mark.parametrize(
    ("name", "change", "same"),
    [
        ("openvino", {"precision": "bf16"}, False),
        ("ort-cpu", {"precision": "bf16"}, True),  # it computes in what the file holds
        ("ort-cpu", {"threads": 2}, False),
        ("ort-cpu", {"max_gpu_bytes": 1}, True),
    ],
)
def test_what_decides_is_in_the_key(
    model: ModelFile, name: EngineName, change: dict[str, Any], same: bool
) -> None:
    assert (
        trial_key(model, name, replace(ALONE, **change)) == trial_key(model, name, ALONE)
    ) == same


def test_cuda_libraries_that_are_missing_are_not_kept(model: ModelFile) -> None:
    if find_gpu() is not None:
        pytest.skip("a GPU is here")
    assert tried(model, "ort-cuda").failure == "not opened"
    assert not kept_files()
    with pytest.raises(LeudaError):
        OnnxEngine(model, provider="cuda")


class Counted:
    """An engine that takes no time, and knows how many windows it was given."""

    streams = 2

    def __init__(self, model: ModelFile) -> None:
        self.card = model.card
        self.batches: list[int] = []

    def __call__(self, windows: Float32) -> Float32:
        self.batches.append(len(windows))
        return windows


def test_a_trial_keeps_to_its_share_of_the_scan(model: ModelFile) -> None:
    hurried, patient = Counted(model), Counted(model)
    window_ms, growth = sweep(hurried, WINDOWS, 0.0)  # type: ignore[arg-type]
    assert set(window_ms) == set(growth) == {1, 2}  # as many as work side by side
    assert sum(hurried.batches) == 3 * (1 + 2)
    window_ms, _ = sweep(patient, WINDOWS, inf)  # type: ignore[arg-type]
    assert set(window_ms) == {1, 2, 4, 8, 16}
    assert one_window(hurried, WINDOWS) >= 0  # type: ignore[arg-type]
    assert hurried.batches[-2:] == [1, 1]  # the first warms up


def test_fewer_windows_are_compared_at_a_short_scan(
    model: ModelFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    settings, windows = replace(ALONE, precision="fp32"), np.concatenate([WINDOWS] * 2)
    assert run_trial(model, "openvino", settings, windows).compared == 8
    monkeypatch.setattr(module, "LEAST_SECONDS", 0.0)
    short = run_trial(model, "openvino", settings, windows, 1)
    assert (short.failure, short.compared) == (None, 4)
