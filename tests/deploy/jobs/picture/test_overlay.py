"""The picture beside the labels: where structures are, in the card's colours, however stored."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from support.command import leuda_here
from support.makers import MakeCard, MakeVolume

from leuda_deploy.jobs.picture.flags import Flag, flags_of
from leuda_deploy.jobs.picture.grey_window import SOFT_TISSUE, choose_window
from leuda_deploy.jobs.picture.hatching import tinted
from leuda_deploy.jobs.picture.movie import write_movie
from leuda_deploy.jobs.picture.overlay import (
    GAP,
    LINE,
    TILE,
    WARNING,
    Shown,
    draw_overlay,
)
from leuda_deploy.jobs.picture.planes import choose_slices, cut, degrees_off, plane_of_slices
from leuda_deploy.jobs.picture.shown_files import read_shown
from leuda_deploy.model.card import Structure
from leuda_deploy.scans.intensity.likeness import Likeness
from leuda_deploy.view.scene import read_class_values

SHAPE = (40, 20, 9)
HEAD = LINE + 2 * GAP
COLOUR = (230, 159, 0)
STRUCTURES = (
    Structure(name="a", value=1, colour=(86, 180, 233)),
    Structure(name="b", value=2, colour=COLOUR),
)


def shown(make_volume: MakeVolume, labels: np.ndarray, **other: object) -> Shown:
    raw = np.random.default_rng(0).integers(0, 100, labels.shape).astype(np.int16)
    volume = make_volume(raw, np.diag([1.0, 1.0, 3.0, 1.0]))
    return Shown(volume=volume, labels=labels, structures=STRUCTURES, **other)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def near(picture: np.ndarray, colour: tuple[int, int, int], within: int = 12) -> np.ndarray:
    return (np.abs(picture - np.array(colour)) < within).all(axis=2)


def test_the_rows_are_plain_labelled_and_across(tmp_path: Path, make_volume: MakeVolume) -> None:
    labels = np.zeros(SHAPE, np.uint8)
    labels[5:30, 5:15, 3:5] = 2  # two slices, 40 x 20 mm each
    draw_overlay(tmp_path / "o.png", shown(make_volume, labels))
    found = near(pixels(tmp_path / "o.png"), COLOUR)
    row = TILE // 2 + GAP
    assert not found[:HEAD].any()
    assert not found[HEAD : HEAD + row].any()  # plain
    labelled = found[HEAD + row : HEAD + 2 * row]
    assert labelled[:, :TILE].any()  # both slices
    assert labelled[:, TILE + GAP : 2 * TILE + GAP].any()
    assert found[HEAD + 2 * row : -2 * LINE].any()  # the other planes
    assert found[-2 * LINE :].any()  # the legend


def test_nothing_found_is_one_row_of_slices_over_the_whole_scan(
    tmp_path: Path, make_volume: MakeVolume
) -> None:
    nothing = shown(make_volume, np.zeros(SHAPE, np.uint8))
    draw_overlay(tmp_path / "o.png", nothing)
    picture = pixels(tmp_path / "o.png")
    assert picture.shape[1] == 4 * TILE + 3 * GAP
    assert not near(picture[: -2 * LINE], COLOUR).any()
    assert choose_slices(nothing.labels.T, [1, 2], 3) == [1, 4, 7]


def test_a_scan_unlike_those_of_training_has_a_warning_band(
    tmp_path: Path, make_volume: MakeVolume
) -> None:
    labels = np.zeros(SHAPE, np.uint8)
    likenesses = {
        fits: Likeness(fits=fits, z=9.0, figure="median", value=0.1, usual=0.9)
        for fits in (True, False)
    }
    for fits, like in likenesses.items():
        draw_overlay(tmp_path / "o.png", shown(make_volume, labels, likeness=like))
        band = near(pixels(tmp_path / "o.png")[LINE : 2 * LINE], WARNING).mean()
        assert (band > 0.5) is not fits


@pytest.mark.parametrize("turned", [np.diag([-1.0, 1, 1, 1]), np.eye(4)[[1, 0, 2, 3]], np.eye(4)])
@pytest.mark.parametrize("name", ["axial", "coronal", "sagittal"])
def test_planes_are_turned_alike_however_a_scan_is_stored(
    make_volume: MakeVolume, turned: np.ndarray, name: str
) -> None:
    """A voxel at the patient's right, front and top lies there in every picture."""
    shape = np.array([8, 9, 10])
    corners = np.array([[i, j, k] for i in (0, 7) for j in (0, 8) for k in (0, 9)])
    world = corners @ turned[:3, :3].T
    best = corners[np.argmax(world @ [-1, 1, 1])]  # RAS+: x grows to the left's opposite, so -x
    labels = np.zeros(shape, np.uint8)
    labels[tuple(best)] = 1
    plane = cut(make_volume(labels.astype(np.int16), turned), labels, name)
    depth, row, column = np.argwhere(plane.labels)[0]
    seen = {
        plane.edges[0 if row == 0 else 1],
        plane.edges[2 if column == 0 else 3],
    }
    assert seen == {"axial": {"A", "L"}, "coronal": {"S", "L"}, "sagittal": {"S", "A"}}[name]
    assert np.array_equal(plane.values, plane.labels)
    assert depth in (0, len(plane.labels) - 1)


