"""figures of `leuda bench` -> one PNG: a bar of stacked phases for each engine, cold and warm."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from leuda_deploy.bench.bench import Result
from leuda_deploy.machine.files import atomic_path
from leuda_deploy.model.card import PALETTE

WIDTH, BAR, GAP, LEFT = 900, 26, 44, 16
INK, PAPER = (20, 20, 20), (255, 255, 255)


def draw_bench(path: Path, result: Result) -> None:
    """Busy seconds by phase, end to end; a black line where the warm run ended (phases overlap)."""
    rows = result["engines"]
    phases = list(dict.fromkeys(phase for row in rows for phase in row["stage_seconds"]))
    colours = {phase: PALETTE[k % len(PALETTE)] for k, phase in enumerate(phases)}
    longest = max(
        max(sum(row["stage_seconds"].values()), row["p50_seconds"], row["cold_seconds"])
        for row in rows
    )
    scale = (WIDTH - 2 * LEFT) / longest
    canvas = Image.new("RGB", (WIDTH, 70 + len(rows) * (BAR + GAP) + 30), PAPER)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=14)
    shape = "x".join(map(str, result["shape"]))
    title = f"{shape}, {result['machine']}: busy seconds by phase; | warm median, : cold"
    draw.text((LEFT, 10), title, fill=INK, font=font)
    _legend(draw, colours, font)
    for place, row in enumerate(rows):
        x, y = float(LEFT), 82 + place * (BAR + GAP)
        peak = f", {row['peak_mb']:.0f} MB" if row["peak_mb"] else ""
        text = f"{row['description']}: {row['p50_seconds']:.2f} s{peak}"
        draw.text((LEFT, y - 20), text, fill=INK, font=font)
        for phase, seconds in row["stage_seconds"].items():
            draw.rectangle((x, y, x + seconds * scale, y + BAR), fill=colours[phase])
            x += seconds * scale
        warm, cold = (LEFT + row[key] * scale for key in ("p50_seconds", "cold_seconds"))
        draw.line((warm, y - 4, warm, y + BAR + 4), fill=INK, width=3)
        for dot in range(y - 4, y + BAR + 4, 6):
            draw.line((cold, dot, cold, dot + 2), fill=INK, width=3)
    with atomic_path(path) as temporary:
        canvas.save(temporary, format="PNG")


def _legend(
    draw: ImageDraw.ImageDraw,
    colours: dict[str, tuple[int, int, int]],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    x = LEFT
    for phase, colour in colours.items():
        draw.rectangle((x, 36, x + 14, 50), fill=colour)
        draw.text((x + 20, 34), phase, fill=INK, font=font)
        x += 40 + int(draw.textlength(phase, font=font))
