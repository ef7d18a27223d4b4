"""cohort.toml -> the labelled target scans that `leuda bench --cohort` measures Dice on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from leuda_deploy.cli.bench import cohort_readers

if TYPE_CHECKING:
    from leuda_deploy.bench.accuracy import LabelledScans


def labelled_targets(path: Path) -> LabelledScans:
    """The target's test scans of a cohort. Raises InputError."""
    from leuda_deploy.bench.accuracy import Labelled, LabelledScans
    from leuda_train.data.cohort import read_cohort

    cohort = read_cohort(path)
    class_of_raw = cohort.spec.class_of_raw("target")
    scans = [
        Labelled(image=scan.image, label=scan.label, class_of_raw=class_of_raw)
        for scan in cohort.role("target test")
        if scan.label is not None
    ]
    return LabelledScans(scans=scans, structures=[*cohort.structures])


cohort_readers.append(labelled_targets)
