"""Trials of engines: what lasts is kept on disk, what may pass is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from support.makers import MakeModel

from leuda_deploy.engines.engine import EngineName, EngineSettings
from leuda_deploy.engines.onnx_runtime import OnnxEngine
from leuda_deploy.errors import LeudaError
from leuda_deploy.machine.gpu import Gpu, find_gpu
from leuda_deploy.model.model_file import ModelFile
from leuda_deploy.proof import trial as module
from leuda_deploy.proof.trial import (
    NOT_JUDGED,
    Trial,
    cache_folder,
    kept_trial,
    run_trial,
    try_engine,
)

ALONE = EngineSettings(threads=1)
WINDOWS = np.random.default_rng(0).normal(size=(4, 1, 16, 16)).astype(np.float32)


@pytest.fixture
def model(make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model on a machine where nothing was tried, in this process or before."""
    monkeypatch.setenv("LEUDA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "_said_here", {})
    return make_model(tmp_path / "model")


def tried(
    model: Path | ModelFile, name: EngineName = "ort-cpu", windows: NDArray[np.float32] = WINDOWS
) -> Trial:
    opened = model if isinstance(model, ModelFile) else ModelFile.open(model)
    return try_engine(name, opened, "0" * 64, windows, ALONE)


def known(name: EngineName = "ort-cpu") -> Trial | None:
    return kept_trial(name, "0" * 64, ALONE)


def test_a_crash_is_kept_with_its_reason(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # an interpreter that dies as a driver would kill it
    dying = model.parent / "dying"
    dying.write_text("#!/bin/sh\necho 'the driver fell over' >&2\nkill -SEGV $$\n")
    dying.chmod(0o755)
    monkeypatch.setattr(module.sys, "executable", str(dying))
    found = tried(model)
    assert found.failure is not None
    assert "ended with code -11: the driver fell over" in found.failure
    assert str(cache_folder()) in found.failure
    assert known() == found
    assert len(list(cache_folder().glob("*.json"))) == 1


def test_a_timeout_is_kept_with_its_reason(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TRIAL_SECONDS", 0.05)
    found = tried(model)
    assert found.failure is not None
    assert "took longer than" in found.failure
    assert known() == found
    monkeypatch.setattr(module, "TRIAL_SECONDS", 900.0)
    assert tried(model) == found


def test_what_an_engine_says_on_opening_holds_for_this_process_alone(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, content = ModelFile.open(model), model.read_bytes()
    model.write_bytes(content[:-40])  # no engine opens it now
    found = tried(opened)
    assert found.failure is not None
    assert known() == found
    assert not list(cache_folder().glob("*"))
    model.write_bytes(content)
    assert tried(opened) == found
    monkeypatch.setattr(module, "_said_here", {})  # the next process
    assert known() is None
    assert tried(opened).failure is None


def test_memory_that_is_taken_may_be_free_later(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(OnnxEngine):
        def __call__(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
            raise MemoryError

    monkeypatch.setattr(module, "open_engine", lambda model, name, settings: Full(model))
    found = run_trial("ort-cpu", ModelFile.open(model), WINDOWS, ALONE)
    assert (found.failure, found.kept) == ("out of memory", "in this process")


def test_a_scan_of_air_judges_no_engine_and_keeps_nothing(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(OnnxEngine):
        def __call__(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
            return super().__call__(windows)[:, ::-1]

    monkeypatch.setattr(module, "open_engine", lambda model, name, settings: Wrong(model))
    monkeypatch.setattr(module, "_in_a_process", run_trial)
    air = np.full_like(WINDOWS, -1.0)
    found = tried(model, "openvino", air)
    assert found.failure == NOT_JUDGED
    assert found.window_ms
    assert known("openvino") is None
    assert not list(cache_folder().glob("*"))
    air[2] = WINDOWS[2]  # one window of something is enough to judge
    found = tried(model, "openvino", air)
    assert found.failure is not None
    assert "does not agree" in found.failure
    assert "window 2 of the scan" in found.failure
    assert known("openvino") == found


def test_another_gpu_or_driver_is_another_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    def keys(gpu: str, driver: str) -> tuple[str, str]:
        monkeypatch.setattr(module, "find_gpu", lambda: Gpu(name=gpu, capability="8.9"))
        monkeypatch.setattr(module, "driver_version", lambda: driver)
        return tuple(module._key(n, "0", ALONE) for n in ("ort-cuda", "ort-cpu"))  # type: ignore[return-value]

    cuda, cpu = keys("RTX 4090", "12.4")
    for gpu, driver in (("A100", "12.4"), ("RTX 4090", "13.0")):
        other_cuda, other_cpu = keys(gpu, driver)
        assert other_cuda != cuda
        assert other_cpu == cpu
    assert keys("RTX 4090", "12.4") == (cuda, cpu)


def test_cuda_libraries_that_are_missing_are_not_kept(model: Path) -> None:
    if find_gpu() is not None:
        pytest.skip("a GPU is here")
    found = tried(model, "ort-cuda")
    assert found.failure is not None
    assert found.kept == "in this process"
    assert not list(cache_folder().glob("*"))
    with pytest.raises(LeudaError):
        OnnxEngine(ModelFile.open(model), provider="cuda")
