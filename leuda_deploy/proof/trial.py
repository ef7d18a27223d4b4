"""engine + model + a scan's windows -> does it agree, how fast, how much memory, by batch.

Each engine is tried once on a machine, in a process of its own: what is tried leaves no memory
behind, and a driver that crashes is a failed trial instead of a failed scan. Results are kept in a
cache folder under the hash of model, engine, versions, processor or GPU, and threads: crashes, too,
but not what may pass, such as libraries that are missing or memory that is taken.
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from math import inf
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from leuda_deploy.engines.engine import (
    TENSORRT,
    Engine,
    EngineName,
    EngineSettings,
    Float32,
)
from leuda_deploy.engines.onnx_runtime import runs_on_the_cpu
from leuda_deploy.engines.open_engine import open_engine, reference_engine
from leuda_deploy.engines.tensorrt.engine_fit import fitting_engine
from leuda_deploy.engines.threads import threads_for
from leuda_deploy.errors import InputError, LeudaError, ParityError
from leuda_deploy.machine.cache_folder import own_cache
from leuda_deploy.machine.files import atomic_path
from leuda_deploy.machine.gpu import driver_version, find_gpu
from leuda_deploy.machine.isolated import IsolatedProcessError, run_isolated
from leuda_deploy.machine.outside import read_json
from leuda_deploy.model.card import Precision
from leuda_deploy.model.model_file import ModelFile
from leuda_deploy.proof.measure import one_window, sweep
from leuda_deploy.proof.parity import TOLERANCES, Tolerances, check_parity, run_windows
from leuda_deploy.proof.probes import FLAT, Probes
from leuda_deploy.proof.processor import int8_kind

WORTH_IT = 0.95  # a larger batch has to bring at least this ratio in time
TRIED_SHARE = 0.05  # of the time that the scan will take, which a trial of one engine may
LEAST_SECONDS = 0.5  # that a trial may take in any case, besides the start of its process
LEAST_COMPARED = 4  # windows: Dice of a few pixels says little
TRIAL_SECONDS = 900.0
RUNTIME_PACKAGES = (
    "leuda", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt_rtx",
)  # fmt: skip
# disagrees   not the scores of the reference
# crashed     the process ended without a result
# too long    it took longer than TRIAL_SECONDS
# not opened  it said why, and that may pass
# no memory   as above
# not judged  every window of the scan is of one single value
Failure = Literal["disagrees", "crashed", "too long", "not opened", "no memory", "not judged"]
LASTS: tuple[Failure | None, ...] = (None, "disagrees", "crashed", "too long")

_log = logging.getLogger(__name__)
_tried_here: dict[str, Trial] = {}  # key -> what may pass, so holds for this process alone


class Trial(BaseModel):
    """How an engine did on this machine.

    Attributes:
        engine: Its name.
        description: What really ran.
        failure: Why it must not be chosen, or None.
        detail: What it, or the operating system, said of the failure; may be empty.
        disagreement: Share of the pixels that get another label than from the reference; None if
            the two were not compared.
        window_ms: Batch -> milliseconds a window, the better of two runs. Empty if it did not run.
        growth_bytes: Batch -> memory held after running it, beyond the loaded engine.
        compared: How many windows it was compared with the reference on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine: EngineName
    description: str
    failure: Failure | None = None
    detail: str = ""
    disagreement: float | None = None
    window_ms: dict[Annotated[int, Field(ge=1)], Annotated[float, Field(ge=0, lt=1e9)]] = {}
    growth_bytes: dict[int, Annotated[int, Field(ge=0, lt=1 << 60)]] = {}
    compared: int = 0

    @model_validator(mode="after")
    def _ran_unless_it_failed(self) -> Self:
        """What did not fail was timed, and weighed at each batch at which it was timed."""
        if self.failure is None and not self.window_ms:
            raise ValueError("it did not fail, and was not timed")
        if self.growth_bytes and set(self.growth_bytes) != set(self.window_ms):
            raise ValueError("times and memory are of other batches")
        return self

    @property
    def batch(self) -> int:
        """The smallest batch that is as fast as any, give or take five per cent."""
        best = self.best_ms
        return min(batch for batch, ms in self.window_ms.items() if ms * WORTH_IT <= best)

    @property
    def best_ms(self) -> float:
        """Milliseconds a window, of the fastest batch."""
        return min(self.window_ms.values())


def try_engine(
    model: ModelFile,
    name: EngineName,
    settings: EngineSettings,
    windows: Callable[[], Float32],
    work: int | None = None,
    *,
    again: bool = False,
) -> Trial:
    """The kept result for this machine, or a new trial, in a process of its own.

    Args:
        model: The model file.
        name: Of the engine.
        settings: How it is opened.
        windows: Gives the (N, 1, h, w) of a scan to try it on; only asked where nothing is kept.
        work: How many windows that scan has: the trial takes a share of the time that they will.
            None: as long as it needs.
        again: Whatever an earlier trial found.
    """
    key = trial_key(model, name, settings)
    if not again and (found := _found_before(key)) is not None:
        return found
    _log.info("trying %s on this machine, once", name)
    try:
        trial = run_isolated(TRIAL_SECONDS, run_trial, model, name, settings, windows(), work)
    except IsolatedProcessError as error:
        failure: Failure = "too long" if error.exit_code is None else "crashed"
        trial = Trial(engine=name, description=name, failure=failure, detail=str(error))
    if trial.failure != "not judged" and not (trial.failure in LASTS and _keep(key, trial)):
        _tried_here[key] = trial
    return trial


