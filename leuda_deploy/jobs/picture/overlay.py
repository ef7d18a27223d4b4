"""scan + labels -> one picture: slices of three planes, plain and outlined, with a legend.

title      scan, window
warning    if the scan does not look like those of training
plain      slices of the model's own plane
labelled   the same slices
across     the two other planes, labelled
legend     structures with number, millilitres and what is odd about them
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from leuda_deploy.inference.segment import volumes_ml
from leuda_deploy.jobs.picture.flags import Flag
from leuda_deploy.jobs.picture.grey_window import GreyWindow, choose_window
from leuda_deploy.jobs.picture.hatching import patch, tinted
from leuda_deploy.jobs.picture.planes import (
    PLANES,
    Plane,
    choose_slices,
    cut,
    degrees_off,
    plane_of_slices,
)
from leuda_deploy.machine.files import atomic_path
from leuda_deploy.model.card import Structure
from leuda_deploy.scans.intensity.likeness import Likeness
from leuda_deploy.scans.recipe import SliceAxis
from leuda_deploy.scans.volume import Volume

TILE = 300  # pixels, the longest side of a slice in the picture
GAP = 4  # pixels between slices
LINE = 24  # pixels, the height of a line of text
COLUMNS, ACROSS = 4, 2  # slices of the own plane, and of each other one
LEAST_SIDE = 24  # pixels; a plane that is thinner is left out
OBLIQUE_DEGREES = 10
DARK, WHITE, GREY = (18, 18, 18), (255, 255, 255), (170, 170, 170)
WARNING, ON_WARNING = (240, 180, 0), (0, 0, 0)
BARS_MM = (200, 100, 50, 20, 10, 5, 2, 1)  # lengths of a scale bar
Draw = ImageDraw.ImageDraw
Colour = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What is drawn.

    labels      (X, Y, Z) class numbers on the volume's grid
    structures  names and colours of the classes
    modality    chooses the window; "" if it is not known
    slice_axis  the model's own plane
    likeness    to the scans of training; None: not known
    flags       what is odd about a structure
    regions     of structures that overlap, see `Segmentation.regions`; None: they do not
    """

    volume: Volume
    labels: NDArray[np.uint8]
    structures: Sequence[Structure]
    modality: str = ""
    slice_axis: SliceAxis = "superior"
    likeness: Likeness | None = None
    flags: Sequence[Flag] = ()
    regions: NDArray[np.uint8] | None = None


def draw_overlay(path: Path | str, shown: Shown) -> None:
    """Write the picture as PNG."""
    with atomic_path(path) as temporary:
        overlay(shown).save(temporary, format="PNG")


def overlay(shown: Shown) -> Image.Image:
    """The picture."""
    window = choose_window(shown.volume, shown.labels, shown.modality)
    own = plane_of_slices(shown.volume, shown.slice_axis)
    tiles = Tiles(shown.structures, window, shown.volume, TILE)
    rows: list[list[Image.Image]] = []
    main = cut(shown.volume, shown.labels, own)
    chosen = _chosen(main, shown, COLUMNS)
    for labelled in (False, True) if shown.labels.any() else (False,):
        rows.append([tiles(main, index, labelled=labelled, bar=not labelled) for index in chosen])
    across: list[Image.Image] = []
    for name in PLANES:
        if name != own:
            plane = cut(shown.volume, shown.labels, name)
            if min(tiles.size(plane)) >= LEAST_SIDE:
                across += [tiles(plane, k) for k in _chosen(plane, shown, ACROSS)]
    rows.append(across)
    return _put_together(rows, shown, window)


def _chosen(plane: Plane, shown: Shown, count: int) -> list[int]:
    classes = [structure.value for structure in shown.structures]
    return choose_slices(plane.labels, classes, min(count, len(plane.labels)))


