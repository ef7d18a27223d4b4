"""loss terms, row by row -> RUN/metrics.jsonl, and TensorBoard on request.

A row is written when it is known, so that a killed run's are there; a resumed stage first drops
those from after its checkpoint. TensorBoard gets the same rows, each stage a run of its own.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from leuda_deploy.errors import MissingExtraError
from leuda_deploy.machine.files import atomic_path
from leuda_train.loop.run_folder import RunFolder

Row = dict[str, float]


class Metrics:
    """One JSON object a line: the stage, the step, the terms since the last row, images/s."""

    def __init__(self, run: RunFolder, *, tensorboard: bool = False) -> None:
        self.path = run.metrics
        self._tensorboard = run.tensorboard if tensorboard else None
        self._open_writer = _summary_writer() if tensorboard else None
        self._writer: Any = None

    def begin(self, stage: str, history: list[Row]) -> None:
        """Make the stage's rows those of its history so far; rows of other stages stay."""
        others, known = [], {}
        for row in read_metrics(self.path):
            if row["stage"] == stage:
                known[row["step"]] = row
            else:
                others.append(row)
        own = [known.get(row["step"], {"stage": stage, **row}) for row in history]
        with atomic_path(self.path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in [*others, *own]))
        if self._tensorboard is not None and self._open_writer is not None:
            self.close()
            folder = self._tensorboard / stage
            shutil.rmtree(folder, ignore_errors=True)
            self._writer = self._open_writer(str(folder))
            for row in own:
                self._draw(row)

    def add(self, stage: str, row: Row, images_per_s: float) -> None:
        """Append a row."""
        line = json.dumps({"stage": stage, **row, "images_per_s": round(images_per_s, 2)})
        with self.path.open("a") as file:
            file.write(line + "\n")
        if self._writer is not None:
            self._draw({**row, "images_per_s": images_per_s})

    def close(self) -> None:
        """Write out what TensorBoard was given."""
        if self._writer is not None:
            self._writer.close()

    def _draw(self, row: Row) -> None:
        for name, value in row.items():
            if name not in ("stage", "step"):
                self._writer.add_scalar(name, value, int(row["step"]))
        self._writer.flush()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file, without a last one that was cut off; none if there is no file."""
    if not path.is_file():
        return []
    whole = path.read_text().rpartition("\n")[0]
    return [json.loads(line) for line in whole.splitlines()]


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtraError("--tensorboard", "TensorBoard", "tensorboard") from error
    return SummaryWriter
