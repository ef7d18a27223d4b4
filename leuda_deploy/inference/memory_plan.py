"""scan + model + budget -> how many slices and windows at a time, and the memory that takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod

from leuda_deploy.errors import InputError
from leuda_deploy.inference.find_first import in_groups
from leuda_deploy.inference.refine.edges import OFFSETS
from leuda_deploy.inference.slabs import as_many_usual, part_of
from leuda_deploy.inference.sliding_window import window_starts
from leuda_deploy.machine.memory import in_megabytes
from leuda_deploy.model.refine import AS_PREDICTED, Refine
from leuda_deploy.model.tiling import DEFAULT_TILING, Tiling
from leuda_deploy.scans.grid.resample import taps
from leuda_deploy.scans.stack import Stack

# What Python, its allocator and the threads take on top of what can be counted: 38 to 40 MB were
# measured with one thread (benchmarks/results/memory.json), up to 60 MB with more (runtime.json).
SLACK_BYTES = 72 << 20
SPARE_BYTES = 16 << 20  # that the budget advised is more than the least
# of one slice while it is labelled: index, weight and score of each pixel's taps, all of it open
LABEL_BYTES_PER_PIXEL = 100
# slabs that exist at once in each step: one in the making, one ready, one in use
SLABS_ALIVE = 3


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Slices (slab) and windows (batch) at a time, and where the bytes of the peak go."""

    slab: int
    batch: int
    parts: Mapping[str, int]

    @property
    def peak_bytes(self) -> int:
        """The predicted peak of the whole process."""
        return sum(self.parts.values())

    def __str__(self) -> str:
        """One line for people."""
        parts = " + ".join(f"{name} {in_megabytes(count)}" for name, count in self.parts.items())
        return (
            f"{self.slab} slices and {self.batch} windows at a time, "
            f"predicted peak {in_megabytes(self.peak_bytes)} = {parts}"
        )


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What takes memory besides the scan itself.

    Attributes:
        classes: K, background included.
        loaded_bytes: What the process holds with the engine loaded and no scan read.
        growth_bytes: Batch -> what running the engine adds, as a trial measured it.
        tiling: How windows are laid, and what of a slice is scored.
        multiple: See `Scoring`.
        mirror: Whether mirrored windows are scored, too.
        uncertainty: Whether an entropy map is made.
        regions: Whether the structures may overlap.
        refine: What is done to the probabilities.
        scans: How many are held at once, where others are read and written meanwhile.
        results: The same of labels.
        writing: Bytes that writing the results takes, when the slabs are gone.
    """

    classes: int
    loaded_bytes: int = 0
    growth_bytes: Mapping[int, int] = field(default_factory=dict)
    tiling: Tiling = DEFAULT_TILING
    multiple: int | None = None
    mirror: bool = False
    uncertainty: bool = False
    regions: bool = False
    refine: Refine = AS_PREDICTED
    scans: int = 1
    results: int = 1
    writing: int = 0


def make_plan(
    stack: Stack, workload: Workload, *, batch: int, max_bytes: int | None = None
) -> MemoryPlan:
    """The plan with the batch asked for, or the largest smaller one that keeps to the budget.

    Raises InputError, naming the least that would do, if no batch fits.
    """
    smaller = {1, batch, *(other for other in workload.growth_bytes if other < batch)}
    plans = [_plan_for(size, stack, workload) for size in sorted(smaller, reverse=True)]
    for plan in plans:
        if max_bytes is None or plan.peak_bytes <= max_bytes:
            return plan
    # the next process may be a little larger than this one when it plans
    least = min(plan.peak_bytes for plan in plans) + SPARE_BYTES
    raise InputError(
        f"{stack.volume.name} cannot be done in {in_megabytes(max_bytes or 0)}: "
        f"the least that would do is --max-memory {-(-least // 10**6)}M ({plans[-1]})"
    )


def _plan_for(batch: int, stack: Stack, workload: Workload) -> MemoryPlan:
    classes, tiling = workload.classes, workload.tiling
    part = part_of(stack, tiling, workload.multiple)
    per_slice = prod(part.window_counts(tiling.overlap))
    blocks = stack.window_slices > 1
    starts = window_starts(stack.depth, stack.window_slices, tiling.overlap, tiling.steps)
    groups: list[Sequence[int]] = [[k] for k in range(len(starts))]
    if blocks and tiling.find_first:
        groups = in_groups(starts, stack.window_slices)
    slab = min(stack.depth, stack.window_slices if blocks else max(1, batch // per_slice))
    # slices that a slab adds to those before: windows of blocks overlap
    fresh = slab
    if blocks and groups[1:]:
        fresh = max(starts[b[-1]] - starts[a[-1]] for a, b in pairwise(groups))
    window = part.window[-2:]
    plane = stack.plane_shape[0] * stack.plane_shape[1]
    grid = max(stack.grid_shape[0], window[0]) * max(stack.grid_shape[1], window[1])
    images, scores = 4 * fresh * grid * stack.channels, 4 * classes * grid * fresh
    # in the making: the scan's own slices that the slab is made of, a channel after the other
    read = stack.slices_read(fresh)
    making = read * (4 * grid * (read != fresh) + stack.volume.raw.dtype.itemsize * plane)
    making += (stack.channels > 1) * images
    # a second set of a batch's scores, blended, mirrored or put together
    copies = (per_slice > 1) + workload.mirror + tiling.skip_floor
    copies += part.shape != stack.grid_shape  # put where they belong
    blending = 4 * classes * prod(part.window) * batch * copies
    alive = SLABS_ALIVE * (images + scores)
    if blocks:
        alive = _block_bytes(
            stack, classes, grid, slab, fresh if groups[1:] else 0, together=max(map(len, groups))
        )
    refine = workload.refine
    # the slab's probabilities; the weights of a pixel's neighbours, in the making; a slab that is
    # averaged, and the two slices before it
    refined = bool(refine) * 2 * scores
    refined += refine.edges * 4 * 4 * len(OFFSETS) * grid
    refined += refine.across_slices * 2 * (scores + 2 * 4 * classes * grid)
    # scores -> probabilities, as MONAI resamples; of blocks when their own are gone
    refined += (stack.recipe.resampling == "linear" and not blocks) * 2 * scores
    refined += workload.uncertainty * 3 * 4 * classes * grid  # of a slice's entropy
    voxels = stack.volume.raw.size
    holes = stack.recipe.only_inside * voxels // 8  # a bit a voxel
    slabs = alive + making + blending + refined + LABEL_BYTES_PER_PIXEL * plane
    parts = {
        "program": workload.loaded_bytes + SLACK_BYTES,
        "network": _growth(workload.growth_bytes, as_many_usual(part, stack, batch)),
        "scan": workload.scans * (stack.volume.raw.nbytes * stack.channels + holes),
        "labels": workload.results * (1 + workload.uncertainty + workload.regions) * voxels,
        "slabs": slabs,
    }
    if workload.writing > slabs:
        parts["writing"] = workload.writing - slabs
    return MemoryPlan(slab=slab, batch=batch, parts=parts)


def _block_bytes(
    stack: Stack, classes: int, grid: int, slab: int, fresh: int, *, together: int
) -> int:
    """Of a 3D engine, while a window is scored: blocks of slices, as images and as scores.

    slab      slices of a window, as many as there are
    fresh     of them, those that the window before had not; 0: a single window holds the scan
    together  windows whose scores are held until all are there, where a search looks first
    """
    # scores wait for those of the next slices, where the scan's own lie between
    resampled = stack.depth != stack.scan_depth
    waiting = resampled * (1 + len(taps(stack.depth, stack.scan_depth, stack.score_kernels[0])[0]))
    searched = together > 1
    if fresh:
        # images: in the making, ready and in use; with those held before; padded
        images = 3 * fresh + (slab - fresh) * (not searched) + 2 * slab + searched * fresh
        # scores: of the window, with their weights, the sums so far; of the two slabs before
        scores = (2 + together) * slab + (2 + resampled + searched) * fresh
    else:
        images = slab + stack.window_slices
        scores = slab + max(stack.window_slices, (1 + resampled) * slab)
    return 4 * grid * (images * stack.channels + (scores + waiting) * classes)


def _growth(growth_bytes: Mapping[int, int], batch: int) -> int:
    """Measured where it was, else in proportion to the nearest larger or largest batch."""
    if batch in growth_bytes:
        return growth_bytes[batch]
    if not growth_bytes:
        return 0
    nearest = min((b for b in growth_bytes if b > batch), default=max(growth_bytes))
    return max(growth_bytes[nearest] * batch // nearest, 0)
