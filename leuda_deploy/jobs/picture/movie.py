"""scan + labels -> a short movie: the labelled slices of the own plane, one after another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from leuda_deploy.jobs.picture.grey_window import choose_window
from leuda_deploy.jobs.picture.overlay import Shown, Tiles, legend
from leuda_deploy.jobs.picture.planes import cut, plane_of_slices
from leuda_deploy.machine.files import atomic_path

FRAMES, FRAME_MS, TILE = 60, 120, 360


def write_movie(path: Path | str, shown: Shown) -> None:
    """Write the slices of the own plane one after another, over the legend: *.gif or *.webp.

    Those that hold structures, and a few around them; at most FRAMES, evenly spread.
    """
    window = choose_window(shown.volume, shown.labels, shown.modality)
    plane = cut(shown.volume, shown.labels, plane_of_slices(shown.volume, shown.slice_axis))
    tiles = Tiles(shown.structures, window, shown.volume, TILE)
    found = np.flatnonzero([slice_.any() for slice_ in plane.labels])
    last = len(plane.labels) - 1
    first, last = (max(0, found[0] - 2), min(last, found[-1] + 2)) if len(found) else (0, last)
    chosen = np.unique(np.linspace(first, last, min(FRAMES, last - first + 1)).round().astype(int))
    width, height = tiles.size(plane)
    below = legend(shown, max(TILE, width))
    frames = []
    for index in chosen.tolist():
        frame = Image.new("RGB", (below.width, height + below.height))
        frame.paste(tiles(plane, index), (0, 0))
        frame.paste(below, (0, height))
        frames.append(frame)
    kind = Path(path).suffix.lower().lstrip(".")
    with atomic_path(path) as temporary:
        frames[0].save(
            temporary, format=kind.upper(), save_all=True, append_images=frames[1:],
            duration=FRAME_MS, loop=0,
        )  # fmt: skip
