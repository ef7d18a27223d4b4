"""Labels of a DICOM series go back as a SEG that refers to it."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from support.command import leuda_here
from support.makers import MakeCard, MakeModel

from leuda_deploy.errors import InputError

pytest.importorskip("pydicom", reason="the dicom extra is not installed")
highdicom = pytest.importorskip("highdicom", reason="the dicom extra is not installed")

from support.dicom_series import COLUMNS, DEPTH, ROWS, VALUES, make_series, write_images  # noqa: E402

from leuda_deploy.jobs.dicom_seg import write_dicom_seg  # noqa: E402
from leuda_deploy.scans.dicom import read_series  # noqa: E402


def test_seg_refers_to_the_series_and_lies_on_it(tmp_path: Path, make_card: MakeCard) -> None:
    found = read_series(write_images(tmp_path / "s", make_series()))
    labels = np.zeros(found.volume.raw.shape, np.uint8)
    labels[found.volume.raw > 50], labels[found.volume.raw > 100] = 1, 2
    write_dicom_seg(tmp_path / "seg.dcm", labels, found, make_card())
    seg = highdicom.seg.segread(tmp_path / "seg.dcm")
    assert seg.StudyInstanceUID == "1.2.3"
    assert seg.FrameOfReferenceUID == "1.2.4"
    assert [s.segment_label for s in (seg.get_segment_description(k) for k in (1, 2))] == [
        "grey",
        "bright",
    ]
    uids = [
        image.SOPInstanceUID for image in sorted(found.datasets, key=lambda d: d.InstanceNumber)
    ]
    back = seg.get_pixels_by_source_instance(uids, combine_segments=True)
    np.testing.assert_array_equal(back, np.select([VALUES > 100, VALUES > 50], [2, 1], 0))
    with pytest.raises(InputError):  # the format has no way to say that nothing was found
        write_dicom_seg(tmp_path / "none.dcm", labels * np.uint8(0), found, make_card())
    assert not (tmp_path / "none.dcm").exists()


def test_infer_reads_a_series_and_writes_seg(tmp_path: Path, make_model: MakeModel) -> None:
    (tmp_path / "in").mkdir()
    write_images(tmp_path / "in" / "a", make_series())
    model = make_model(tmp_path / "model")
    asked = ["--model", str(model), "--engine", "ort-cpu", "--batch", "4", "--no-overlay"]

    def infer(*arguments: object) -> int:
        return leuda_here("infer", *arguments, *asked).returncode

    out, seg = tmp_path / "l.nii.gz", tmp_path / "seg.dcm"
    assert infer(tmp_path / "in" / "a", "-o", out, "--dicom-seg", seg) == 0
    assert nib.load(out).shape == (COLUMNS, ROWS, DEPTH)
    assert highdicom.seg.segread(seg).number_of_segments == 2
    assert infer(tmp_path / "in", "-o", tmp_path / "out") == 0  # a folder of series
    np.testing.assert_array_equal(
        np.asarray(nib.load(out).dataobj),
        np.asarray(nib.load(tmp_path / "out" / "a_labels.nii.gz").dataobj),
    )
    assert infer(out, "-o", tmp_path / "x.nii.gz", "--dicom-seg", seg) == 2  # no series
