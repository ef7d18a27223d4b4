"""The picture beside the labels: the slices that hold most of them, in the card's colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.makers import MakeCard, MakeVolume

from leuda_deploy.jobs.overlay import GAP, LEGEND, TILE, draw_overlay
from leuda_deploy.scans.recipe import Recipe

SHAPE = (40, 20, 9)
RECIPE = Recipe(slice_axis="superior", spacing_mm=(3.0, 3.0), window=(16, 16))


def draw(
    path: Path, make_volume: MakeVolume, make_card: MakeCard, labels: np.ndarray
) -> np.ndarray:
    raw = np.random.default_rng(0).integers(0, 100, SHAPE).astype(np.int16)
    volume = make_volume(raw, np.diag([1.0, 1.0, 3.0, 1.0]))
    draw_overlay(path, volume, labels, make_card(recipe=RECIPE))
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture)


def test_slices_are_those_with_labels_at_their_true_aspect(
    tmp_path: Path, make_volume: MakeVolume, make_card: MakeCard
) -> None:
    labels = np.zeros(SHAPE, np.uint8)
    labels[5:30, 5:15, 3:5] = 2  # two slices
    picture = draw(tmp_path / "o.png", make_volume, make_card, labels)
    high, wide = 2 * (TILE // 2) + GAP + LEGEND, max(560, 2 * TILE + GAP)
    assert picture.shape == (high, wide, 3)
    colour = np.array(make_card().structures[1].colour)
    in_colour = (np.abs(picture.astype(int) - colour) < 12).all(axis=2)
    tile = TILE // 2
    assert not in_colour[:tile].any()  # plain above
    assert in_colour[tile + GAP : 2 * tile + GAP, :TILE].any()  # outlined below, on both slices
    assert in_colour[tile + GAP : 2 * tile + GAP, TILE + GAP : 2 * TILE + GAP].any()


def test_without_labels_the_whole_scan_is_shown(
    tmp_path: Path, make_volume: MakeVolume, make_card: MakeCard
) -> None:
    picture = draw(tmp_path / "o.png", make_volume, make_card, np.zeros(SHAPE, np.uint8))
    assert picture.shape[1] == 6 * TILE + 5 * GAP


@pytest.mark.parametrize("turned", [np.diag([-1.0, 1, 1, 1]), np.eye(4)[[1, 0, 2, 3]]])
def test_labels_lie_where_the_scan_is_bright_however_it_is_stored(
    tmp_path: Path, make_volume: MakeVolume, make_card: MakeCard, turned: np.ndarray
) -> None:
    raw = np.zeros((24, 24, 2), np.int16)
    raw[2:10, 14:22] = 100
    volume = make_volume(raw, turned)
    labels = (raw > 0).astype(np.uint8)
    draw_overlay(tmp_path / "o.png", volume, labels, make_card(recipe=RECIPE))
    with Image.open(tmp_path / "o.png") as opened:
        picture = np.asarray(opened).astype(int)
    plain, marked = picture[:TILE, :TILE], picture[TILE + GAP : 2 * TILE + GAP, :TILE]
    bright = plain.min(axis=2) > 200
    tinted = np.abs(marked - plain).max(axis=2) > 20
    rim = 8  # of resampling, and the slice's number in the corner
    assert (bright[40:] & tinted[40:]).sum() > 0.8 * bright[40:].sum()
    assert tinted[40:].sum() < bright[40:].sum() + 4 * rim * TILE