def _put_together(rows: list[list[Image.Image]], shown: Shown, window: GreyWindow) -> Image.Image:
    widths = [sum(tile.width + GAP for tile in row) - GAP for row in rows if row]
    heights = [max(tile.height for tile in row) + GAP for row in rows if row]
    width = max([*widths, 640])
    below = legend(shown, width)
    warned = shown.likeness is not None and not shown.likeness.fits
    head = LINE * (2 if warned else 1) + 2 * GAP
    canvas = Image.new("RGB", (width, head + sum(heights) + below.height), DARK)
    draw = ImageDraw.Draw(canvas)
    title = f"{_printable(shown.volume.name)}    grey: {window}"
    turned = degrees_off(shown.volume)
    if turned > OBLIQUE_DEGREES:
        title += f"    oblique by {turned:.0f}°: planes are the scan's own"
    draw.text((8, 4), _cut(draw, title, width - 16), fill=WHITE, font=_font(15))
    if warned:
        draw.rectangle((0, LINE + 2, width, 2 * LINE + 2), fill=WARNING)
        warning = f"Does not look like the scans of training: {shown.likeness}"
        draw.text((8, LINE + 5), _cut(draw, warning, width - 16), fill=ON_WARNING, font=_font(14))
    y = head
    for row, height in zip((row for row in rows if row), heights, strict=True):
        x = 0
        for tile in row:
            canvas.paste(tile, (x, y))
            x += tile.width + GAP
        y += height
    canvas.paste(below, (0, y))
    return canvas


