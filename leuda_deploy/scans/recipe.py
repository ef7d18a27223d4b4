"""Volume -> stack of slices on the model grid; planes of labels -> the scan's own grid.

One `Recipe` is used by training and by inference; it travels in the checkpoint and in the model
file, so the two cannot drift apart.

    scan (X, Y, Z)  --orient-->  stack (D, H, W)  --clip, normalise-->
                                                  --resample in plane-->  grid (D, h, w)

For a 3D graph, whose card has a `Depth`, slices are resampled along the third axis, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import numpy as np
from nibabel import orientations
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from leuda_deploy.errors import InputError
from leuda_deploy.scans.resample import fit_to_window, resize, taps
from leuda_deploy.scans.volume import Volume

Float32 = NDArray[np.float32]
SliceAxis = Literal["right", "anterior", "superior", "array-0", "array-1", "array-2"]

MAX_GRID = 8192  # pixels a side; more means a wrong pixel size somewhere
# For a slice axis that is a world direction: where the axes D, H, W of the stack point.
# Rows run down the picture and columns to its right, as a radiologist looks at it.
STACK_DIRECTIONS = {"superior": "SPL", "anterior": "AIL", "right": "RIP"}


class Recipe(BaseModel):
    """How a scan becomes what the network reads.

    slice_axis        a world direction (the array axis closest to it is used, and in-plane axes
                      are turned to the viewing convention), or an array axis (nothing is turned)
    spacing_mm        (row, column) pixel size of the model grid in mm, or "native"
    window            (h, w) pixels that the network reads at once
    clip_percentiles  of the whole scan's finite voxels; values outside are clipped (the paper
                      clips the top 2 % of the 3D histogram)
    normalisation     after clipping, over the whole scan: "zscore" (mean 0, standard deviation 1,
                      the paper's) or "minmax" (-1 to 1)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    slice_axis: SliceAxis
    spacing_mm: (
        tuple[Annotated[float, Field(gt=0, le=100)], Annotated[float, Field(gt=0, le=100)]]
        | Literal["native"]
    )
    window: tuple[Annotated[int, Field(ge=8, le=4096)], Annotated[int, Field(ge=8, le=4096)]]
    clip_percentiles: tuple[
        Annotated[float, Field(ge=0, le=100)], Annotated[float, Field(ge=0, le=100)]
    ] = (0.0, 98.0)
    normalisation: Literal["zscore", "minmax"] = "zscore"

    @model_validator(mode="after")
    def _percentiles_in_order(self) -> Self:
        low, high = self.clip_percentiles
        if low >= high:
            raise ValueError(f"clip_percentiles must rise, got {low} and {high}")
        return self


class Depth(BaseModel):
    """What a 3D graph reads at once along the slice axis: windows are (slices, h, w).

    spacing_mm  from slice to slice of the model grid, or "native": the scan's own slices
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    slices: Annotated[int, Field(ge=2, le=1024)]
    spacing_mm: Annotated[float, Field(gt=0, le=100)] | Literal["native"] = "native"


@dataclass(frozen=True)
class Intensity:
    """Clip to [low, high], then (value - shift) / scale.

    quartiles  of the scan's values, in scanner units; they say what a scan looks like
    """

    low: float
    high: float
    shift: float
    scale: float
    quartiles: tuple[float, ...] = ()

    def __call__(self, values: Float32) -> Float32:
        """Scanner units -> normalised, any shape, in place; NaN becomes the floor."""
        np.clip(values, self.low, self.high, out=values)  # infinities become the limits
        np.copyto(values, np.float32(self.low), where=np.isnan(values))
        values -= np.float32(self.shift)
        values /= np.float32(self.scale)
        return values

    @property
    def floor(self) -> float:
        """The normalised value of the darkest voxel; what lies outside the scan is given it."""
        return (self.low - self.shift) / self.scale

    @property
    def ceiling(self) -> float:
        """The normalised value of the brightest voxel."""
        return (self.high - self.shift) / self.scale


def fit_intensity(volume: Volume, recipe: Recipe) -> Intensity:
    """Percentiles, mean and deviation over the scan's finite voxels, in scanner units.

    Whole-scan statistics in the scan's native grid, so that cropping cannot change them.
    Raises InputError for a scan in which nothing differs.
    """
    values, counts = _histogram(volume)
    if values.size == 0:
        raise InputError(f"{volume.name} has no finite voxel")
    low, high = _percentiles(values, counts, recipe.clip_percentiles)
    if not high > low:  # e.g. a mask, or a scan that is nearly all air
        low, high = float(values[0]), float(values[-1])
    if not high > low:
        raise InputError(f"every voxel of {volume.name} is {low:g}; there is nothing to segment")
    quartiles = _percentiles(values, counts, (25.0, 50.0, 75.0))
    if recipe.normalisation == "minmax":
        return Intensity(low, high, (low + high) / 2, (high - low) / 2, quartiles)
    clipped = np.clip(values, low, high)
    mean = float(np.average(clipped, weights=counts))
    deviation = float(np.sqrt(np.average((clipped - mean) ** 2, weights=counts)))
    return Intensity(low, high, mean, deviation, quartiles)


def _histogram(volume: Volume) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Sorted distinct values of the scan, in scanner units, and how often each occurs."""
    raw = volume.raw
    if raw.dtype.kind in "iub":
        low = int(raw.min())
        if int(raw.max()) - low < 1 << 20:
            # slice by slice, so that a wide copy of the whole scan never exists
            counts = np.zeros(int(raw.max()) - low + 1, dtype=np.int64)
            for part in np.moveaxis(raw, -1, 0):
                shifted = part.ravel(order="K").astype(np.int64) - low
                counts += np.bincount(shifted, minlength=counts.size)
            present = np.flatnonzero(counts)
            values, counts = (present + low).astype(np.float64), counts[present]
        else:
            values, counts = np.unique(raw, return_counts=True)
    else:
        values, counts = np.unique(raw[np.isfinite(raw)], return_counts=True)
    values = values.astype(np.float64) * volume.slope + volume.inter
    return (values, counts) if volume.slope > 0 else (values[::-1], counts[::-1])


def _percentiles(
    values: NDArray[np.float64], counts: NDArray[np.int64], percent: tuple[float, ...]
) -> tuple[float, ...]:
    """numpy.percentile's linear rule, from a histogram."""
    last_rank = np.cumsum(counts) - 1
    rank = np.asarray(percent) / 100.0 * last_rank[-1]
    below = values[np.searchsorted(last_rank, np.floor(rank))]
    above = values[np.searchsorted(last_rank, np.ceil(rank))]
    return tuple((below + (above - below) * (rank - np.floor(rank))).tolist())


class Stack:
    """A scan as the network sees it, read slab by slab: D slices, native (H, W), grid (h, w).

    depth             of a 3D graph's window; with a spacing of its own, `depth` slices of the grid
                      lie where the scan has `scan_depth`
    pixel_spacing_mm  overrides the header's in-plane pixel size, for data whose header is wrong
    """

    def __init__(
        self,
        volume: Volume,
        recipe: Recipe,
        *,
        depth: Depth | None = None,
        pixel_spacing_mm: tuple[float, float] | None = None,
    ) -> None:
        self.volume, self.recipe = volume, recipe
        self.window = (depth.slices, *recipe.window) if depth else recipe.window
        self.window_slices = depth.slices if depth else 1
        self._orientation = _stack_orientation(volume.affine, recipe.slice_axis)
        # a view: nothing is copied until a slab is read
        self._raw = orientations.apply_orientation(volume.raw, self._orientation)
        self.scan_depth, *plane = map(int, self._raw.shape)
        self.plane_shape = (plane[0], plane[1])
        spacing = np.empty(3)
        spacing[self._orientation[:, 0].astype(int)] = volume.spacing_mm
        self.slice_spacing_mm = float(spacing[0])
        self.plane_spacing_mm = pixel_spacing_mm or (float(spacing[1]), float(spacing[2]))
        true_spacing = np.array([self.slice_spacing_mm, *self.plane_spacing_mm])
        x, y, z = true_spacing[self._orientation[:, 0].astype(int)].tolist()
        self.voxel_spacing_mm: tuple[float, float, float] = (x, y, z)  # along the scan's own axes
        self.depth, *grid = self._grid(depth)
        self.grid_shape = (grid[0], grid[1])
        self._intensity: Intensity | None = None

    def _grid(self, depth: Depth | None) -> list[int]:
        """(D, h, w) of the model grid, which covers the scan's field of view."""
        have = (self.slice_spacing_mm, *self.plane_spacing_mm)
        want = list(have)
        if self.recipe.spacing_mm != "native":
            want[1:] = self.recipe.spacing_mm
        if depth is not None and depth.spacing_mm != "native":
            want[0] = depth.spacing_mm
        shape = (self.scan_depth, *self.plane_shape)
        grid = [max(1, round(n * a / b)) for n, a, b in zip(shape, have, want, strict=True)]
        if max(grid) > max(MAX_GRID, *shape):
            raise InputError(
                f"{self.volume.name}: its voxels of {' x '.join(f'{a:g}' for a in have)} mm on a "
                f"grid of {' x '.join(f'{b:g}' for b in want)} mm make "
                f"{' x '.join(map(str, grid))}; at most {MAX_GRID} a side"
            )
        return grid

    @property
    def intensity(self) -> Intensity:
        """The scan's clip and normalisation, worked out once."""
        if self._intensity is None:
            self._intensity = fit_intensity(self.volume, self.recipe)
        return self._intensity

    def images(self, start: int, stop: int) -> Float32:
        """Slices start..stop as the network reads them: (d, h, w) float32, normalised."""
        if self.depth == self.scan_depth:
            return self._scan_slices(start, stop)
        index, weight = (part[:, start:stop] for part in taps(self.scan_depth, self.depth))
        first = int(index.min())
        slices = self._scan_slices(first, int(index.max()) + 1)
        images = np.zeros((stop - start, *self.grid_shape), dtype=np.float32)
        for places, shares in zip(index - first, weight, strict=True):
            for image, place, share in zip(images, places, shares, strict=True):
                image += share * slices[place]
        return images

    def _scan_slices(self, start: int, stop: int) -> Float32:
        images = np.empty((stop - start, *self.grid_shape), dtype=np.float32)
        # slice by slice, so that what is worked on stays in the processor's cache
        for image, raw in zip(images, np.ascontiguousarray(self._raw[start:stop]), strict=True):
            values = raw.astype(np.float32)
            values *= np.float32(self.volume.slope)
            values += np.float32(self.volume.inter)
            image[...] = resize(self.intensity(values), self.grid_shape)
        return images

    def labels(self, start: int, stop: int, *, classes: int) -> NDArray[np.uint8]:
        """Slices of a label map's volume on the model grid: (d, h, w) uint8, classes 1 and up.

        Each pixel gets the class that covers most of it.
        """
        numbers = self._raw[start:stop]
        cover = np.stack([(numbers == k).astype(np.float32) for k in range(1, classes + 1)], axis=1)
        background = 1.0 - cover.sum(axis=1, keepdims=True, dtype=np.float32)
        cover = resize(np.concatenate([background, cover], axis=1), self.grid_shape)
        covering: NDArray[np.uint8] = cover.argmax(axis=1).astype(np.uint8)
        return covering

    def of_scan(self, values: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A view of values on the scan's own grid (X, Y, Z) as the stack (scan_depth, H, W).

        What is written into it slab by slab lies where it belongs: nothing is turned back later.
        """
        view: NDArray[np.uint8] = orientations.apply_orientation(values, self._orientation)
        assert view.shape == (self.scan_depth, *self.plane_shape)
        assert np.may_share_memory(view, values)
        return view


def _stack_orientation(affine: NDArray[np.float64], slice_axis: str) -> NDArray[Any]:
    """The axis order and flips (nibabel's orientation array) that turn (X, Y, Z) into (D, H, W)."""
    if slice_axis.startswith("array-"):
        axis = int(slice_axis[-1])
        order = [axis] + [other for other in range(3) if other != axis]
        return np.array([[order.index(other), 1] for other in range(3)])
    have = orientations.io_orientation(affine)
    want = orientations.axcodes2ornt(STACK_DIRECTIONS[slice_axis])
    turn: NDArray[Any] = orientations.ornt_transform(have, want)
    return turn


def window_at(stack: Stack, start: int) -> Float32:
    """The middle of the plane at grid slice `start`: (h, w); of a 3D graph the block from there on,
    (d, h, w), or the last one of the scan.
    """
    size, floor = stack.window_slices, stack.intensity.floor
    start = max(0, min(start, stack.depth - size))
    images = stack.images(start, min(start + size, stack.depth))
    missing = size - len(images)
    padding = [(missing // 2, missing - missing // 2), (0, 0), (0, 0)]
    images = np.pad(images, padding, constant_values=floor)
    window = fit_to_window(images, stack.recipe.window, floor)
    return np.ascontiguousarray(window.reshape(stack.window))
