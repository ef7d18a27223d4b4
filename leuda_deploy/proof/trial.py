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
from importlib import metadata
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from leuda_deploy.engines.open_engine import (
    MAX_SCORE_BYTES,
    TENSORRT,
    EngineName,
    ModelEngine,
    OnnxEngine,
    OpenVinoEngine,
    Precision,
    open_engine,
    score_bytes,
)
from leuda_deploy.errors import LeudaError, ParityError
from leuda_deploy.machine.files import atomic_path
from leuda_deploy.machine.gpu import driver_version, find_gpu
from leuda_deploy.machine.memory import resident_bytes
from leuda_deploy.proof.parity import LIMITS, Limits, check_parity, class_names, run_windows
from leuda_deploy.proof.probes import FLAT, Probes

Float32 = NDArray[np.float32]
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
    name: EngineName,
    model: Path,
    sha256: str,
    windows: Float32,
    *,
    precision: Precision,
    threads: int | None,
) -> Trial:
    """The kept result for this machine, or a new trial on windows (N, 1, h, w) of a scan."""
    key = _key(name, sha256, precision, threads)
    if (found := _found_before(key)) is not None:
        return found
    trial = _in_a_process(name, model, windows, precision, threads)
    if trial.kept == "on disk":
        with atomic_path(_file(key)) as temporary:
            temporary.write_text(trial.model_dump_json(indent=1))
    elif trial.kept == "in this process":
        _said_here[key] = trial
    return trial


def kept_trial(
    name: EngineName, sha256: str, *, precision: Precision, threads: int | None
) -> Trial | None:
    """What an earlier trial on this machine found, or None."""
    return _found_before(_key(name, sha256, precision, threads))


def _found_before(key: str) -> Trial | None:
    return _said_here.get(key) or read_trial(_file(key))


def _file(key: str) -> Path:
    return cache_folder() / f"{key}.json"


def _in_a_process(
    name: EngineName, model: Path, windows: Float32, precision: Precision, threads: int | None
) -> Trial:
    """`run_trial` in a process of its own; a crash and a timeout are failures."""
    with tempfile.TemporaryDirectory(prefix="leuda-trial-") as folder:
        np.save(Path(folder) / "windows.npy", windows)
        order = [name, str(model), str(Path(folder) / "windows.npy"), precision, str(threads or 0)]
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


def _key(name: str, sha256: str, precision: str, threads: int | None) -> str:
    """What a result depends on, as one hash."""
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
    facts = json.dumps([name, sha256, precision, threads, versions, machine, device])
    return f"{name}-{hashlib.sha256(facts.encode()).hexdigest()[:24]}"


def run_trial(
    name: EngineName, model: Path, windows: Float32, precision: Precision, threads: int | None
) -> Trial:
    """In this process: load, time and weigh by batch, then compare with ONNX Runtime fp32."""
    agreement, failure = "the yardstick", None
    try:
        engine = open_engine(name, model, precision=precision, threads=threads)
        window_ms, growth = _sweep(engine, windows)
        if engine.card.precision == "bf16":  # ONNX Runtime runs no bf16 on the CPU
            agreement = "it was proven by its export"
        elif name != "ort-cpu":
            agreement, failure = agrees(OnnxEngine(model, threads=threads), engine, windows)
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


def agrees(
    reference: ModelEngine, candidate: ModelEngine, windows: Float32
) -> tuple[str, str | None]:
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
            limits=limits_of(candidate.description),
        )
    except ParityError as error:
        return "", f"it does not agree with ONNX Runtime: {error}"
    return f"{parity.disagreement:.3%} of pixels differ from ONNX Runtime", None


def limits_of(description: str) -> Limits:
    """What an engine is held to. bf16 keeps 8 bits, as int8 does, and is held to the labels."""
    for precision in ("int8", "bf16"):
        if precision in description:
            return LIMITS["int8"]
    return LIMITS["fp16"] if "fp16" in description else LIMITS["fp32"]


def _sweep(engine: ModelEngine, windows: Float32) -> tuple[dict[int, float], dict[int, int]]:
    """Milliseconds a window and memory growth by batch, doubling until a batch takes long."""
    loaded = resident_bytes() or 0
    window_ms: dict[int, float] = {}
    growth: dict[int, int] = {}
    streams = engine.streams if isinstance(engine, OpenVinoEngine) else 1
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
        if (
            min(seconds) > LONG_SECONDS and batch >= streams
        ):  # large windows fill the processor one by one
            break
    return window_ms, growth


if __name__ == "__main__":
    asked, asked_model, file, asked_precision, asked_threads = sys.argv[1:]
    assert asked in get_args(EngineName)
    assert asked_precision in get_args(Precision)
    result = run_trial(
        asked,  # type: ignore[arg-type]  # checked above
        Path(asked_model),
        np.load(file),
        asked_precision,  # type: ignore[arg-type]
        int(asked_threads) or None,
    )
    sys.stdout.write(result.model_dump_json())