def test_the_own_plane_of_array_slices_and_of_oblique_scans(
    make_volume: MakeVolume, oblique_affine
) -> None:
    raw = np.zeros((4, 5, 6), np.int16)
    turned = make_volume(raw, np.eye(4)[[2, 1, 0, 3]])  # array axis 0 is superior
    assert plane_of_slices(turned, "array-0") == "axial"
    assert plane_of_slices(turned, "array-2") == "sagittal"
    assert plane_of_slices(turned, "anterior") == "coronal"
    assert degrees_off(turned) == 0
    assert degrees_off(make_volume(raw, oblique_affine((1, 1, 1)))) == pytest.approx(22.3, abs=0.1)


def test_every_structure_is_shown_however_small() -> None:
    labels = np.zeros((50, 20, 20), np.uint8)
    labels[10:40] = 1
    labels[3, 5, 5] = 2  # one voxel, far from all else
    chosen = choose_slices(labels, [1, 2], 4)
    assert 3 in chosen
    assert len(chosen) == 4
    assert max(chosen) > 25


def test_windows_show_the_organs(make_volume: MakeVolume) -> None:
    rng = np.random.default_rng(0)
    hu = rng.normal(40, 15, (30, 30, 5))
    hu[:5] = -1000
    labels = np.zeros(hu.shape, np.uint8)
    labels[10:20] = 1
    ct = make_volume(hu.astype(np.int16))
    soft = choose_window(ct, labels, "CT")
    assert (soft.low, soft.high) == SOFT_TISSUE
    hu[10:20] += 300  # contrast
    bright = choose_window(make_volume(hu.astype(np.int16)), labels, "CT")
    assert bright.low == SOFT_TISSUE[0]
    assert 350 < bright.high < 450
    mr = rng.normal(500, 20, hu.shape)
    mr[:5], mr[25:] = 0, 5000  # air, and what is far brighter than the organ
    own = choose_window(make_volume(mr.astype(np.int16)), labels, "MR")
    assert 350 < own.low < 480
    assert 520 < own.high < 650
    grey = own(np.array([0, 500, 5000, np.nan], np.float32))
    assert grey.tolist()[::2] == [0, 255]
    assert 80 < grey[1] < 180
    assert grey[3] == 0


def test_structures_are_told_apart_without_colour() -> None:
    """Printed in one ink, no two of seven look alike, on dark or on bright tissue."""
    for grey in (20, 200):
        picture = np.full((60, 60, 3), grey, np.uint8)
        seen = []
        for value in range(1, 8):
            labels = np.full((60, 60), value, np.uint8)
            one = Structure(name="x", value=value, colour=(128, 128, 128))
            seen.append(tinted(picture, labels, [one])[5:-5, 5:-5, 0].astype(int))
        for k, one in enumerate(seen):
            for other in seen[k + 1 :]:
                assert (np.abs(one - other) > 20).mean() > 0.01


def test_flags_are_facts_about_structures(make_card: MakeCard) -> None:
    labels = np.zeros((6, 6, 6), np.uint8)
    assert flags_of(labels, STRUCTURES, 0.001) == [
        Flag(structure=name, flag="not found") for name in ("a", "b")
    ]
    labels[2:4, 2:4, 2:4], labels[5, 1, 1] = 1, 2
    assert flags_of(labels, STRUCTURES, 0.001) == [
        Flag(structure="b", flag="cut by the border of the scan")
    ]


@pytest.mark.parametrize("kind", ["gif", "webp"])
def test_a_movie_has_the_labelled_slices(
    tmp_path: Path, make_volume: MakeVolume, kind: str
) -> None:
    labels = np.zeros((20, 20, 30), np.uint8)
    labels[5:15, 5:15, 10:16] = 2
    write_movie(tmp_path / f"m.{kind}", shown(make_volume, labels))
    with Image.open(tmp_path / f"m.{kind}") as movie:
        assert movie.format == kind.upper()
        assert movie.n_frames == 10  # six, and two around them
        movie.seek(5)
        frame = np.asarray(movie.convert("RGB")).astype(int)
        drawn, legend = frame[:-LINE], frame[-LINE:]
        assert near(drawn, COLOUR, within=60).sum() > 50  # lossy, and few colours
        assert near(legend, COLOUR, within=60).sum() > 50


def test_the_command_draws_any_label_values(tmp_path: Path, scan_file: Path) -> None:
    scan = nib.load(scan_file)
    values = np.zeros(scan.shape, np.int16)
    values[5:15, 5:30, 2:4] = 420
    labels = tmp_path / "labels.nii.gz"
    nib.save(nib.Nifti1Image(values, scan.affine), labels)
    done = leuda_here("picture", scan_file, labels, "-o", tmp_path / "p.png")
    assert done.returncode == 0, done.stderr
    assert near(pixels(tmp_path / "p.png"), COLOUR).sum() > 100  # the palette's first
    classes = tmp_path / "cohort.toml"
    classes.write_text("[classes]\nliver = 420\n")
    named = read_shown(scan_file, labels, class_values=read_class_values(classes))
    assert [structure.name for structure in named.structures] == ["liver"]
    options = ["--classes", classes, "-o", tmp_path / "named.png"]
    assert leuda_here("picture", scan_file, labels, *options).returncode == 0
    assert (pixels(tmp_path / "named.png") != pixels(tmp_path / "p.png")).any()
    before = scan_file.read_bytes()
    for wrong in (["-o", tmp_path / "p.jpg"], ["-o", scan_file]):
        assert leuda_here("picture", scan_file, *wrong).returncode == 2
    assert scan_file.read_bytes() == before
