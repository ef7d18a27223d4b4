"""docs/how-to/dicom.md -> each of its commands, run on a study such as it speaks of."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import nrrd
import numpy as np
import pytest
from support.command import leuda_here
from support.makers import MakeModel

pytest.importorskip("pydicom", reason="the dicom extra is not installed")

from support.dicom_series import even, make_slices, smooth, write_images

PAGE = Path(__file__).parents[4] / "docs" / "how-to" / "dicom.md"
BLOCKS = re.compile(r"^<!-- test: study -->\n```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
VALUES = smooth((20, 24, 20))


@pytest.fixture
def place(tmp_path: Path, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study of which series 3 is tilted, series 4 has two phases; its zip; rules; two scans."""
    model = make_model(tmp_path / "made")
    (tmp_path / "exports" / "first").mkdir(parents=True)
    shutil.copy(model, tmp_path / "exports" / "first" / "model.onnx")
    study = tmp_path / "study"
    study.mkdir()
    said = {"SeriesNumber": 3, "SeriesDescription": "Portal", "ContrastBolusAgent": "iodine"}
    write_images(study / "a", make_slices(VALUES, even(20, tilt_degrees=10), "1.2.51", **said))
    phases = [
        image
        for time in (0.0, 50.0)
        for image in make_slices(VALUES[:3], even(3), "1.2.52", SeriesNumber=4, TriggerTime=time)
    ]
    for number, image in enumerate(phases, start=1):
        image.InstanceNumber = number
    write_images(study / "b", phases)
    shutil.make_archive(str(study), "zip", study)
    (rules,) = re.findall(r"^```toml\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "rules.toml").write_text(rules)
    header = {"space": "LPS", "space directions": np.diag([1.0, 1, 3]), "space origin": [0, 0, 0]}
    nrrd.write(str(tmp_path / "scan.nrrd"), VALUES.T, header)
    head = "NDims = 3\nDimSize = 20 24 20\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    (tmp_path / "scan.mha").write_bytes(head.encode() + VALUES.astype("<i2").tobytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_commands_of_the_page_do_what_they_say(place: Path) -> None:
    blocks = BLOCKS.findall(PAGE.read_text())
    commands = [line for block in blocks for line in block.splitlines()]
    assert len(commands) == 9
    for command in commands:
        done = leuda_here(*shlex.split(command, comments=True)[1:])
        assert done.returncode == (2 if "--strict" in command else 0), f"{command}\n{done.stderr}"
    names = ("labels/study_labels", "by-rules/study_labels")
    by_hand, by_rules = ((place / f"{name}.nii.gz").read_bytes() for name in names)
    assert by_hand == by_rules
    assert len(list((place / "phases").glob("*.nii.gz"))) == 2
    slicer = nrrd.read(str(place / "labels.seg.nrrd"))[0]
    np.testing.assert_array_equal(slicer, nrrd.read(str(place / "slicer/scan_labels.seg.nrrd"))[0])
    assert nib.load(place / "labels/study_labels.nii.gz").shape[2] == 20
    assert not (place / "strict").exists()


def test_the_example_of_the_page_gives_labels_of_the_scanners_slices(place: Path) -> None:
    (example,) = re.findall(
        r"^<!-- test: study -->\n```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL
    )
    names: dict[str, Any] = {}
    exec(example.replace("series.on_slices(labels)", "own = series.on_slices(labels)"), names)
    assert names["own"].shape == (VALUES.shape[2], VALUES.shape[1], 20)
