"""a test scan, its truth and what was predicted -> one picture of both."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from leuda_deploy.jobs.picture.grey_window import choose_window
from leuda_deploy.jobs.picture.overlay import COLUMNS, DARK, GAP, LINE, TILE, Tiles, draw_line
from leuda_deploy.jobs.picture.planes import choose_slices, cut, plane_of_slices
from leuda_deploy.model.card import PALETTE, Structure
from leuda_deploy.scans.label_map import read_label_map
from leuda_deploy.scans.volume import read_volume


def draw_case(scan: Mapping[str, Any], facts: Mapping[str, Any], predicted: Path) -> Image.Image:
    """Slices of a scan three times: plain, with the truth, with the prediction.

    Args:
        scan: An entry of scans.json.
        facts: The whole of scans.json.
        predicted: Class numbers on the scan's grid.

    Raises:
        InputError: A file cannot be read, or lies on another grid.
    """
    volume = read_volume(scan["image"])
    numbers = facts["structures"].values()
    truth = read_label_map(
        scan["label"],
        class_of_raw={int(raw): k for raw, k in facts["target_class_of_raw"].items()},
        like=volume,
    ).labels
    found = read_label_map(predicted, class_of_raw={k: k for k in numbers}, like=volume).labels
    structures = structures_of(facts)
    window = choose_window(volume, truth, facts["modality"]["target"])
    tiles = Tiles(structures, window, volume, TILE)
    name = plane_of_slices(volume, facts["slice_axis"])
    planes = {"truth": cut(volume, truth, name), "prediction": cut(volume, found, name)}
    chosen = choose_slices(planes["truth"].labels, list(numbers), COLUMNS)
    rows = [("scan", [tiles(planes["truth"], index, labelled=False) for index in chosen])]
    rows += [(what, [tiles(plane, k, bar=False) for k in chosen]) for what, plane in planes.items()]
    width = max(sum(tile.width + GAP for tile in row) for _, row in rows)
    height = sum(row[0].height + LINE + GAP for _, row in rows)
    canvas = Image.new("RGB", (width, height), DARK)
    y = 0
    for what, row in rows:
        draw_line(canvas, (6, y + 3), what)
        x, y = 0, y + LINE
        for tile in row:
            canvas.paste(tile, (x, y))
            x += tile.width + GAP
        y += row[0].height + GAP
    return canvas


def structures_of(facts: Mapping[str, Any]) -> list[Structure]:
    """The structures of scans.json, in the colours of a card."""
    return [
        Structure(name=name, value=number, colour=PALETTE[(number - 1) % len(PALETTE)])
        for name, number in facts["structures"].items()
    ]
