"""The house keeps its measure: no circle, no crowded folder, no long file without a reason."""

from __future__ import annotations

from graphlib import CycleError
from pathlib import Path

import pytest
import structure

ROOT = Path(__file__).parents[1]
MOST_ENTRIES, MOST_LINES = 10, 300
ROOT_MODULES = {"leuda_deploy": 1, "leuda_train": 0}  # errors.py stands beside the folders


@pytest.mark.parametrize("package", structure.PACKAGES)
def test_imports_have_a_direction(package: str) -> None:
    measured = structure.measure(ROOT, package)  # raises CycleError otherwise
    assert measured.rooms <= MOST_ENTRIES + ROOT_MODULES[package]
    assert measured.room_floors <= MOST_ENTRIES + 1  # the command stands on top


def test_a_circle_is_found() -> None:
    with pytest.raises(CycleError):
        structure.floors({"a": {"b"}, "b": {"c"}, "c": {"a"}})
    assert structure.floors({"a": {"b", "c"}, "b": {"c"}}) == 3


@pytest.mark.parametrize("folder", [*structure.PACKAGES, "tests", "tools", "benchmarks"])
def test_no_folder_is_crowded(folder: str) -> None:
    counts = structure.entries_by_folder(ROOT / folder)
    assert counts
    # tests of a package lie beside a folder for each of its folders
    packages = {ROOT / "tests" / "deploy", ROOT / "tests" / "train"}
    most = {ROOT / package: MOST_ENTRIES + n for package, n in ROOT_MODULES.items()}
    assert {path for path, n in counts.items() if n > most.get(path, MOST_ENTRIES)} <= packages


@pytest.mark.parametrize("package", structure.PACKAGES)
def test_a_long_file_says_why(package: str) -> None:
    lines = structure.lines_by_file(ROOT / package)
    long = [path for path, count in lines.items() if count > MOST_LINES]
    assert [path for path in long if not structure.reason_for_length(path)] == []
