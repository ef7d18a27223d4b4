"""model + machine -> the fastest engine that is installed and agrees with the reference."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from leuda_deploy.engines.engine import (
    ON_THE_CPU,
    TENSORRT,
    EngineChoice,
    EngineName,
    EngineSettings,
    Float32,
    PrecisionChoice,
)
from leuda_deploy.engines.tensorrt.engine_fit import fitting_engine
from leuda_deploy.errors import LeudaError
from leuda_deploy.machine.cache_folder import cache_folder
from leuda_deploy.model.model_file import ModelFile
from leuda_deploy.proof.processor import int8_kind, proven_on_this_kind
from leuda_deploy.proof.trial import Trial, kept_trial, try_engine

# what is taken on a machine that has it, the best first; only within a rank does time decide
RANKS: tuple[tuple[EngineName, ...], ...] = (tuple(TENSORRT), ("ort-cuda",), ON_THE_CPU)

_log = logging.getLogger(__name__)


class NoEngineError(LeudaError):
    """No engine here runs the model; `trials` are of those that were tried."""

    def __init__(self, model: ModelFile, trials: Sequence[Trial]) -> None:
        self.trials = tuple(trials)
        why = "; ".join(f"{trial.engine}: {explain(trial)}" for trial in trials)
        super().__init__(f"no engine here runs {model.path}: {why or 'none is installed'}")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The engine to run, and what was found about it and the others.

    Attributes:
        trial: Of the engine.
        others: Of those that were tried besides.
        settings: How it is to be opened: as asked, or in fp32 where it agrees in that alone.
    """

    trial: Trial
    settings: EngineSettings
    others: tuple[Trial, ...] = ()

    @property
    def engine(self) -> EngineName:
        """Its name."""
        return self.trial.engine


def installed_engines(
    model: ModelFile, precision: PrecisionChoice = "auto", on_the_cpu: bool = False
) -> tuple[EngineName, ...]:
    """Engines that can be tried on this machine with this model file at this precision.

    on_the_cpu  those for the CPU alone
    """
    names: list[EngineName] = []
    if find_spec("openvino") is not None and sys.platform != "darwin":
        names.append("openvino")
    if precision != "bf16":
        names.append("ort-cpu")
        if shutil.which("nvidia-smi") or Path("/proc/driver/nvidia").exists():
            names.append("ort-cuda")
        names += [name for name, family in TENSORRT.items() if fitting_engine(model, family)]
    return tuple(name for name in names if name in ON_THE_CPU or not on_the_cpu)


def choose_engine(
    model: ModelFile,
    candidates: Sequence[EngineName],
    settings: EngineSettings,
    windows: Callable[[], Float32],
    work: int | None = None,
) -> Choice:
    """The fastest that agrees, of the first rank that has one: TensorRT, CUDA, the CPU's engines.

    Each is tried, unless it was tried here before, or a rank before its own had one that agrees.
    One that disagrees in the precision that is its fastest is tried in fp32.

    Args:
        model: The model file.
        candidates: Names of engines, as of `installed_engines`.
        settings: How they are opened.
        windows: Gives windows (N, 1, h, w) of a scan; asked only if something is tried.
        work: How many windows that scan has; see `try_engine`.

    Raises:
        NoEngineError: None of them runs and agrees.
    """
    _say_if_proven_elsewhere(model)
    trials: list[Trial] = []
    passed: dict[EngineName, tuple[Trial, EngineSettings]] = {}
    for rank in RANKS:
        for name in (name for name in candidates if name in rank):
            for each in _in_turn(name, settings):
                trial = try_engine(model, name, each, windows, work)
                trials.append(trial)
                if trial.failure is None:
                    passed[name] = trial, each
                    break
                _log.info("passed over %s: %s", trial.description or name, explain(trial))
                if trial.failure != "disagrees":
                    break
        if passed:
            break
    else:
        raise NoEngineError(model, trials)
    best, opened = min(passed.values(), key=lambda pair: pair[0].best_ms)
    times = ", ".join(f"{name} {trial.best_ms:.2f} ms" for name, (trial, _) in passed.items())
    _log.info("chose %s, the fastest a window of: %s; %s", best.engine, times, explain(best))
    others = tuple(trial for trial in trials if trial is not best)
    return Choice(trial=best, settings=opened, others=others)


def _in_turn(name: EngineName, settings: EngineSettings) -> tuple[EngineSettings, ...]:
    """How an engine is tried: as asked; left to itself, OpenVINO takes bf16, so then in fp32."""
    if name != "openvino" or settings.precision != "auto":
        return (settings,)
    return settings, replace(settings, precision="fp32")


def _say_if_proven_elsewhere(model: ModelFile) -> None:
    """An int8 graph on a kind of processor that its card does not name: what agrees here counts."""
    if not proven_on_this_kind(model.card):
        where = ", ".join(model.card.int8.proven_on) if model.card.int8 else "an unknown processor"
        _log.info(
            "%s is int8 with weights of 8 bits, proven on %s; here (%s) an engine runs only if it "
            "agrees with exact sums",
            model.path,
            where,
            int8_kind(),
        )


def check_named(
    model: ModelFile,
    name: EngineName,
    settings: EngineSettings,
    windows: Callable[[], Float32],
    work: int | None = None,
) -> Choice:
    """Try the engine that was asked for by name. It is taken if it runs at all.

    Raises NoEngineError if it does not run, or if the graph is int8 and computes something else on
    this processor than ONNX Runtime, which sums exactly.
    """
    _say_if_proven_elsewhere(model)
    trial = try_engine(model, name, settings, windows, work)
    other_network = trial.failure == "disagrees" and model.card.precision == "int8"
    if other_network or not trial.window_ms:
        raise NoEngineError(model, [trial])
    if trial.failure is not None:  # asked for, so it runs; but not in silence
        _log.warning("%s would not be chosen: %s", name, explain(trial))
    return Choice(trial=trial, settings=settings)


def try_all(
    model: ModelFile, settings: EngineSettings, windows: Callable[[], Float32]
) -> tuple[Trial, ...]:
    """Try every engine that is installed, for as long as it needs, whatever is kept of it."""
    return tuple(
        try_engine(model, name, settings, windows, again=True)
        for name in installed_engines(model, settings.precision, settings.on_the_cpu)
    )


def is_settled(model: ModelFile, engine: EngineChoice, settings: EngineSettings) -> bool:
    """Whether all trials that are needed have been made on this machine before."""
    if engine != "auto":
        return kept_trial(model, engine, settings) is not None
    candidates = installed_engines(model, settings.precision, settings.on_the_cpu)
    for rank in RANKS:
        kept = []
        for name in (name for name in candidates if name in rank):
            for each in _in_turn(name, settings):
                kept.append(kept_trial(model, name, each))
                if kept[-1] is None or kept[-1].failure != "disagrees":
                    break
        if None in kept:
            return False
        if any(trial is not None and trial.failure is None for trial in kept):
            return True
    return True


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
