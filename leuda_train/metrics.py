"""loss terms, row by row -> RUN/metrics.jsonl, and TensorBoard on request.

A row is written when it is known, so that a killed run's are there; a resumed stage first drops
those from after its checkpoint.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from leuda_deploy.errors import MissingExtraError
from leuda_deploy.volume import atomic_path

METRICS_FILE, TENSORBOARD_FOLDER = "metrics.jsonl", "tensorboard"
Row = dict[str, float]


class Metrics:
    """One JSON object a line: the stage, the step, the terms since the last row, images/s."""

    def __init__(self, run: Path, *, tensorboard: bool = False) -> None:
        self.path = run / METRICS_FILE
        self.tensorboard = _summary_writer(run / TENSORBOARD_FOLDER) if tensorboard else None

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

    def add(self, stage: str, row: Row, images_per_s: float) -> None:
        """Append a row."""
        line = json.dumps({"stage": stage, **row, "images_per_s": round(images_per_s, 2)})
        with self.path.open("a") as file:
            file.write(line + "\n")
        if self.tensorboard is not None:
            for name, value in {**row, "images_per_s": images_per_s}.items():
                if name != "step":
                    self.tensorboard.add_scalar(f"{stage}/{name}", value, int(row["step"]))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file, without a last one that was cut off; none if there is no file."""
    if not path.is_file():
        return []
    whole = path.read_text().rpartition("\n")[0]
    return [json.loads(line) for line in whole.splitlines()]


def _summary_writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtraError("--tensorboard", "TensorBoard", "tensorboard") from error
    return SummaryWriter(str(folder))
