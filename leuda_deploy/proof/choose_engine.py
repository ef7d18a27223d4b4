"""model + machine -> the fastest engine that is installed and agrees with the reference."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from leuda_deploy.engines.engine import (
    TENSORRT,
    EngineChoice,
    EngineName,
    EngineSettings,
    Float32,
    PrecisionChoice,
)
from leuda_deploy.engines.engine_fit import fitting_engine
from leuda_deploy.errors import LeudaError
from leuda_deploy.machine.cache_folder import cache_folder
from leuda_deploy.model.model_file import ModelFile
from leuda_deploy.proof.trial import Trial, kept_trial, try_engine

_log = logging.getLogger(__name__)


class NoEngineError(LeudaError):
    """No engine here runs the model; `trials` are of those that were tried."""

    def __init__(self, model: ModelFile, trials: Sequence[Trial]) -> None:
        self.trials = tuple(trials)
        why = "; ".join(f"{trial.engine}: {explain(trial)}" for trial in trials)
        super().__init__(f"no engine here runs {model.path}: {why or 'none is installed'}")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The engine to run, and what was found about it and the others."""

    trial: Trial
    others: tuple[Trial, ...] = ()

    @property
    def engine(self) -> EngineName:
        """Its name."""
        return self.trial.engine


def installed_engines(
    model: ModelFile, precision: PrecisionChoice = "auto"
) -> tuple[EngineName, ...]:
    """Engines that can be tried on this machine with this model file at this precision."""
    names: list[EngineName] = []
    if find_spec("openvino") is not None and sys.platform != "darwin":
        names.append("openvino")
    if precision != "bf16":
        names.append("ort-cpu")
        if shutil.which("nvidia-smi") or Path("/proc/driver/nvidia").exists():
            names.append("ort-cuda")
        names += [name for name, family in TENSORRT.items() if fitting_engine(model, family)]
    return tuple(names)


def choose_engine(
    model: ModelFile,
    candidates: Sequence[EngineName],
    settings: EngineSettings,
    windows: Callable[[], Float32],
) -> Choice:
    """Try each candidate, unless it was tried here before, and take the fastest that agrees.

    Args:
        model: The model file.
        candidates: Names of engines, as of `installed_engines`.
        settings: How they are opened.
        windows: Gives windows (N, 1, h, w) of a scan; asked only if something is tried.

    Raises:
        NoEngineError: None of them runs and agrees.
    """
    trials = [try_engine(model, name, settings, windows) for name in candidates]
    for trial in trials:
        if trial.failure is not None:
            _log.info("passed over %s: %s", trial.engine, explain(trial))
    passed = [trial for trial in trials if trial.failure is None]
    if not passed:
        raise NoEngineError(model, trials)
    best = min(passed, key=lambda trial: trial.best_ms)
    times = ", ".join(f"{trial.engine} {trial.best_ms:.2f} ms" for trial in passed)
    _log.info("chose %s, the fastest a window of: %s; %s", best.engine, times, explain(best))
    return Choice(trial=best, others=tuple(trial for trial in trials if trial is not best))


def check_named(
    model: ModelFile, name: EngineName, settings: EngineSettings, windows: Callable[[], Float32]
) -> Choice:
    """Try the engine that was asked for by name. It is taken if it runs at all.

    Raises NoEngineError if it does not run.
    """
    trial = try_engine(model, name, settings, windows)
    if not trial.window_ms:
        raise NoEngineError(model, [trial])
    if trial.failure is not None:  # asked for, so it runs; but not in silence
        _log.warning("%s would not be chosen: %s", name, explain(trial))
    return Choice(trial=trial)


def is_settled(model: ModelFile, engine: EngineChoice, settings: EngineSettings) -> bool:
    """Whether all trials that are needed have been made on this machine before."""
    names = installed_engines(model, settings.precision) if engine == "auto" else (engine,)
    return all(kept_trial(model, name, settings) is not None for name in names)


def explain(trial: Trial) -> str:
    """What was found, in one line for people."""
    if trial.failure is None and trial.disagreement is not None:
        return f"{trial.disagreement:.3%} of pixels differ from ONNX Runtime"
    if trial.failure is None:
        is_reference = trial.engine == "ort-cpu"
        return "it is the reference" if is_reference else "it was proven by its export"
    line = {
        "disagrees": f"it does not agree with ONNX Runtime: {trial.detail}",
        "not judged": "not judged: every window of this scan is of one single value",
        "no memory": "out of memory",
    }.get(trial.failure, trial.detail)
    if trial.failure in ("crashed", "too long"):
        line += f" (this is kept; to try again, empty {cache_folder()})"
    return line
