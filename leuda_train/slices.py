"""cohort + recipe -> cached slices, memory-mapped; written once, reused while both are the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from leuda_deploy.recipe import Recipe, Stack
from leuda_deploy.resample import fit_to_window
from leuda_deploy.volume import Volume, read_volume
from leuda_train.cache import content_key, made_once
from leuda_train.cohort import Cohort, Scan, check_same_grid
from leuda_train.cohort_spec import CohortSpec
from leuda_train.ranks import ALONE, Ranks

UNLABELLED = 255
FORMAT = 1  # raise it when the same recipe gives other slices, so that old stores are not reused
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Slices:
    """All training slices of a cohort, as the network reads them. Test scans are not among them.

    source, target                (N, h, w) float32, memory-mapped
    source_labels, target_labels  (N, h, w) uint8 class numbers, 255 throughout where unlabelled;
                                  target_labels is None unless the upper bound was asked for
    labelled_rows                 rows of source that have labels
    target_scans                  (N,) which scan each target slice is of
    """

    key: str
    source: NDArray[np.float32]
    source_labels: NDArray[np.uint8]
    labelled_rows: NDArray[np.int64]
    target: NDArray[np.float32]
    target_labels: NDArray[np.uint8] | None
    target_scans: NDArray[np.int64] | None = None


def load_slices(
    cohort: Cohort,
    recipe: Recipe,
    cache: Path,
    *,
    target_labels: bool = False,
    progress: Progress = lambda done, total: None,
    ranks: Ranks = ALONE,
) -> Slices:
    """Open the slices of a cohort, writing them first if they are not there.

    target_labels  also store the target's upper-bound labels; no adaptation method may ask for it
    """
    key = content_key(FORMAT, cohort.sha256, recipe.model_dump(mode="json"), target_labels)
    folder = made_once(
        cache / f"slices-{key}",
        lambda temporary: _write(cohort, recipe, temporary, target_labels, progress),
        ranks=ranks,
    )
    labels = np.load(folder / "source_labels.npy", mmap_mode="r")
    return Slices(
        key=key,
        source=np.load(folder / "source.npy", mmap_mode="r"),
        source_labels=labels,
        labelled_rows=np.flatnonzero(labels[:, 0, 0] != UNLABELLED),
        target=np.load(folder / "target.npy", mmap_mode="r"),
        target_labels=np.load(folder / "target_labels.npy", mmap_mode="r")
        if target_labels
        else None,
        target_scans=_target_scans(folder),
    )


def _target_scans(folder: Path) -> NDArray[np.int64]:
    """(N,) the scan's place among the target scans, by slice."""
    rows = json.loads((folder / "index.json").read_text())
    counts = [row["slices"] for row in rows if row["domain"] == "target"]
    return np.repeat(np.arange(len(counts)), counts)


def _write(
    cohort: Cohort, recipe: Recipe, folder: Path, target_labels: bool, progress: Progress
) -> None:
    source = cohort.role("source labelled", "source unlabelled")
    target = cohort.role("target unlabelled")
    total, done = len(source) + len(target), 0
    index: list[dict[str, object]] = []
    for domain, scans in (("source", source), ("target", target)):
        with_labels = domain == "source" or target_labels
        images: list[NDArray[np.float32]] = []
        labels: list[NDArray[np.uint8]] = []
        for scan in scans:
            image, label = _slices_of(scan, recipe, cohort.spec, with_labels)
            images.append(image)
            labels.append(label)
            index.append({"domain": domain, "subject": scan.subject, "slices": len(image)})
            done += 1
            progress(done, total)
        np.save(folder / f"{domain}.npy", np.concatenate(images))
        if with_labels:
            np.save(folder / f"{domain}_labels.npy", np.concatenate(labels))
    (folder / "index.json").write_text(json.dumps(index, indent=1))


def _slices_of(
    scan: Scan, recipe: Recipe, spec: CohortSpec, with_labels: bool
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """One scan's windows (D, h, w), cropped or padded about the centre, and their class numbers."""
    volume = read_volume(scan.image)
    stack = Stack(volume, recipe, pixel_spacing_mm=scan.pixel_spacing_mm)
    images = fit_to_window(stack.images(0, stack.depth), recipe.window, stack.intensity.floor)
    if not with_labels or scan.label is None:
        return images, np.full(images.shape, UNLABELLED, dtype=np.uint8)
    label = read_volume(scan.label)
    check_same_grid(volume, label)
    # the image's affine: a label affine that differs by rounding must not turn the axes elsewhere
    numbers = class_numbers(label, spec.class_of_raw(scan.domain))
    marks = Stack(volume.with_values(numbers), recipe, pixel_spacing_mm=scan.pixel_spacing_mm)
    classes = marks.labels(0, marks.depth, tuple(map(float, spec.structures.values())))
    return images, fit_to_window(classes, recipe.window, 0)


def class_numbers(label: Volume, class_of_raw: Mapping[int, int]) -> NDArray[np.uint8]:
    """Labels (X, Y, Z) as in the file -> class numbers on the same grid."""
    values = label.raw * label.slope + label.inter
    numbers = np.zeros(values.shape, dtype=np.uint8)
    for raw, number in class_of_raw.items():
        numbers[values == raw] = number
    return numbers
