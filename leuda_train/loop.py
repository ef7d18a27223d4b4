"""something trainable, step by step: resume, log, guard against non-finite losses, checkpoint.

Both stages run in this loop. A step depends on its number and the seed alone, so a run that was
killed and started again does what an uninterrupted one would have done.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from leuda_deploy.errors import TrainingError
from leuda_train import checkpoint

Progress = Callable[[int, int, str], None]
Row = dict[str, float]


class Trainer(Protocol):
    """What the loop needs of a stage."""

    def step(self, step: int) -> dict[str, Tensor]:
        """Do iteration `step`; the loss terms, still on the device."""

    def state(self) -> dict[str, Any]:
        """Everything that must survive a kill: tensors and primitives."""

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""


def run_steps(
    trainer: Trainer,
    *,
    name: str,
    steps: int,
    folder: Path,
    log_every: int,
    checkpoint_seconds: float,
    progress: Progress,
) -> list[Row]:
    """Run to the last step, from the newest checkpoint in folder if there is one.

    Returns the history: a row every log_every steps, each term averaged over them. Raises
    TrainingError if a term is not finite; the last checkpoint from before stays.
    """
    begin, history = 0, []
    saved = checkpoint.load_latest(folder)
    if saved is not None:
        begin, history = int(saved["step"]), list(saved["history"])
        trainer.restore(saved["trainer"])
        progress(begin, steps, "resumed")
    saved_at = time.monotonic()
    sums: dict[str, Tensor] = {}
    for step in range(begin, steps):
        for term, value in trainer.step(step).items():
            sums[term] = sums[term] + value if term in sums else value
        note = ""
        if (step + 1) % log_every == 0 or step + 1 == steps:
            # the one place where the host waits for the device
            row = _average(sums, (step % log_every) + 1, name, step)
            history.append(row)
            note = " ".join(f"{term} {row[term]:.3f}" for term in list(row)[1:3])
            sums = {}
            # only here, where every term so far is known to be finite
            if time.monotonic() - saved_at >= checkpoint_seconds:
                state = {"step": step + 1, "history": history, "trainer": trainer.state()}
                poisoned = checkpoint.first_not_finite(state["trainer"])
                if poisoned is not None:
                    raise TrainingError(f"{name}: {poisoned} is not finite at step {step + 1}")
                checkpoint.save_latest(folder, state)
                saved_at = time.monotonic()
        progress(step + 1, steps, note)
    return history


def _average(sums: dict[str, Tensor], count: int, name: str, step: int) -> Row:
    values = torch.stack([value.float() for value in sums.values()]).tolist()
    row: Row = {"step": step + 1}
    for term, value in zip(sums, values, strict=True):
        if not math.isfinite(value):
            raise TrainingError(
                f"{name}: {term} is {value} at or just before step {step + 1}; the last checkpoint "
                "is from before. Lower the learning rate, or set precision = fp32"
            )
        row[term] = value / count
    return row


def write_history(path: Path, history: list[Row]) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in history))
