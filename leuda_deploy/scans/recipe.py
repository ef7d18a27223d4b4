"""how a scan becomes what a network reads, as settings that travel with the model.

One `Recipe` is used by training and by inference; it travels in the checkpoint and in the model
file, so the two cannot drift apart. A 3D graph's card adds a `Depth`.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

SliceAxis = Literal["right", "anterior", "superior", "array-0", "array-1", "array-2", "RAS", "LPS"]


class FixedIntensity(BaseModel):
    """One normalisation for every scan: clip to [low, high], then (value - shift) / scale.

    low, high  in scanner units
    shift      subtracted after clipping
    scale      divided by after that
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    low: float
    high: float
    shift: float = 0.0
    scale: Annotated[float, Field(gt=0)] = 1.0

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low and high must rise, got {self.low} and {self.high}")
        return self


class Recipe(BaseModel):
    """How a scan becomes what the network reads.

    slice_axis        a world direction (the array axis closest to it is used, and in-plane axes
                      are turned to the viewing convention), or an array axis (nothing is turned);
                      RAS, LPS: slices, rows and columns run right, front and up, or left, back and
                      up, as the axes of MONAI's windows do
    spacing_mm        (row, column) pixel size of the model grid in mm, or "native"
    window            (h, w) pixels that the network reads at once
    clip_percentiles  of the whole scan's finite voxels; values outside are clipped (the paper
                      clips the top 2 % of the 3D histogram)
    normalisation     after clipping, over the whole scan: "zscore" (mean 0, standard deviation 1,
                      the paper's) or "minmax" (-1 to 1); or "fixed", the same for every scan
    fixed             of the normalisation "fixed"; no percentile is clipped then
    crop              "nonzero": only the box around all voxels that are not 0 is looked at; what
                      lies outside enters no statistic and is background
    only_nonzero      voxels of value 0 enter no statistic, and stay 0 (brains without a skull)
    only_inside       the same, as nnU-Net does it, of those voxels alone that are 0 in all channels
                      and not enclosed by others: ventricles of value 0 are normalised, too
    resampling        "smooth": linear, of all pixels that a larger one covers. "linear": as MONAI
                      does it, between the nearest two: the scan before it is normalised, and
                      probabilities of classes. "spline": as nnU-Net does it, the scan by cubic
                      splines, scores linearly, neither smoothed; along an axis whose voxels are
                      over three times as long as others, the nearest
    grid              "field": the model grid covers the scan's field of view. "first": it begins at
                      the first voxel's centre, and on oblique scans where MONAI's Spacing has it
                      begin; "first-stored": the same, of the scan before any axis is turned
    outside           what a window holds beyond the scan: the darkest value, or 0 after normalising
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
    normalisation: Literal["zscore", "minmax", "fixed"] = "zscore"
    fixed: FixedIntensity | None = None
    crop: Literal["none", "nonzero"] = "none"
    only_nonzero: bool = False
    only_inside: bool = False
    resampling: Literal["smooth", "linear", "spline"] = "smooth"
    grid: Literal["field", "first", "first-stored"] = "field"
    outside: Literal["floor", "zero"] = "floor"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        low, high = self.clip_percentiles
        if low >= high:
            raise ValueError(f"clip_percentiles must rise, got {low} and {high}")
        if (self.normalisation == "fixed") != (self.fixed is not None):
            raise ValueError('normalisation "fixed" and the table `fixed` need each other')
        if self.only_inside and (self.only_nonzero or self.resampling == "linear"):
            raise ValueError("only_inside goes with neither only_nonzero nor linear resampling")
        if self.grid != "field" and self.resampling != "linear":
            raise ValueError(f'grid = "{self.grid}" needs resampling = "linear"')
        return self


class Depth(BaseModel):
    """What a 3D graph reads at once along the slice axis: windows are (slices, h, w).

    slices      of a window
    spacing_mm  from slice to slice of the model grid, or "native": the scan's own slices
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    slices: Annotated[int, Field(ge=2, le=1024)]
    spacing_mm: Annotated[float, Field(gt=0, le=100)] | Literal["native"] = "native"
