"""scan + labels -> one PNG: the slices that hold most of the labels, outlined and tinted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from leuda_deploy.machine.files import atomic_path
from leuda_deploy.model.card import ModelCard
from leuda_deploy.scans.stack import Stack
from leuda_deploy.scans.volume import Volume

TILE = 320  # pixels, the longer side of a slice in the picture
GAP = 4  # pixels between pictures
LEGEND = 40  # pixels, its height
TINT = 0.35
DARK, WHITE = (18, 18, 18), (255, 255, 255)


def draw_overlay(
    path: Path | str, volume: Volume, labels: NDArray[np.uint8], card: ModelCard, *, tiles: int = 6
) -> None:
    """Write a PNG: raw slices above, the same slices with the labels (X, Y, Z) below, a legend.

    Slices are evenly spread over the labelled extent (over the whole scan if nothing is labelled)
    and shown at their true aspect ratio.
    """
    recipe = card.recipe.model_copy(update={"spacing_mm": "native"})
    stack = Stack(volume, recipe)
    on_scan = stack.of_scan(labels)  # (D, H, W)
    covered = [d for d in range(stack.depth) if on_scan[d].any()]
    first, last = (covered[0], covered[-1]) if covered else (0, stack.depth - 1)
    chosen = np.unique(np.linspace(first, last, min(tiles, last - first + 1)).round().astype(int))
    columns = [_column(stack, int(d), on_scan[d], card) for d in chosen]
    width = sum(column.width for column in columns) + GAP * (len(columns) - 1)
    canvas = Image.new("RGB", (max(width, 560), columns[0].height + LEGEND), DARK)
    x = 0
    for column in columns:
        canvas.paste(column, (x, 0))
        x += column.width + GAP
    _legend(canvas, card)
    with atomic_path(path) as temporary:
        canvas.save(temporary, format="PNG")


def _column(stack: Stack, index: int, label: NDArray[np.uint8], card: ModelCard) -> Image.Image:
    """One slice twice: plain above, with labels (H, W) below."""
    image = stack.images(index, index + 1)[0]
    low, high = stack.intensity.floor, stack.intensity.ceiling
    grey = np.clip((image - low) / (high - low), 0, 1) * 255
    plain = np.repeat(grey[..., None], 3, axis=2)
    tinted = plain.copy()
    for structure in card.structures:
        mask = label == structure.value
        rim = mask & ~_inner(mask)
        colour = np.asarray(structure.colour, dtype=np.float64)
        tinted[mask] = (1 - TINT) * tinted[mask] + TINT * colour
        tinted[rim] = colour
    height_mm = image.shape[0] * stack.plane_spacing_mm[0]
    width_mm = image.shape[1] * stack.plane_spacing_mm[1]
    scale = TILE / max(height_mm, width_mm)
    size = (max(1, round(width_mm * scale)), max(1, round(height_mm * scale)))
    column = Image.new("RGB", (size[0], 2 * size[1] + GAP), DARK)
    for row, picture in enumerate((plain, tinted)):
        tile = Image.fromarray(picture.astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
        column.paste(tile, (0, row * (size[1] + GAP)))
    ImageDraw.Draw(column).text((4, 2), f"slice {index}", fill=WHITE, font=_font())
    return column


def _inner(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels whose four neighbours are in the mask too."""
    padded = np.pad(mask, 1)
    inner: NDArray[np.bool_] = (
        padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    )
    return inner


def _legend(canvas: Image.Image, card: ModelCard) -> None:
    draw, x, y = ImageDraw.Draw(canvas), 8, canvas.height - 30
    for structure in card.structures:
        draw.rectangle((x, y, x + 18, y + 18), fill=structure.colour)
        draw.text((x + 24, y), structure.name, fill=WHITE, font=_font())
        x += 44 + int(draw.textlength(structure.name, font=_font()))


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=15)
