"""scans and labels that were found -> who keeps labels, who is test, and what the files say.

What nobody has said is looked up in the files: label values and how large what they mark is, the
axis of the slices, the pixel size, the modality. Each comes with a comment that says so.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from nibabel import orientations

from leuda_deploy.errors import InputError
from leuda_deploy.machine.progress import Progress, no_progress
from leuda_deploy.scans.label_map import label_values
from leuda_deploy.scans.recipe import SliceAxis
from leuda_deploy.scans.volume import Volume, read_volume
from leuda_train.data.cohort_file import MAX_CLASSES
from leuda_train.data.layouts.cohort_plan import Pair, Side

HELD_OUT = 5  # where every target scan has labels, one of so many is test, and at least one
THICK = 1.2  # times its pixels, from which on the slices of a scan have an axis of their own
DARK = -200  # no MR scan is darker than this; the air of a CT is at -1000
WORLD_AXES = ("right", "anterior", "superior")


@dataclass(frozen=True, kw_only=True)
class Found:
    """The scans of one domain: images by subject, and labels of some of them."""

    images: Mapping[str, Path]
    labels: Mapping[str, Path]

    def pairs(self, subjects: Sequence[str]) -> list[Pair]:
        """Image and labels of these subjects."""
        return [Pair(self.images[subject], self.labels[subject]) for subject in subjects]

    @property
    def labelled(self) -> list[str]:
        """The subjects that have labels, by name."""
        return sorted(self.labels)

    @property
    def unlabelled(self) -> list[str]:
        """The others, by name."""
        return sorted(self.images.keys() - self.labels.keys())


def source_side(found: Found, modality: str, labelled: int | None, note: str | None = None) -> Side:
    """The source; its first `labelled` scans keep their labels. Raises InputError."""
    have = found.labelled
    count = len(have) if labelled is None else labelled
    if not 1 <= count <= len(have):
        raise InputError(f"--labelled {count}: {len(have)} source scans have labels")
    rest = sorted([*found.unlabelled, *have[count:]])
    return Side(
        modality=modality,
        labelled=found.pairs(have[:count]),
        unlabelled=[found.images[subject] for subject in rest],
        note=note,
    )


def target_side(found: Found, modality: str, test: int | None, note: str | None = None) -> Side:
    """The target: of its scans with labels, the last `test` are held out.

    Without `test` all of them are, or one of five where no scan is without labels. What remains of
    the labels is the upper bound, if every scan that is trained on has some. Raises InputError.
    """
    have, without = found.labelled, found.unlabelled
    count = test
    if count is None:
        count = len(have) if without else max(1, len(have) // HELD_OUT)
    trained = [*without, *have[: len(have) - count]]
    if not 0 <= count <= len(have):
        raise InputError(f"--test {count}: {len(have)} target scans have labels")
    if not trained:
        raise InputError(
            f"all {len(have)} target scans would be held out; keep some to adapt to: --test N"
        )
    return Side(
        modality=modality,
        labelled=found.pairs(have[len(have) - count :]),
        unlabelled=[found.images[subject] for subject in trained],
        upper_bound=[] if without else [found.labels[subject] for subject in trained],
        note=note,
    )


@dataclass(frozen=True, kw_only=True)
class Values:
    """Label values of one domain's files: in how many of them each is, and its mean volume."""

    files: int
    holding: Mapping[int, int]
    mean_ml: Mapping[int, float]

    def note(self, value: int) -> str:
        """How often a value was found, and how large what it marks is."""
        return f"in {self.holding[value]} of {self.files} label files, {self.mean_ml[value]:.3g} ml"


def values_in(labels: Sequence[Path], progress: Progress = no_progress) -> Values:
    """Read label files. Raises InputError for one that is none."""
    holding: Counter[int] = Counter()
    total_ml: defaultdict[int, float] = defaultdict(float)
    for done, path in enumerate(labels, start=1):
        volume = read_volume(path)
        values = [value for value in label_values(volume) if value != 0]
        if len(values) > MAX_CLASSES:
            raise InputError(f"{path} holds {len(values)} label values: is it an image?")
        scaled = np.rint(volume.raw * volume.slope + volume.inter)
        for value in values:
            holding[value] += 1
            total_ml[value] += int(np.count_nonzero(scaled == value)) * volume.voxel_ml
        progress(done, len(labels), path.name)
    means = {value: total_ml[value] / count for value, count in holding.items()}
    return Values(files=len(labels), holding=holding, mean_ml=means)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What the headers say of slices: their axis, their pixel size in mm, and why."""

    axis: SliceAxis
    axis_note: str
    pixel_mm: float
    pixel_note: str


def grid_of(scans: Sequence[Path], axis: SliceAxis | None = None) -> Grid:
    """The axis along which most scans have thick slices, and the median of their pixel sizes."""
    volumes = [read_volume(path, voxels=False) for path in scans]
    note = "as asked for"
    if axis is None:
        votes = Counter(thick for volume in volumes if (thick := _thick_axis(volume)) is not None)
        axis, note = "superior", "no scan has thicker slices along one axis: chosen"
        if votes:
            axis, count = votes.most_common(1)[0]
            note = f"along it {count} of {len(scans)} scans have their thick slices"
    pixels = [size for volume in volumes for size in _pixel_sizes(volume, axis)]
    return Grid(
        axis=axis,
        axis_note=note,
        pixel_mm=round(float(np.median(pixels)), 2) or 0.01,
        pixel_note=(
            "in-plane grid of the network; the median of the scans, "
            f"whose pixels are {min(pixels):.3g} to {max(pixels):.3g} mm"
        ),
    )


def _thick_axis(volume: Volume) -> SliceAxis | None:
    spacing = np.array(volume.spacing_mm)
    thick = int(spacing.argmax())
    if spacing[thick] < THICK * np.delete(spacing, thick).max():
        return None
    return cast(SliceAxis, WORLD_AXES[_world_axes(volume)[thick]])


def _pixel_sizes(volume: Volume, axis: SliceAxis) -> list[float]:
    slices = (
        int(axis[-1])
        if axis.startswith("array-")
        else _world_axes(volume).index(WORLD_AXES.index(axis))
    )
    return [size for other, size in enumerate(volume.spacing_mm) if other != slices]


def _world_axes(volume: Volume) -> list[int]:
    """Of each array axis, the world axis that it is closest to."""
    axes: list[int] = orientations.io_orientation(volume.affine)[:, 0].astype(int).tolist()
    return axes


def modality_of(scan: Path) -> tuple[str, str]:
    """CT or MR, by the darkest voxel, and the comment that says so."""
    volume = read_volume(scan)
    darkest = float(np.nanmin(volume.raw)) * volume.slope + volume.inter
    return (
        "CT" if darkest < DARK else "MR",
        f"a guess: the darkest voxel of {scan.name} is {darkest:g}",
    )