def legend(shown: Shown, width: int) -> Image.Image:
    """The structures in as many columns as fit: mark, pattern, name, millilitres, what is odd."""
    entries = list(_legend(shown))
    ruler = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    widest = max(
        (ruler.textlength(f"{text} {odd}", font=_font(15)) for _, text, odd in entries), default=0
    )
    columns = max(1, int(width // max(300, widest + 92)))
    lines = -(-len(entries) // columns)
    strip = Image.new("RGB", (width, lines * LINE + 2 * GAP), DARK)
    draw = ImageDraw.Draw(strip)
    for at, (structure, text, odd) in enumerate(entries):
        x, line = 8 + (at % columns) * (width // columns), GAP + (at // columns) * LINE
        _mark(draw, (x, line), structure)
        strip.paste(patch(structure), (x + 22, line))
        draw.text((x + 58, line), text, fill=WHITE, font=_font(15))
        behind = x + 64 + draw.textlength(text, font=_font(15))
        draw.text((behind, line + 1), odd, fill=WARNING, font=_font(14))
    return strip


def _legend(shown: Shown) -> list[tuple[Structure, str, str]]:
    """A structure, its name and millilitres, and what is odd about it."""
    top = max((structure.value for structure in shown.structures), default=0)
    names = [str(value) for value in range(1, top + 1)]
    millilitres = volumes_ml(shown.labels, shown.volume, names, shown.regions)
    return [
        (
            structure,
            f"{_printable(structure.name)} {millilitres[str(structure.value)]:,.1f} mL",
            ", ".join(flag.flag for flag in shown.flags if flag.structure == structure.name),
        )
        for structure in shown.structures
    ]


class Tiles:
    """Slices of one scan, drawn in one window; a plane's slices all in one scale."""

    def __init__(
        self, structures: Sequence[Structure], window: GreyWindow, volume: Volume, side: int
    ) -> None:
        self.structures, self.window, self.volume, self.side = structures, window, volume, side

    def scale(self, plane: Plane) -> float:
        """Pixels a millimetre."""
        return self.side / max(plane.size_mm)

    def size(self, plane: Plane) -> tuple[int, int]:
        """Width and height in pixels."""
        height_mm, width_mm = plane.size_mm
        scale = self.scale(plane)
        return max(1, round(width_mm * scale)), max(1, round(height_mm * scale))

    def __call__(
        self, plane: Plane, index: int, *, labelled: bool = True, bar: bool = True
    ) -> Image.Image:
        """One slice with letters, number and scale bar."""
        size = self.size(plane)
        values = np.asarray(plane.values[index], dtype=np.float32)
        values = values * np.float32(self.volume.slope) + np.float32(self.volume.inter)
        # resampled in grey, so that no overshoot leaves the range
        tile = Image.fromarray(self.window(values).astype(np.uint8))
        tile = tile.resize(size, Image.Resampling.BICUBIC).convert("RGB")
        draw = ImageDraw.Draw(tile)
        if labelled:
            labels = Image.fromarray(np.ascontiguousarray(plane.labels[index]))
            marked = np.asarray(labels.resize(size, Image.Resampling.NEAREST))
            tile = Image.fromarray(tinted(np.asarray(tile), marked, self.structures))
            draw = ImageDraw.Draw(tile)
            _number(draw, marked, self.structures)
        _letters(draw, size, plane.edges)
        _outlined(draw, (4, 2), f"{plane.name} {index + 1}/{len(plane.values)}", GREY, 12)
        if bar:
            _scale_bar(draw, size, self.scale(plane))
        return tile


def _number(draw: Draw, labels: NDArray[np.uint8], structures: Sequence[Structure]) -> None:
    """Each structure's number on its largest patch: colours alone are not told apart by all."""
    for structure in structures:
        patches, count = ndimage.label(labels == structure.value)
        if count:
            largest = patches == 1 + np.bincount(patches.ravel())[1:].argmax()
            # the point furthest from the rim; a centre of mass may lie outside
            depth = ndimage.distance_transform_edt(np.pad(largest, 1))[1:-1, 1:-1]
            row, column = np.unravel_index(int(depth.argmax()), depth.shape)
            if depth.max() >= 6:
                _outlined(draw, (int(column), int(row)), str(structure.value), WHITE, 12, "mm")


def _letters(draw: Draw, size: tuple[int, int], edges: tuple[str, str, str, str]) -> None:
    width, height = size
    top, bottom, left, right = edges
    # a low picture has no room for letters above and below
    if height >= 4 * LINE:
        _outlined(draw, (width // 2, 3), top, WHITE, 13, "mt")
        _outlined(draw, (width // 2, height - 3), bottom, WHITE, 13, "mb")
    _outlined(draw, (3, height // 2), left, WHITE, 13, "lm")
    _outlined(draw, (width - 3, height // 2), right, WHITE, 13, "rm")


def _scale_bar(draw: Draw, size: tuple[int, int], scale: float) -> None:
    """The longest of the usual lengths that fits into a third of the width."""
    width, height = size
    length = next((mm for mm in BARS_MM if mm * scale <= width / 3), None)
    if length is None or height < 2 * LINE:
        return
    right, y = width - 8, height - 8
    left = right - round(length * scale)
    draw.line((left - 1, y, right + 1, y), fill=DARK, width=5)
    draw.line((left, y, right, y), fill=WHITE, width=3)
    _outlined(draw, (right, y - 4), f"{length} mm", WHITE, 12, "rb")


def draw_line(canvas: Image.Image, at: tuple[int, int], text: str) -> None:
    """Write a line of text over a picture."""
    ImageDraw.Draw(canvas).text(at, text, fill=WHITE, font=_font(14))


def _mark(draw: Draw, at: tuple[int, int], structure: Structure) -> None:
    """A square in the structure's colour, with its number in it."""
    x, y = at
    draw.rectangle((x, y, x + 18, y + 18), fill=structure.colour)
    dark = sum(structure.colour) > 3 * 110
    number = str(structure.value)
    draw.text((x + 9, y + 9), number, fill=DARK if dark else WHITE, font=_font(13), anchor="mm")


def _outlined(
    draw: Draw, at: tuple[int, int], text: str, colour: Colour, size: int, anchor: str = "la"
) -> None:
    draw.text(
        at, text, fill=colour, font=_font(size), anchor=anchor, stroke_width=2, stroke_fill=DARK
    )


def _cut(draw: Draw, text: str, width: int) -> str:
    """As much of a line as fits."""
    length: Callable[[str], float] = lambda some: draw.textlength(some, font=_font(15))
    if length(text) <= width:
        return text
    while text and length(text + "...") > width:
        text = text[:-1]
    return text + "..."


def _printable(text: str) -> str:
    """One short line: names come from files."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:80])


def _font(size: int) -> Any:
    return ImageFont.load_default(size=size)
