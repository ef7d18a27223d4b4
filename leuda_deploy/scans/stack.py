"""Volume -> stack of slices on the model grid; planes of labels -> the scan's own grid.

    scan (X, Y, Z)  --orient-->  stack (D, H, W)  --clip, normalise-->
                                                  --resample in plane-->  grid (D, h, w)

For a 3D graph, whose card has a `Depth`, slices are resampled along the third axis, too. Where the
recipe crops, the stack is the box of the scan that is left, and labels outside of it stay 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
from nibabel import orientations
from numpy.typing import NDArray

from leuda_deploy.errors import ScanError
from leuda_deploy.scans.grid.boxes import ALL, Box, around, nonzero_box
from leuda_deploy.scans.grid.inside import Inside
from leuda_deploy.scans.grid.monai_grid import first_centres
from leuda_deploy.scans.grid.orientation import stack_orientation
from leuda_deploy.scans.grid.resample import (
    Anchored,
    Kernel,
    Kernels,
    along,
    fit_to_window,
    left_alone,
    resize,
    taps,
    unchanged,
)
from leuda_deploy.scans.intensity import Intensity, fit_intensity
from leuda_deploy.scans.intensity.air import Span, box_around, not_air
from leuda_deploy.scans.recipe import Depth, Recipe
from leuda_deploy.scans.volume import Volume

Float32 = NDArray[np.float32]
MAX_GRID = 8192  # pixels a side; more means a wrong pixel size somewhere
MAX_PLANE = 1 << 24  # pixels of a slice; the same


class Stack:
    """A scan as the network sees it, read slab by slab: D slices, native (H, W), grid (h, w).

    window_depth      of a 3D graph; with a spacing of its own, the grid has `depth` slices where
                      the scan has `scan_depth`
    pixel_spacing_mm  overrides the header's in-plane pixel size, for data whose header is wrong
    box               of the voxels that are looked at; None: as the recipe crops
    """

    channels = 1

    def __init__(
        self,
        volume: Volume,
        recipe: Recipe,
        *,
        window_depth: Depth | None = None,
        pixel_spacing_mm: tuple[float, float] | None = None,
        box: Box | None = None,
    ) -> None:
        self.volume, self.recipe = volume, recipe
        self.window = (window_depth.slices, *recipe.window) if window_depth else recipe.window
        self.window_slices = window_depth.slices if window_depth else 1
        self._orientation = stack_orientation(volume.affine, recipe.slice_axis)
        # a view: nothing is copied until a slab is read
        self._box = box or (nonzero_box(volume) if recipe.crop == "nonzero" else ALL)
        self._raw = orientations.apply_orientation(volume.raw[self._box], self._orientation)
        self._inside = Inside([(self._raw, volume)]) if recipe.only_inside else None
        self.scan_depth, *plane = map(int, self._raw.shape)
        self.plane_shape = (plane[0], plane[1])
        spacing = np.empty(3)
        spacing[self._orientation[:, 0].astype(int)] = volume.spacing_mm
        self.slice_spacing_mm = float(spacing[0])
        self.plane_spacing_mm = pixel_spacing_mm or (float(spacing[1]), float(spacing[2]))
        true_spacing = np.array([self.slice_spacing_mm, *self.plane_spacing_mm])
        x, y, z = true_spacing[self._orientation[:, 0].astype(int)].tolist()
        self.voxel_spacing_mm: tuple[float, float, float] = (x, y, z)  # along the scan's own axes
        have = (self.slice_spacing_mm, *self.plane_spacing_mm)
        want = list(have)
        if recipe.spacing_mm != "native":
            want[1:] = recipe.spacing_mm
        if window_depth is not None and window_depth.spacing_mm != "native":
            want[0] = window_depth.spacing_mm
        self.depth, *grid = self._grid(have, want)
        self.grid_shape = (grid[0], grid[1])
        self._image_kernels: Kernels = ("smooth", "smooth", "smooth")
        self.score_kernels: Kernels = self._image_kernels
        self._cover_kernels: tuple[Kernel, Kernel] = ("smooth", "smooth")
        self._clip_by_slice = False
        self._bodies: dict[float, tuple[Span, Span]] = {}
        if recipe.resampling == "linear":
            self.score_kernels = self._image_kernels = ("linear", "linear", "linear")
        if recipe.grid != "field":
            anchors = self._anchors([b / a for a, b in zip(have, want, strict=True)])
            self._image_kernels, self._cover_kernels = anchors, anchors[1:]
            self.score_kernels = anchors[0].back(), anchors[1].back(), anchors[2].back()
        if recipe.resampling == "spline":
            alone = left_alone(have, tuple(want))
            self._image_kernels = along("spline", alone)
            self.score_kernels = along("linear", alone)
            self._clip_by_slice = alone[0]

    def _grid(self, have: tuple[float, ...], want: list[float]) -> list[int]:
        """(D, h, w) of the model grid."""
        shape = (self.scan_depth, *self.plane_shape)
        if self.recipe.grid == "field":
            grid = [max(1, round(n * a / b)) for n, a, b in zip(shape, have, want, strict=True)]
        else:
            grid = [round((n - 1) * a / b) + 1 for n, a, b in zip(shape, have, want, strict=True)]
        plane, own_plane = grid[1] * grid[2], shape[1] * shape[2]
        if max(grid) > max(MAX_GRID, *shape) or plane > max(MAX_PLANE, own_plane):
            raise ScanError(
                "too large a grid",
                f"{self.volume.name}: its voxels of {' x '.join(f'{a:g}' for a in have)} mm on a "
                f"grid of {' x '.join(f'{b:g}' for b in want)} mm make "
                f"{' x '.join(map(str, grid))}; at most {MAX_GRID} a side and "
                f"{MAX_PLANE:,} a slice",
            )
        return grid

    def _anchors(self, steps: list[float]) -> tuple[Anchored, Anchored, Anchored]:
        """Where the grid's voxels lie along D, H and W; steps are in the scan's voxels."""
        shape, grid = (self.scan_depth, *self.plane_shape), (self.depth, *self.grid_shape)
        of_stack = np.argsort(self._orientation[:, 0])  # which axis of the scan D, H and W are
        axes, flips = self.volume.affine[:3, of_stack], self._orientation[of_stack, 1]
        stored = self.recipe.grid == "first-stored"
        firsts = first_centres(axes if stored else axes * flips, shape, grid, steps)
        if stored:  # what is stored first comes last on a flipped axis
            firsts = tuple(
                n - 1 - (first + (m - 1) * step) if flip < 0 else first
                for n, m, step, first, flip in zip(shape, grid, steps, firsts, flips, strict=True)
            )
        depth, row, column = map(Anchored, firsts, steps)
        return depth, row, column

    @cached_property
    def intensity(self) -> Intensity:
        """The scan's clip and normalisation."""
        raw = self.volume.raw[self._box] if self._inside is None else np.moveaxis(self._raw, 0, -1)
        return fit_intensity(replace(self.volume, raw=raw), self.recipe, self._inside)

    @property
    def outside(self) -> float:
        """The normalised value of what a window holds beyond the scan."""
        return self.intensity.floor if self.recipe.outside == "floor" else 0.0

    @property
    def has_voxels(self) -> bool:
        """Whether more than the header was read."""
        return any(self.volume.raw.strides)

    def body(self, air: float) -> tuple[Span, Span]:
        """The box around all that is no air in any slice, on the grid: see `air.not_air`."""
        if air not in self._bodies:
            lit = not_air(self._raw, self.volume, self.intensity, air)
            self._bodies[air] = box_around(lit, self.grid_shape)
        return self._bodies[air]

    def slices_read(self, count: int) -> int:
        """How many of the scan's slices so many of the grid are made of, at most."""
        if unchanged(self.scan_depth, self.depth, self._image_kernels[0]):
            return count
        index, _ = taps(self.scan_depth, self.depth, self._image_kernels[0])
        return min(self.scan_depth, len(index) + count * self.scan_depth // self.depth)

    def images(self, start: int, stop: int) -> Float32:
        """Slices start..stop as the network reads them: (d, h, w) float32, normalised."""
        return self.images_of(range(start, stop))

    def images_of(self, wanted: Sequence[int]) -> Float32:
        """These slices as the network reads them: (d, h, w) float32, normalised."""
        images = self._grid_slices(wanted)
        if self.recipe.resampling == "linear":
            for image in images:
                image[...] = self._normalised(image, None)
        if self.recipe.resampling == "spline":  # they swing beyond what they pass through
            np.clip(images, self.intensity.floor, self.intensity.ceiling, out=images)
        return images

    def _grid_slices(self, wanted: Sequence[int]) -> Float32:
        if unchanged(self.scan_depth, self.depth, self._image_kernels[0]):
            return self._scan_slices(wanted)
        every = taps(self.scan_depth, self.depth, self._image_kernels[0])
        index, weight = (part[:, wanted] for part in every)
        first = int(index.min())
        slices = self._scan_slices(range(first, int(index.max()) + 1))
        images = np.zeros((len(wanted), *self.grid_shape), dtype=np.float32)
        for places, shares in zip(index - first, weight, strict=True):
            for image, place, share in zip(images, places, shares, strict=True):
                image += share * slices[place]
        return images

    def _scan_slices(self, wanted: Sequence[int]) -> Float32:
        images = np.empty((len(wanted), *self.grid_shape), dtype=np.float32)
        part = slice(wanted.start, wanted.stop) if isinstance(wanted, range) else wanted
        # slice by slice, so that what is worked on stays in the processor's cache
        raws = np.ascontiguousarray(self._raw[part])
        for image, place, raw in zip(images, wanted, raws, strict=True):
            values = raw.astype(np.float32)
            values *= np.float32(self.volume.slope)
            values += np.float32(self.volume.inter)
            if self.recipe.resampling != "linear":
                values = self._normalised(values, place)
            image[...] = resize(values, self.grid_shape, self._image_kernels[1:])
            if self._clip_by_slice:
                np.clip(image, values.min(), values.max(), out=image)
        return images

    def _normalised(self, values: Float32, place: int | None) -> Float32:
        stays = values == 0 if self.recipe.only_nonzero else np.False_
        if self._inside is not None and place is not None:
            stays = ~self._inside(place)
        values = self.intensity(values)
        np.copyto(values, np.float32(0), where=stays)
        return values

    def window_at(self, start: int) -> Float32:
        """What the network reads at grid slice `start`, for trials: the middle of the plane.

        Returns:
            (h, w) float32; of a 3D graph the block from there on, (d, h, w), or the scan's last.
        """
        size, outside = self.window_slices, self.outside
        start = max(0, min(start, self.depth - size))
        images = self.images(start, min(start + size, self.depth))
        missing = size - len(images)
        padding = [(missing // 2, missing - missing // 2), (0, 0), (0, 0)]
        images = np.pad(images, padding, constant_values=outside)
        window = fit_to_window(images, self.recipe.window, outside)
        return np.ascontiguousarray(window.reshape(self.window))

    def labels(self, start: int, stop: int, *, classes: int) -> NDArray[np.uint8]:
        """Slices of a label map's volume on the model grid: (d, h, w) uint8, classes 1 and up.

        Each pixel gets the class that covers most of it.
        """
        covering = np.empty((stop - start, *self.grid_shape), dtype=np.uint8)
        # slice by slice: a float32 map a class, of all slices at once, is gigabytes
        cover = np.empty((classes + 1, *self.plane_shape), dtype=np.float32)
        for found, numbers in zip(covering, self._raw[start:stop], strict=True):
            for k in range(1, classes + 1):
                np.equal(numbers, k, out=cover[k], casting="unsafe")
            cover[0] = 1.0 - cover[1:].sum(axis=0, dtype=np.float32)
            found[...] = resize(cover, self.grid_shape, self._cover_kernels).argmax(axis=0)
        return covering

    def of_scan(self, values: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A view of values on the scan's own grid (X, Y, Z) as the stack (scan_depth, H, W).

        Where the recipe crops, it is a view of the box alone. What is written into it slab by slab
        lies where it belongs: nothing is turned back later.
        """
        view: NDArray[np.uint8] = orientations.apply_orientation(
            values[self._box], self._orientation
        )
        assert view.shape == (self.scan_depth, *self.plane_shape)
        assert np.may_share_memory(view, values)
        return view


class ChannelStack(Stack):
    """Scans on one grid that a network reads together; a `Stack`, with one axis more.

    Each channel is normalised by itself; where the recipe crops, the box holds all of them. What
    speaks of one scan alone (its volume, its intensity) speaks of the first.
    """

    def __init__(
        self, volume: Volume, recipe: Recipe, *, window_depth: Depth | None = None
    ) -> None:
        every = (replace(volume, more=()), *volume.more)
        box = ALL
        if recipe.crop == "nonzero":
            box = around([nonzero_box(each) for each in every])
        super().__init__(every[0], recipe, window_depth=window_depth, box=box)
        self._parts = [Stack(each, recipe, window_depth=window_depth, box=box) for each in every]
        self.channels = len(every)
        if recipe.only_inside:  # any of them
            inside = Inside([(part._raw, part.volume) for part in self._parts])
            for part in (self, *self._parts):
                part._inside = inside

    def images_of(self, wanted: Sequence[int]) -> Float32:
        """These slices as the network reads them: (d, C, h, w) float32, normalised."""
        return np.stack([part.images_of(wanted) for part in self._parts], axis=1)

    def window_at(self, start: int) -> Float32:
        """(C, h, w) float32; of a 3D graph (C, d, h, w)."""
        return np.stack([part.window_at(start) for part in self._parts])


def stack_of(volume: Volume, recipe: Recipe, window_depth: Depth | None = None) -> Stack:
    """The scan as the network sees it, of one channel or several."""
    kind = ChannelStack if volume.more else Stack
    return kind(volume, recipe, window_depth=window_depth)
