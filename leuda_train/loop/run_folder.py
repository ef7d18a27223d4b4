"""a run's folder -> where each of its files stands; nothing else spells their names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

MAX_EVALUATION_BYTES = 64 << 20  # thousands of scans, three figures a structure


@dataclass(frozen=True)
class RunFolder:
    """The paths of one run."""

    path: Path

    @property
    def names(self) -> set[str]:
        """Of all files and folders that a run writes; by the lock alone nothing is known."""
        paths = (
            *(self.config, self.scans, self.checkpoints, self.model, self.windows, self.metrics),
            *(self.tensorboard, self.profile, self.predictions, self.oracle, self.evaluation),
            *(self.memory, self.page, self.run_picture, self.predictions_picture),
        )
        return {path.name for path in paths}

    @property
    def config(self) -> Path:
        """The resolved config, TOML."""
        return self.path / "config.toml"

    @property
    def lock(self) -> Path:
        """Held by the process that trains into the folder; removed when the run is finished."""
        return self.path / ".lock"

    @property
    def scans(self) -> Path:
        """The cohort as the run found it: scans, roles, shapes, voxel sizes."""
        return self.path / "scans.json"

    @property
    def checkpoints(self) -> Path:
        """The newest two states while stage 2 runs; removed when the run is finished."""
        return self.path / "checkpoints"

    @property
    def distillation_checkpoints(self) -> Path:
        """Those of stage 3."""
        return self.checkpoints / "distil"

    @property
    def model(self) -> Path:
        """The product, weights and numbers: what `leuda export` and `leuda adapt` read."""
        return self.path / "model.pt"

    @property
    def windows(self) -> Path:
        """Prepared slices that exports of the product are proven on."""
        return self.path / "windows.pt"

    @property
    def metrics(self) -> Path:
        """Loss terms of every stage, and images/s, as they come."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """On request: the same rows for TensorBoard, a folder a stage."""
        return self.path / "tensorboard"

    @property
    def profile(self) -> Path:
        """On request: where the time went, by stage."""
        return self.path / "profile.json"

    @property
    def memory(self) -> Path:
        """What each stage was to take of memory, and took."""
        return self.path / "memory.json"

    @property
    def predictions(self) -> Path:
        """Labels of the test scans, SUBJECT_label.nii.gz."""
        return self.path / "predictions"

    @property
    def oracle(self) -> Path:
        """Labels by every other network, while the oracle asks for them."""
        return self.path / "oracle"

    @property
    def evaluation(self) -> Path:
        """Dice and distances on the test scans; a run that has it is finished."""
        return self.path / "evaluation.json"

    @property
    def page(self) -> Path:
        """All of this to read, as one HTML file."""
        return self.path / "report.html"

    @property
    def run_picture(self) -> Path:
        """Image sets and curves."""
        return self.path / "run.png"

    @property
    def predictions_picture(self) -> Path:
        """Best, median and worst test scan: truth and prediction."""
        return self.path / "predictions.png"