def _keep(key: str, trial: Trial) -> bool:
    """Keep a result for later processes; False, and a warning, where that cannot be done."""
    try:
        folder = own_cache()
        with atomic_path(folder / f"{key}.json") as temporary:
            temporary.write_text(trial.model_dump_json(indent=1))
    except (OSError, InputError) as error:
        _log.warning("the trial is not kept (%s); LEUDA_CACHE names another folder", error)
        return False
    return True


def kept_trial(model: ModelFile, name: EngineName, settings: EngineSettings) -> Trial | None:
    """What an earlier trial on this machine found, or None."""
    return _found_before(trial_key(model, name, settings))


def _found_before(key: str) -> Trial | None:
    if key in _tried_here:
        return _tried_here[key]
    try:
        return read_trial(own_cache() / f"{key}.json")
    except (OSError, InputError):
        return None


def read_trial(path: Path) -> Trial | None:
    """A kept result; None if there is none, or none that this version reads."""
    try:
        return Trial.model_validate(read_json(path))
    except (LeudaError, ValidationError):
        return None


def trial_key(model: ModelFile, name: EngineName, settings: EngineSettings) -> str:
    """What a result depends on, as one hash."""
    versions = []
    for package in RUNTIME_PACKAGES:
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    machine = (platform.node(), platform.machine(), platform.processor(), int8_kind())
    on_gpu = name == "ort-cuda" or name in TENSORRT
    gpu = find_gpu() if on_gpu else None
    device = (gpu.name, driver_version()) if gpu else None
    # the other engines compute in what the model file holds
    precision = settings.precision if name == "openvino" else "auto"
    code = _code_sha256(model, name)
    threads = threads_for(settings.threads)
    facts = json.dumps([name, code, precision, threads, versions, machine, device])
    return f"{name}-{hashlib.sha256(facts.encode()).hexdigest()}"


def _code_sha256(model: ModelFile, name: EngineName) -> str:
    """Of what runs: the model file, or the engine that was built from it."""
    engine = fitting_engine(model, TENSORRT[name]) if name in TENSORRT else None
    if engine is None or model.manifest is None:
        return model.sha256
    return model.manifest.engines[engine].sha256


def run_trial(
    model: ModelFile,
    name: EngineName,
    settings: EngineSettings,
    windows: Float32,
    work: int | None = None,
) -> Trial:
    """In this process: load, time and weigh by batch, then compare with the reference engine."""
    if name != "openvino":
        settings = replace(settings, precision="auto")
    try:
        engine = open_engine(model, name, settings)
        seconds = one_window(engine, windows)
        allowed = inf if work is None else max(LEAST_SECONDS, TRIED_SHARE * work * seconds)
        window_ms, growth_bytes = sweep(engine, windows, allowed)
        trial = Trial(
            engine=name,
            description=engine.description,
            window_ms=window_ms,
            growth_bytes=growth_bytes,
        )
        # ONNX Runtime on the CPU is the reference; where it does not run, the export was the proof
        if name == "ort-cpu" or not runs_on_the_cpu(model.card.precision):
            return trial
        if work is not None:  # the reference takes about as long again
            windows = windows[: max(LEAST_COMPARED, int(allowed / (2 * seconds)))]
        reference = reference_engine(model, threads=settings.threads)
        return trial.model_copy(update=_compared(reference, engine, windows))
    except MemoryError:
        return Trial(engine=name, description=name, failure="no memory")
    except LeudaError as error:
        return Trial(engine=name, description=name, failure="not opened", detail=str(error))


def _compared(reference: Engine, candidate: Engine, windows: Float32) -> dict[str, object]:
    """What comparing two engines on windows of a scan adds to the candidate's trial.

    The tolerances are those of exports, by the precision in which the candidate's layers run.
    Windows of one single value would compare rounding noise: with no other, nothing is judged.
    """
    order = np.flatnonzero(windows.reshape(len(windows), -1).std(axis=1) > FLAT)
    if not order.size:
        return {"failure": "not judged"}
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
            card=reference.card,
            tolerances=tolerances_of(candidate.precision),
        )
    except ParityError as error:
        return {"failure": "disagrees", "detail": str(error)}
    return {"disagreement": parity.disagreement, "compared": len(order)}


def tolerances_of(precision: Precision) -> Tolerances:
    """What an engine is held to. bf16 keeps 8 bits, as int8 does, and is held to the labels."""
    return TOLERANCES["int8" if precision == "bf16" else precision]
