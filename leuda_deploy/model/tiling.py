"""how windows cover a slice, and what may be done with them: a part of the model card."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Blending = Literal["gaussian", "constant", "nnunet"]
Pixels = Annotated[int, Field(ge=1, le=8192)]
Steps = Literal["even", "fixed"]
MirrorAxis = Literal["slices", "rows", "columns"]


class Tiling(BaseModel):
    """How windows cover a slice, and what may be done with them.

    overlap     least share of a window that it has in common with the next
    steps       from window to window: "even", or "fixed" as MONAI has them, but for the last, which
                ends at the border
    blending    weights of a window's scores where windows overlap: a Gaussian about the middle,
                constant, or nnU-Net's Gaussian, which is about pixel size // 2 and has no floor
    mirror      axes along which a mirrored window means the same (no left and right organs among
                the structures): test-time mirroring is allowed along these alone; slices are those
                of a 3D window
    skip_floor  windows in which every pixel is the darkest value are scored once a scan: the graph
                was seen to score a window by itself, whatever else is in the batch
    whole       slices of at most so many pixels (h, w) are scored in one pass, padded to the
                graph's `window_multiple`, where the export proved that this gives the labels of
                windows; None: in windows
    air         share of the way from a scan's darkest value to its brightest, up to which a pixel
                is air: only the box around all others is scored, and the rest is background, where
                the export proved that this changes nothing; None: all of each slice is scored
    find_first  of a 3D graph: of the windows along the slice axis, those that touch one another are
                scored first, and those between only beside one in which something was found, where
                the export proved that this gives the labels of all windows
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    overlap: Annotated[float, Field(ge=0, le=0.9)] = 0.5
    steps: Steps = "even"
    blending: Blending = "gaussian"
    mirror: tuple[MirrorAxis, ...] = ()
    skip_floor: bool = False
    whole: tuple[Pixels, Pixels] | None = None
    air: Annotated[float, Field(gt=0, lt=1)] | None = None
    find_first: bool = False

    @property
    def in_windows(self) -> Tiling:
        """The same without what was proven to leave out: windows over all of each slice."""
        return self.model_copy(update={"whole": None, "air": None})

    @property
    def in_full(self) -> Tiling:
        """The same, and every window is scored."""
        return self.model_copy(update={"find_first": False})


DEFAULT_TILING = Tiling()
