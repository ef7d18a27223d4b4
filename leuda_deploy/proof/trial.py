"""engine + model + a scan's windows -> does it agree, how fast, how much memory, by batch.

Each engine is tried once on a machine, in a process of its own: what is tried leaves no memory
behind, and a driver that crashes is a failed trial instead of a failed scan. Results are kept in a
cache folder under the hash of model, engine, versions, processor or GPU, and threads: crashes, too,
but not what may pass, such as libraries that are missing or memory that is taken.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from leuda_deploy.engines.engine import (
    MAX_SCORE_BYTES,
    TENSORRT,
    Engine,
    EngineName,
    EngineSettings,
    Float32,
    PrecisionChoice,
    score_bytes,
)
from leuda_deploy.engines.onnx_runtime import runs_on_the_cpu
from leuda_deploy.engines.open_engine import open_engine, reference_engine
from leuda_deploy.errors import LeudaError, ParityError
from leuda_deploy.machine.files import atomic_path
from leuda_deploy.machine.gpu import driver_version, find_gpu
from leuda_deploy.machine.memory import resident_bytes
from leuda_deploy.model.card import Precision
from leuda_deploy.model.model_file import ModelFile
from leuda_deploy.proof.parity import LIMITS, Limits, check_parity, class_names, run_windows
from leuda_deploy.proof.probes import FLAT, Probes

BATCHES = (1, 2, 4, 8, 16)
WORTH_IT = 0.95  # a larger batch has to bring at least this ratio in time
LONG_SECONDS = 0.5  # a batch that takes this long gains nothing from being larger
TRIAL_SECONDS = 900.0
NOT_JUDGED = "not judged: every window of this scan is of one single value"
RUNTIME_PACKAGES = (
    "leuda", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt_rtx",
)  # fmt: skip

_said_here: dict[str, Trial] = {}  # key -> what holds for this process alone


class Trial(BaseModel):
    """How an engine did on this machine.

    failure       why it must not be chosen, in one line, or None
    window_ms     batch -> milliseconds a window, the better of two runs
    growth_bytes  batch -> memory held after running it, beyond the loaded engine
    kept          for how long this holds: on disk, or for what may pass in this process alone, or
                  not at all, where the scan could not tell
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine: EngineName
    description: str
    failure: str | None
    agreement: str
    window_ms: dict[int, float]
    growth_bytes: dict[int, int]
    kept: Literal["on disk", "in this process", "not at all"] = "on disk"

    @property
    def batch(self) -> int:
        """The smallest batch that is as fast as any, give or take five per cent."""
        best = min(self.window_ms.values())
        return min(batch for batch, ms in self.window_ms.items() if ms * WORTH_IT <= best)


def try_engine(
    name: EngineName, model: ModelFile, sha256: str, windows: Float32, settings: EngineSettings
) -> Trial:
    """The kept result for this machine, or a new trial on windows (N, 1, h, w) of a scan.

    sha256  of the code that runs: the model file's, or that of the engine that was built from it
    """
    key = _key(name, sha256, settings)
    if (found := _found_before(key)) is not None:
        return found
    trial = _in_a_process(name, model, windows, settings)
    if trial.kept == "on disk":
        with atomic_path(_file(key)) as temporary:
            temporary.write_text(trial.model_dump_json(indent=1))
    elif trial.kept == "in this process":
        _said_here[key] = trial
    return trial


def kept_trial(name: EngineName, sha256: str, settings: EngineSettings) -> Trial | None:
    """What an earlier trial on this machine found, or None."""
    return _found_before(_key(name, sha256, settings))


def _found_before(key: str) -> Trial | None:
    return _said_here.get(key) or read_trial(_file(key))


def _file(key: str) -> Path:
    return cache_folder() / f"{key}.json"


def _in_a_process(
    name: EngineName, model: ModelFile, windows: Float32, settings: EngineSettings
) -> Trial:
    """`run_trial` in a process of its own; a crash and a timeout are failures."""
    with tempfile.TemporaryDirectory(prefix="leuda-trial-") as folder:
        np.save(Path(folder) / "windows.npy", windows)
        order = [name, str(model.path), str(Path(folder) / "windows.npy")]
        order += [settings.precision, str(settings.threads or 0)]
        command = [sys.executable, "-m", "leuda_deploy.proof.trial", *order]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=TRIAL_SECONDS, check=False
            )
            return Trial.model_validate_json(done.stdout)
        except subprocess.TimeoutExpired:
            reason = f"took longer than {TRIAL_SECONDS:.0f} s"
        except ValidationError:
            said = (done.stderr.strip().splitlines() or ["no message"])[-1][:200]
            reason = f"the trial ended with code {done.returncode}: {said}"
    return _failed(name, f"{reason} (this is kept; to try again, empty {cache_folder()})")


