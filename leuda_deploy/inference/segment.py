"""scan -> labels on the scan's own grid, the whole way on one page.

The scan goes through in slabs of a few slices, and no score volume of the whole scan ever exists:

    images  (d, h, w) float32     thread 1   normalise, resample
    scores  (d, K, h, w) float32  thread 2   windows, network, blend
    labels  (d, H, W) uint8       caller     winning class on the scan's own pixels

The three work at once on successive slabs; each waits when it is one slab ahead. A 2D network
scores each slab by itself; for a 3D one, each slab completes a window. Where a search leaves slices
out (`find_first.py`), slabs come in rounds: which slices a round has depends on the labels before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, softmax

from leuda_deploy.engines.engine import Float32, Scorer
from leuda_deploy.errors import ModelError
from leuda_deploy.inference.find_first import Find, FindingScorer, FullBecause, Walk
from leuda_deploy.inference.labels import Uncertainty, label_plane, region_plane
from leuda_deploy.inference.pipelined import prefetch
from leuda_deploy.inference.refine.refined import Refined
from leuda_deploy.inference.slabs import (
    DEFAULT_SCORING,
    BlockScorer,
    Part,
    ScanSlices,
    Scoring,
    SlabScorer,
    Slices,
)
from leuda_deploy.inference.sliding_window import mirrored, of_channels, scoring_floor_once
from leuda_deploy.machine.clock import Clock
from leuda_deploy.machine.progress import Progress, no_progress
from leuda_deploy.model.regions import label_map, region_counts
from leuda_deploy.scans.intensity import Intensity
from leuda_deploy.scans.stack import Stack
from leuda_deploy.scans.volume import Volume


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """What was found in one scan.

    Attributes:
        labels: (X, Y, Z) uint8 on the scan's grid, Fortran order as NIfTI files have it.
        uncertainty: (X, Y, Z) uint8 entropy of the softmax, 255 = all classes alike; or None.
        low_confidence: Share of the voxels labelled as a structure whose class has a probability
            below 0.7, on the model grid.
        expected_dice: By class that was found, the Dice that its labels would have if the model's
            probabilities were right, on the model grid, before any clean-up. Models are too sure.
        intensity: Clip limits and normalisation fitted to this scan, in scanner units.
        scored: How many slices of the model grid were scored.
        searched: How many of them to find where there is something; None: every slice was scored.
        part: What of each slice was scored, and by windows of which size.
        along: Of a 3D model, how many windows along the slice axis were scored, of how many.
        full_because: Why every slice was scored; None: it was not, or nobody says.
        seconds: Busy wall seconds by part of the work; the parts overlap.
        regions: (X, Y, Z) uint8, bit k: the voxel is in the region of class k + 1; its label is
            the last of them. None: the model's structures do not overlap.
        cleaned_ml: Millilitres of islands that were taken out of `labels`, by label value; None: it
            was not asked for, or the model's card has no rules.
    """

    labels: NDArray[np.uint8]
    uncertainty: NDArray[np.uint8] | None
    low_confidence: float
    intensity: Intensity
    expected_dice: dict[int, float]
    seconds: dict[str, float]
    scored: int
    part: Part
    regions: NDArray[np.uint8] | None = None
    searched: int | None = None
    along: tuple[int, int] | None = None
    full_because: FullBecause | None = None
    cleaned_ml: dict[int, float] | None = None

    def windows(self, grid_shape: tuple[int, int], overlap: float) -> dict[str, tuple[int, ...]]:
        """For the report: see `Part.facts`; of a 3D model also how many were scored `along`."""
        facts = self.part.facts(grid_shape, overlap)
        return facts if self.along is None else facts | {"along": self.along}


def segment(
    stack: Stack,
    engine: Scorer,
    scoring: Scoring = DEFAULT_SCORING,
    *,
    find: Find | None = None,
    uncertainty: bool = False,
    progress: Progress = no_progress,
) -> Segmentation:
    """Label every voxel of a scan.

    Args:
        stack: The scan as the model's recipe has it.
        engine: (B, C, h, w) float32 normalised windows -> (B, K, h, w) scores, background first;
            where the stack has a window depth, (d, h, w) in place of (h, w).
        scoring: How windows are laid, blended and mirrored, and how many are held at a time.
        find: Score the slices that this search leads to alone, for a 2D engine; the others are
            background. None: score every slice.
        uncertainty: Also make the entropy map; 0 in slices that are not scored.
        progress: Told how many of the slices are done.

    Raises:
        InputError: The scan cannot be normalised.
        ModelError: Scores are not finite.
    """
    clock = Clock()
    with clock("normalise"):
        fill = stack.outside
    if stack.channels > 1:
        engine = of_channels(engine)
    if scoring.mirror:
        engine = mirrored(engine, scoring.tiling.mirror)
    if scoring.tiling.skip_floor:
        bright = stack.intensity.ceiling - stack.intensity.floor
        reach = (scoring.tiling.air or 0.0) * bright
        engine = scoring_floor_once(engine, stack.intensity.floor, reach)
    scorer_type: type[SlabScorer] = SlabScorer
    if stack.window_slices > 1:
        scorer_type = FindingScorer if scoring.tiling.find_first else BlockScorer
    score = scorer_type(engine, stack, scoring, fill=fill)
    # as MONAI resamples: probabilities, where other recipes have the scores as they are
    made_probable = stack.recipe.resampling == "linear" and not scoring.probabilities
    threshold, refine = scoring.region_threshold, scoring.refine
    if made_probable and threshold is not None:
        threshold = 0.5
    assert not refine or (threshold is None and stack.window_slices == 1), "of 2D classes alone"

    def images(wanted: Slices) -> Iterator[tuple[Slices, Float32]]:
        for slab in score.slabs(wanted):
            with clock("resample"):
                slices = stack.images_of(slab)
            yield slab, slices

    def scores(wanted: Slices) -> Iterator[tuple[Slices, Float32]]:
        refined = Refined(refine, probabilities=scoring.probabilities)
        for slab, slices in prefetch(images(wanted)):
            with clock("network"):
                done, found = score(slab, slices)
                if not np.isfinite(found).all():
                    raise ModelError(
                        f"the model gives scores that are not finite on {stack.volume.name}, "
                        f"slices {done[0]} to {done[-1]}; nothing was written"
                    )
                if made_probable and not refine:
                    found = softmax(found, axis=1) if threshold is None else expit(found)
            if not refine:
                yield done, found
                continue
            with clock("refine"):
                ready = list(refined(done, found, slices))
            yield from ready
        if refine:
            yield from refined.finish()

    labels = np.zeros(stack.volume.raw.shape, dtype=np.uint8, order="F")
    label_stack = stack.of_scan(labels)
    unsure = Uncertainty(
        stack,
        wanted=uncertainty,
        probabilities=scoring.probabilities or made_probable or bool(refine),
        regions=threshold is not None,
    )

    def decide(plane: Float32) -> NDArray[np.uint8]:
        if threshold is None:
            return label_plane(plane, stack.plane_shape, stack.score_kernels[1:])
        return region_plane(plane, stack.plane_shape, threshold, stack.score_kernels[1:])

    on_scan = ScanSlices(stack.depth, stack.scan_depth, stack.score_kernels[0])
    walk, planned = Walk(stack.depth, find), 0
    for wanted in walk:
        planned += len(wanted)
        anew = walk.beside(wanted) if refine.across_slices else wanted
        around = walk.beside(anew) if refine.across_slices else wanted
        for slab, on_grid in prefetch(_only(anew, scores(around))):
            for slices, found in on_scan(slab, on_grid):
                with clock("labels"):
                    for index, plane in zip(slices, found, strict=True):
                        label_stack[index] = decide(plane)
                with clock("uncertainty"):
                    unsure.add(slices, found)
            for index in slab:
                walk.saw(index, find is not None and bool(label_stack[index].any()))
            progress(int(walk.scored.sum()), planned, "")
    return Segmentation(
        labels=labels if threshold is None else label_map(labels),
        regions=None if threshold is None else labels,
        uncertainty=unsure.entropy,
        low_confidence=unsure.low_share,
        intensity=stack.intensity,
        expected_dice=unsure.expected_dice,
        seconds=clock.seconds,
        scored=int(walk.scored.sum()),
        part=score.part,
        searched=walk.searched,
        along=(score.scored, score.count) if isinstance(score, BlockScorer) else None,
    )


def _only(
    wanted: Slices, scored: Iterable[tuple[Slices, Float32]]
) -> Iterator[tuple[Slices, Float32]]:
    """Of slices and their scores, those that are wanted."""
    kept = set(wanted)
    for slices, scores in scored:
        if kept.issuperset(slices):
            yield slices, scores
        elif some := [k for k, index in enumerate(slices) if index in kept]:
            yield [slices[k] for k in some], scores[some]


def volumes_ml(
    labels: NDArray[np.uint8],
    volume: Volume,
    names: Sequence[str],
    regions: NDArray[np.uint8] | None = None,
) -> dict[str, float]:
    """Volume of each structure in millilitres; names[k] is the structure with label k + 1.

    Of regions that overlap, see `Segmentation.regions`, each with all of its voxels.
    """
    counts = np.zeros(256, dtype=np.int64)
    for part in np.moveaxis(
        labels if regions is None else regions, -1, 0
    ):  # bincount widens what it counts to 8 bytes a voxel
        counts += np.bincount(part.ravel(order="K"), minlength=256)
    if regions is not None:
        counts = region_counts(counts)
    return {name: float(counts[k + 1]) * volume.voxel_ml for k, name in enumerate(names)}
