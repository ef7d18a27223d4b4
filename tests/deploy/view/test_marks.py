"""Marks in a CSV file: kept, changed, taken back, never over somebody else's file."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from support.view_files import write_case

from leuda_deploy.errors import InputError
from leuda_deploy.view.marks import FIELDS, Marks
from leuda_deploy.view.scene import make_scene


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_marks_are_kept_changed_and_taken_back(tmp_path: Path) -> None:
    one, two = (make_scene(write_case(tmp_path, name)) for name in ("one", "two, with a comma"))
    path = tmp_path / "marks.csv"
    marks = Marks(path)
    assert not path.exists()  # nothing was marked yet
    marks.set(one, "ok")
    marks.set(two, "look again")
    again = Marks(path)  # another session
    assert (again.of(one), again.of(two)) == ("ok", "look again")
    again.set(one, "look again")
    again.set(two, None)
    assert [(row["scan"], row["mark"]) for row in rows(path)] == [(str(one.scan), "look again")]
    assert tuple(rows(path)[0]) == FIELDS


def test_rows_of_other_scans_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "marks.csv"
    path.write_text(",".join(FIELDS) + "\nelsewhere.nii.gz,,,ok,2026-01-01\n")
    Marks(path).set(make_scene(write_case(tmp_path)), "ok")
    assert {row["scan"] for row in rows(path)} == {
        "elsewhere.nii.gz",
        str(tmp_path / "case.nii.gz"),
    }


def test_a_file_that_is_no_list_of_marks_stays(tmp_path: Path) -> None:
    path = tmp_path / "marks.csv"
    head = ",".join(FIELDS)
    for text in ("patient,age\n1,50\n", "", "\x00\x01", f"{head}\na,,,ok,2026,more\n"):
        path.write_text(text)
        with pytest.raises(InputError):
            Marks(path)
        assert path.read_text() == text


def test_a_mark_is_one_of_two_words(tmp_path: Path) -> None:
    scene = make_scene(write_case(tmp_path))
    with pytest.raises(ValueError, match="look again"):
        Marks(tmp_path / "marks.csv").set(scene, "fine")
    assert not (tmp_path / "marks.csv").exists()
