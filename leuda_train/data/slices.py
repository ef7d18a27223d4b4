"""cohort + recipe -> cached slices, memory-mapped; written once, reused while both are the same."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from leuda_deploy.machine.files import write_json
from leuda_deploy.machine.progress import Progress, no_progress
from leuda_deploy.scans.grid.resample import fit_to_window
from leuda_deploy.scans.intensity import Intensity
from leuda_deploy.scans.label_map import read_label_map
from leuda_deploy.scans.recipe import Recipe
from leuda_deploy.scans.stack import Stack
from leuda_deploy.scans.volume import read_volume
from leuda_train.data.cache import content_key, made_once
from leuda_train.data.cohort import Cohort, Scan
from leuda_train.data.cohort_file import CohortSpec
from leuda_train.loop.ranks import ALONE, Ranks

UNLABELLED = 255
INDEX_FILE = "index.json"
FEW_SCANS = 5  # with fewer labelled ones, a whole one is too dear to be held out
FORMAT = 1  # raise it when the same recipe gives other slices, so that old stores are not reused


@dataclass(frozen=True, kw_only=True)
class Slices:
    """All training slices of a cohort, as the network reads them. Test scans are not among them.

    source, target                (N, h, w) float32, memory-mapped
    source_labels, target_labels  (N, h, w) uint8 class numbers, 255 throughout where unlabelled;
                                  target_labels is None unless the upper bound was asked for
    labelled_rows                 rows of source that have labels
    source_scans, target_scans    (N,) which scan each slice is of
    target_intensities            how each target scan was clipped and normalised, one a scan
    """

    key: str
    source: NDArray[np.float32]
    source_labels: NDArray[np.uint8]
    labelled_rows: NDArray[np.int64]
    target: NDArray[np.float32]
    target_labels: NDArray[np.uint8] | None
    target_scans: NDArray[np.int64]
    target_intensities: tuple[Intensity, ...]
    source_scans: NDArray[np.int64] | None = None

    @cached_property
    def images_key(self) -> str:
        """A short name for the images alone: other labels, names or test scans, the same key."""
        digest = hashlib.sha256()
        for images in (self.source, self.target):
            digest.update(str(images.shape).encode())
            for image in images:  # memory-mapped: one at a time
                digest.update(np.ascontiguousarray(image).data)
        return digest.hexdigest()[:16]


def load_slices(
    cohort: Cohort,
    recipe: Recipe,
    cache: Path,
    *,
    target_labels: bool = False,
    progress: Progress = no_progress,
    ranks: Ranks = ALONE,
) -> Slices:
    """Open the slices of a cohort, writing them first if they are not there.

    Args:
        cohort: Whose training scans are sliced.
        recipe: How.
        cache: Where they are kept, under a name made of what they are made of.
        target_labels: Also store the target's upper-bound labels; no adaptation method may ask for
            it.
        progress: Counts scans.
        ranks: Of several processes the first one writes.

    Raises:
        InputError: A scan cannot be read, or has nothing to normalise by.
    """
    folder = made_once(
        _folder_of(cohort, recipe, cache, target_labels),
        lambda temporary: _write(cohort, recipe, temporary, target_labels, progress),
        ranks=ranks,
    )
    return _open(folder, cohort, recipe, target_labels)


def slices_there(
    cohort: Cohort, recipe: Recipe, cache: Path, *, target_labels: bool = False
) -> Slices | None:
    """The same if they are there already; nothing is written."""
    folder = _folder_of(cohort, recipe, cache, target_labels)
    return _open(folder, cohort, recipe, target_labels) if folder.is_dir() else None


def _folder_of(cohort: Cohort, recipe: Recipe, cache: Path, target_labels: bool) -> Path:
    key = content_key(FORMAT, cohort.sha256, recipe.model_dump(mode="json"), target_labels)
    return cache / f"slices-{key}"


def _open(folder: Path, cohort: Cohort, recipe: Recipe, target_labels: bool) -> Slices:
    labels = np.load(folder / "source_labels.npy", mmap_mode="r")
    return Slices(
        key=folder.name.removeprefix("slices-"),
        source=np.load(folder / "source.npy", mmap_mode="r"),
        source_labels=labels,
        labelled_rows=np.flatnonzero(labels[:, 0, 0] != UNLABELLED),
        target=np.load(folder / "target.npy", mmap_mode="r"),
        target_labels=np.load(folder / "target_labels.npy", mmap_mode="r")
        if target_labels
        else None,
        target_scans=_scans(folder / INDEX_FILE, "target"),
        target_intensities=_target_intensities(folder / INDEX_FILE, cohort, recipe),
        source_scans=_scans(folder / INDEX_FILE, "source"),
    )


def _write(
    cohort: Cohort, recipe: Recipe, folder: Path, target_labels: bool, progress: Progress
) -> None:
    source = cohort.role("source labelled", "source unlabelled")
    target = cohort.role("target unlabelled")
    total, done = len(source) + len(target), 0
    index: list[dict[str, object]] = []
    for domain, scans in (("source", source), ("target", target)):
        with_labels = domain == "source" or target_labels
        none = (0, *recipe.window)  # a cohort for `leuda adapt` has no source
        images: list[NDArray[np.float32]] = [np.empty(none, np.float32)]
        labels: list[NDArray[np.uint8]] = [np.empty(none, np.uint8)]
        for scan in scans:
            image, label, intensity = _slices_of(scan, recipe, cohort.spec, with_labels)
            images.append(image)
            labels.append(label)
            row = {"domain": domain, "subject": scan.subject, "slices": len(image)}
            index.append({**row, "intensity": asdict(intensity)})
            done += 1
            progress(done, total, scan.subject)
        np.save(folder / f"{domain}.npy", np.concatenate(images))
        if with_labels:
            np.save(folder / f"{domain}_labels.npy", np.concatenate(labels))
    write_json(folder / INDEX_FILE, index)


def _scans(index: Path, domain: str) -> NDArray[np.int64]:
    """(N,) a scan's place among those of its domain, by slice."""
    counts = [row["slices"] for row in json.loads(index.read_text()) if row["domain"] == domain]
    return np.repeat(np.arange(len(counts)), counts)


