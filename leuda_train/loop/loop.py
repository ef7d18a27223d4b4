"""something trainable, step by step: resume, log, guard against non-finite losses, checkpoint.

Every stage runs in this loop. A step depends on its number and the seed alone, so a run that was
killed and started again does what an uninterrupted one would have done, with as many processes or
with others: a checkpoint knows nothing of them. All processes step; the first one logs and saves.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from leuda_deploy.errors import TrainingError
from leuda_deploy.machine.progress import Progress
from leuda_train.loop import checkpoint
from leuda_train.loop.hardware import Hardware
from leuda_train.loop.metrics_log import Metrics, Row
from leuda_train.loop.profile import Clock, PeakMemory, phase, timed
from leuda_train.loop.ranks import Ranks

LOG_EVERY = 10


class Trainer(Protocol):
    """What the loop needs of a stage."""

    images_per_step: int  # that all processes together draw

    def step(self, step: int) -> dict[str, Tensor]:
        """Do iteration `step`; the loss terms, still on the device. Some may come now and then."""

    def state(self) -> dict[str, Any]:
        """Everything that must survive a kill: tensors and primitives."""

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""


@dataclass(kw_only=True)
class Watch:
    """Who hears of a stage: its progress line, its metrics, and, if asked for, its profile.

    profiles  stage -> where its time went; None if nobody asked
    peak      counts the memory that the stage takes
    measured  stage -> bytes that it took, if it did a step
    """

    progress: Progress
    metrics: Metrics | None = None
    profiles: dict[str, Any] | None = None
    peak: PeakMemory | None = None
    measured: dict[str, int | None] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StageRun:
    """What a stage needs besides its data and settings.

    hardware            where it computes, and in which precision
    folder              where it finds and leaves its checkpoints; for stage 1, the cache
    checkpoint_seconds  at least so long from one checkpoint to the next
    watch               who hears of it
    recomputed          levels of the trained network that keep no activations, or 1 for generators
    began_with          what a checkpoint says of where its run comes from, for who resumes it
    """

    hardware: Hardware
    folder: Path
    checkpoint_seconds: float
    watch: Watch
    recomputed: int = 0
    began_with: Mapping[str, str] = field(default_factory=dict)


@dataclass(kw_only=True)
class _Pace:
    """Images a second since the last row."""

    images_per_step: int
    step: int
    since: float = field(default_factory=time.perf_counter)

    def lap(self, step: int) -> float:
        now = time.perf_counter()
        images = (step - self.step) * self.images_per_step
        self.step, since, self.since = step, self.since, now
        return images / max(now - since, 1e-9)


def run_steps(
    trainer: Trainer, run: StageRun, *, name: str, steps: int, log_every: int = LOG_EVERY
) -> list[Row]:
    """Run to the last step, from the newest checkpoint in the run's folder if there is one.

    Returns the history: a row every log_every steps, each term averaged over those of them that it
    came in. Raises TrainingError if a term is not finite; the last checkpoint from before stays.
    """
    watch, ranks = run.watch, run.hardware.ranks
    begin: int = 0
    history: list[Row] = []
    saved = ranks.broadcast(checkpoint.load_latest(run.folder) if ranks.first else None)
    if saved is not None:
        begin, history = int(saved["step"]), list(saved["history"])
        trainer.restore(saved["trainer"])
        watch.progress(begin, steps, "resumed")
    if watch.metrics is not None:
        watch.metrics.begin(name, history)
    saved_at = time.monotonic()
    pace = _Pace(images_per_step=trainer.images_per_step, step=begin)
    seen: dict[str, list[Tensor]] = {}
    with timed(watch.profiles is not None) as clock:
        for step in range(begin, steps):
            with phase("step"):
                terms = trainer.step(step)
            for term, value in terms.items():
                seen.setdefault(term, []).append(value)
            note = ""
            if (step + 1) % log_every == 0 or step + 1 == steps:
                # the one place where the host waits for the device
                row = _average(seen, name, step, ranks)
                history.append(row)
                rate = pace.lap(step + 1)
                if watch.metrics is not None:
                    watch.metrics.add(name, row, rate)
                note = " ".join(f"{term} {row[term]:.3f}" for term in list(row)[1:3])
                note += f", {rate:.{0 if rate >= 10 else 1}f} images/s"
                seen = {}
                # only here, where every term so far is known to be finite
                if ranks.first and time.monotonic() - saved_at >= run.checkpoint_seconds:
                    state = {"step": step + 1, "history": history, "trainer": trainer.state()}
                    state["began_with"] = dict(run.began_with)
                    _save(run.folder, state, name)
                    saved_at = time.monotonic()
            watch.progress(step + 1, steps, note)
    if watch.peak is not None and begin < steps:
        watch.measured[name] = watch.peak.bytes()
    if watch.profiles is not None and begin < steps:
        watch.profiles[name] = _profile(clock, (steps - begin) * trainer.images_per_step)
    return history


def _save(folder: Path, state: dict[str, Any], name: str) -> None:
    poisoned = checkpoint.first_not_finite(state["trainer"])
    if poisoned is not None:
        raise TrainingError(f"{name}: {poisoned} is not finite at step {state['step']}")
    checkpoint.save_latest(folder, state)


def _average(seen: dict[str, list[Tensor]], name: str, step: int, ranks: Ranks) -> Row:
    terms = torch.stack([torch.stack(values).float().mean() for values in seen.values()])
    ranks.average_([terms])
    row: Row = {"step": step + 1}
    for term, value in zip(seen, terms.tolist(), strict=True):
        if not math.isfinite(value):
            raise TrainingError(
                f"{name}: {term} is {value} at or just before step {step + 1}; the last checkpoint "
                "is from before. Lower the learning rate, or set precision = fp32, and start "
                "again: the run goes on from there"
            )
        row[term] = value
    return row


def _profile(clock: Clock, images: int) -> dict[str, Any]:
    """Images a second, and the share of wall time by phase.

    "forward" is what is left of the steps: the networks' passes and the losses. "other" is what is
    left of the stage: logging and checkpoints.
    """
    seconds = dict(clock.seconds)
    steps = seconds.pop("step")
    seconds["forward"] = steps - sum(seconds.values())
    seconds["other"] = clock.wall - steps
    return {
        "seconds": round(clock.wall, 3),
        "images_per_s": round(images / clock.wall, 2),
        "share": {name: round(value / clock.wall, 4) for name, value in sorted(seconds.items())},
    }
