"""cohort + config + folder -> a run: what its stages are told, and what is refused beforehand."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

from leuda_deploy.errors import InputError
from leuda_deploy.machine.files import atomic_path, write_json
from leuda_deploy.machine.memory import in_megabytes
from leuda_deploy.machine.outside import read_json
from leuda_deploy.machine.progress import ShowProgress, no_progress
from leuda_deploy.scans.recipe import Recipe
from leuda_deploy.scans.stack import Stack
from leuda_deploy.scans.volume import read_volume
from leuda_train.config.schema import TrainConfig
from leuda_train.data.cohort import Cohort
from leuda_train.export.first_model import FirstModel
from leuda_train.loop.hardware import Hardware
from leuda_train.loop.loop import StageRun, Watch
from leuda_train.loop.metrics_log import Metrics
from leuda_train.loop.profile import PeakMemory
from leuda_train.loop.ranks import Ranks
from leuda_train.loop.run_folder import MAX_EVALUATION_BYTES, RunFolder
from leuda_train.stages.memory import Need

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of a method on a cohort.

    cache     slices and translations, shared by every run with the same settings
    metrics   None in a process that is not the first
    profiles  stage -> where its time went; None if nobody asked
    first     the model that a source-free run goes on from
    needs     stage that trains -> the memory that it takes
    measured  stage -> bytes that it took, of those that trained in this session
    """

    cohort: Cohort
    config: TrainConfig
    recipe: Recipe
    folder: RunFolder
    cache: Path
    hardware: Hardware
    show: ShowProgress
    metrics: Metrics | None
    profiles: dict[str, Any] | None
    first: FirstModel | None = None
    needs: Mapping[str, Need] = field(default_factory=dict)
    measured: dict[str, int | None] = field(default_factory=dict)

    @property
    def classes(self) -> int:
        """How many classes the networks tell apart, background included."""
        return 1 + len(self.cohort.structures)

    @contextmanager
    def stage(
        self,
        name: str,
        folder: Path,
        began_with: Mapping[str, str] | None = None,
        title: str | None = None,
    ) -> Iterator[StageRun]:
        """A stage of this run, which finds and leaves its checkpoints in the folder.

        name        as metrics have it
        began_with  what its checkpoints say of where they come from
        title       for people, if it is another
        """
        watch = Watch(
            progress=no_progress,
            metrics=self.metrics,
            profiles=self.profiles,
            peak=PeakMemory(self.hardware.device),
            measured=self.measured,
        )
        with self.show(title or name) as progress:
            watch.progress = progress
            yield StageRun(
                hardware=self.hardware,
                folder=folder,
                checkpoint_seconds=self.config.schedule.checkpoint_seconds,
                watch=watch,
                recomputed=self.needs[name].recomputed if name in self.needs else 0,
                began_with=began_with or {},
            )
        if self.hardware.ranks.first:
            write_memory(self)
            took = self.measured.get(name)
            if took is not None:
                _log.info("%s took %s of memory", name, in_megabytes(took))


def write_memory(run: Run) -> None:
    """Write what each stage was to take of memory and took, beside what an earlier session saw."""
    path = run.folder.memory
    before = read_json(path, most=MAX_EVALUATION_BYTES)["stages"] if path.is_file() else {}
    stages = {
        name: {
            "predicted": {**asdict(need), "peak": need.peak},
            "measured": run.measured.get(name, before.get(name, {}).get("measured")),
        }
        for name, need in run.needs.items()
    }
    found = {"device": run.hardware.device.type, "max_memory": run.config.max_memory}
    # a translation that is there now may be of an earlier session
    write_json(path, found | {"stages": {**before, **stages}})


def check_labels(config: TrainConfig, cohort: Cohort, first: FirstModel | None) -> None:
    """Raises InputError if the method reads labels, or goes on from a model, that are not there."""
    if config.first_model != (None if first is None else first.sha256):
        raise InputError("first_model is no key to set: `leuda adapt` does")
    if config.source_free and first is None:
        raise InputError(
            f"method {config.method} trains on no labelled image: it goes on from a finished run, "
            "with `leuda adapt`"
        )
    if first is not None:
        if not config.source_free:
            raise InputError(
                f"method {config.method} trains on labelled images, and `leuda adapt` reads none: "
                "set supervised_on = [], as --method source-free does"
            )
        first.check_cohort(cohort)
    elif cohort.spec.source is None:
        raise InputError(
            f"cohort {cohort.spec.name} has no [source], whose labelled scans method "
            f"{config.method} trains on; without them, a finished run goes on with `leuda adapt`"
        )
    if config.uses_target_labels and cohort.spec.target.upper_bound is None:
        raise InputError(
            f"method {config.method} needs [target] upper_bound labels, which cohort "
            f"{cohort.spec.name} does not have"
        )


def check_shares(config: TrainConfig, ranks: Ranks) -> None:
    """Raises InputError if the batches of stage 2 or 3 cannot be shared by the processes."""
    if not config.source_free:
        ranks.check_share(config.schedule.batch_labelled, "schedule.batch_labelled")
    if config.objective.unlabelled_streams or config.distil is not None:
        ranks.check_share(config.schedule.batch_unlabelled, "schedule.batch_unlabelled")


def write_scans(folder: RunFolder, config: TrainConfig, cohort: Cohort, recipe: Recipe) -> None:
    """Write which scans there are, for the page of the run: headers alone are read."""
    spec = cohort.spec
    scans = []
    for scan in cohort.scans:
        header = read_volume(scan.image, voxels=False)
        stack = Stack(header, recipe, pixel_spacing_mm=scan.pixel_spacing_mm)
        scans.append(
            {
                "role": scan.role,
                "subject": scan.subject,
                "image": str(scan.image.resolve()),
                "label": str(scan.label.resolve()) if scan.label else None,
                "slices": stack.scan_depth,
                "pixels": stack.plane_shape,
                "slice_spacing_mm": round(stack.slice_spacing_mm, 4),
                "pixel_spacing_mm": [round(size, 4) for size in stack.plane_spacing_mm],
            }
        )
    write_json(
        folder.scans,
        {
            "cohort": spec.name,
            "modality": {
                "source": spec.source.modality if spec.source else None,
                "target": spec.target.modality,
            },
            "structures": cohort.structures,
            "target_class_of_raw": spec.class_of_raw("target"),
            "target_labels_used": config.uses_target_labels,
            "slice_axis": spec.slices.axis,
            "grid_mm": spec.slices.spacing_mm,
            "scans": scans,
        },
    )


def write_config(folder: RunFolder, config: TrainConfig, cohort: Cohort) -> None:
    """Write the resolved config: from here on the folder is this run's."""
    content = config.model_dump(mode="json", exclude_none=True) | {"cohort_sha256": cohort.sha256}
    with atomic_path(folder.config) as temporary:
        temporary.write_text(
            "# The resolved config of this run, written by `leuda train`.\n"
            + tomli_w.dumps(content)
        )