def _target_intensities(index: Path, cohort: Cohort, recipe: Recipe) -> tuple[Intensity, ...]:
    """Of each target scan, in the cohort's order."""
    rows = [row for row in json.loads(index.read_text()) if row["domain"] == "target"]
    if all("intensity" in row for row in rows):
        return tuple(
            Intensity(**{**row["intensity"], "quartiles": tuple(row["intensity"]["quartiles"])})
            for row in rows
        )
    # slices from before the index kept them
    scans = cohort.role("target unlabelled")
    return tuple(Stack(read_volume(scan.image), recipe).intensity for scan in scans)


def _slices_of(
    scan: Scan, recipe: Recipe, spec: CohortSpec, with_labels: bool
) -> tuple[NDArray[np.float32], NDArray[np.uint8], Intensity]:
    """One scan's windows (D, h, w), cropped or padded about the centre, their class numbers, and
    how their intensities were normalised.
    """
    volume = read_volume(scan.image)
    stack = Stack(volume, recipe, pixel_spacing_mm=scan.pixel_spacing_mm)
    images = fit_to_window(stack.images(0, stack.depth), recipe.window, stack.intensity.floor)
    if not with_labels or scan.label is None:
        return images, np.full(images.shape, UNLABELLED, dtype=np.uint8), stack.intensity
    label = read_label_map(scan.label, class_of_raw=spec.class_of_raw(scan.domain), like=volume)
    marks = Stack(label.volume, recipe, pixel_spacing_mm=scan.pixel_spacing_mm)
    classes = marks.labels(0, marks.depth, classes=len(spec.structures))
    return images, fit_to_window(classes, recipe.window, 0), stack.intensity


def hold_out(
    rows: NDArray[np.int64], scans: NDArray[np.int64], share: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Part the labelled rows in two: to train on, and to choose by.

    Of five labelled scans or more, whole ones are held out. Of fewer, a fold of each: slices that
    follow one another, away from the ends, where structures are slivers.

    Args:
        rows: The labelled ones, ascending.
        scans: (N,) which scan each row, labelled or not, is of.
        share: How much to hold out; at least one scan, or one slice of each scan that has two.
        seed: Of the choice.

    Returns:
        The rows to train on, and those held out, both ascending.
    """
    rng = np.random.default_rng([seed, 2])
    own = scans[rows]
    every = np.unique(own)
    if len(every) >= FEW_SCANS:
        count = max(1, round(share * len(every)))
        held = np.isin(own, rng.permutation(every)[:count])
        return rows[~held], rows[held]
    held = np.zeros(len(rows), dtype=bool)
    for scan in every:
        places = np.flatnonzero(own == scan)
        if len(places) < 2:
            continue
        count = max(1, round(share * len(places)))
        first = len(places) // 5
        begin = rng.integers(first, max(first, len(places) - first - count) + 1)
        held[places[begin : begin + count]] = True
    return rows[~held], rows[held]