def read_trial(path: Path) -> Trial | None:
    """A kept result; None if there is none, or none that this version reads."""
    try:
        return Trial.model_validate_json(path.read_text())
    except (OSError, ValidationError):
        return None


def cache_folder() -> Path:
    """$LEUDA_CACHE, or `leuda` in the user's cache folder."""
    if given := os.environ.get("LEUDA_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "leuda"


def _failed(
    name: EngineName, reason: str, kept: Literal["on disk", "in this process"] = "on disk"
) -> Trial:
    return Trial(
        engine=name,
        description=name,
        failure=reason,
        agreement="",
        window_ms={},
        growth_bytes={},
        kept=kept,
    )


def _key(name: EngineName, sha256: str, settings: EngineSettings) -> str:
    """What a result depends on, as one hash."""
    # the others compute in what the model file holds
    precision = settings.precision if name == "openvino" else "auto"
    versions = []
    for package in RUNTIME_PACKAGES:
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    machine = (platform.node(), platform.machine(), platform.processor(), os.cpu_count())
    on_gpu = name == "ort-cuda" or name in TENSORRT
    gpu = find_gpu() if on_gpu else None
    device = (gpu.name, driver_version()) if gpu else None
    facts = json.dumps([name, sha256, precision, settings.threads, versions, machine, device])
    return f"{name}-{hashlib.sha256(facts.encode()).hexdigest()[:24]}"


def run_trial(
    name: EngineName, model: ModelFile, windows: Float32, settings: EngineSettings
) -> Trial:
    """In this process: load, time and weigh by batch, then compare with ONNX Runtime fp32."""
    agreement, failure = "the yardstick", None
    try:
        if name != "openvino":
            settings = replace(settings, precision="auto")
        engine = open_engine(model, name, settings)
        window_ms, growth = _sweep(engine, windows)
        if not runs_on_the_cpu(model.card.precision):
            agreement = "it was proven by its export"
        elif name != "ort-cpu":
            agreement, failure = agrees(
                reference_engine(model, threads=settings.threads), engine, windows
            )
    except (LeudaError, MemoryError) as error:
        return _failed(name, str(error) or "out of memory", kept="in this process")
    return Trial(
        engine=name,
        description=engine.description,
        failure=failure,
        agreement=agreement,
        window_ms=window_ms,
        growth_bytes=growth,
        kept="not at all" if failure == NOT_JUDGED else "on disk",
    )


def agrees(reference: Engine, candidate: Engine, windows: Float32) -> tuple[str, str | None]:
    """How well two engines agree on windows of a scan, and why that will not do, or None.

    The limits are those of exports, by the precision in which the candidate's layers run. Windows
    of one single value would compare rounding noise: with no other, it is NOT_JUDGED.
    """
    order = np.flatnonzero(windows.reshape(len(windows), -1).std(axis=1) > FLAT)
    if not order.size:
        return "", NOT_JUDGED
    probes = Probes(
        windows=windows[order],
        names=tuple(f"window {k} of the scan" for k in order),
        real=len(order),
        flat=len(order),
    )
    try:
        parity = check_parity(
            run_windows(reference, probes.windows),
            candidate,
            probes,
            stage=candidate.description,
            classes=class_names(reference.card),
            limits=limits_of(candidate.precision),
        )
    except ParityError as error:
        return "", f"it does not agree with ONNX Runtime: {error}"
    return f"{parity.disagreement:.3%} of pixels differ from ONNX Runtime", None


def limits_of(precision: Precision) -> Limits:
    """What an engine is held to. bf16 keeps 8 bits, as int8 does, and is held to the labels."""
    return LIMITS["int8" if precision == "bf16" else precision]


def _sweep(engine: Engine, windows: Float32) -> tuple[dict[int, float], dict[int, int]]:
    """Milliseconds a window and memory growth by batch, doubling until a batch takes long."""
    loaded = resident_bytes() or 0
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
        # large windows fill the processor one by one
        if min(seconds) > LONG_SECONDS and batch >= engine.streams:
            break
    return window_ms, growth


def _main(
    asked: str, asked_model: str, file: str, asked_precision: str, asked_threads: str
) -> Trial:
    assert asked in get_args(EngineName)
    assert asked_precision in get_args(PrecisionChoice)
    name: EngineName = asked  # type: ignore[assignment]  # checked above
    precision: PrecisionChoice = asked_precision  # type: ignore[assignment]
    settings = EngineSettings(precision=precision, threads=int(asked_threads) or None)
    try:
        model = ModelFile.open(asked_model)
    except LeudaError as error:
        return _failed(name, str(error), kept="in this process")
    return run_trial(name, model, np.load(file), settings)


if __name__ == "__main__":
    sys.stdout.write(_main(*sys.argv[1:]).model_dump_json())
