"""Trainings in lanes: the same as one after the other, and no lane outlives another's end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support import tiny

from leuda_deploy.errors import InputError
from leuda_train.data.cohort import read_cohort
from leuda_train.runs.side_by_side import STEPS, Training, train_lanes

pytestmark = pytest.mark.slow
WORK = {"translation": 3.0, "first": 2.0, "second": 1.0, "test scans": 0.5}


def training(folder: Path, method: str, cohort: Path) -> Training:
    config = tiny.config(method=method, schedule={"epochs": 2}, translation={"steps": 4})
    return Training(
        cohort=read_cohort(cohort), config=config, out=folder / method, cache=folder / "cache"
    )


def test_two_lanes_train_what_one_does(tmp_path):
    cohort = tiny.write_tiny_cohort(tmp_path / "cohort")
    together = [[training(tmp_path / "two", name, cohort)] for name in ("first", "second")]
    alone = [[training(tmp_path / "one", name, cohort) for name in ("first", "second")]]
    told: dict[str, list[tuple[int, int, str]]] = {"two": [], "one": []}
    two = train_lanes(together, WORK, lambda *heard: told["two"].append(heard))
    one = train_lanes(alone, WORK, lambda *heard: told["one"].append(heard))
    assert set(two) == set(one) == {"first", "second"}
    for method in one:
        assert two[method]["volumes"] == one[method]["volumes"]
    for heard in told.values():
        done = [share for share, _, _ in heard]
        assert done == sorted(done)
        assert done[-1] == STEPS
    assert any("first" in note and "second" in note for _, _, note in told["two"])
    assert all(";" not in note for _, _, note in told["one"])


def test_an_error_in_a_lane_ends_all_and_says_which(tmp_path):
    cohort = tiny.write_tiny_cohort(tmp_path / "cohort")
    good = training(tmp_path, "first", cohort)
    other = training(tmp_path, "second", cohort)
    train_lanes([[good]], WORK, lambda *heard: None)
    # the folder holds a run of another config: that is refused in the lane
    wrong = replace(good, config=tiny.config(method="first", schedule={"epochs": 3}))
    with pytest.raises(InputError, match="first"):
        train_lanes([[wrong], [other]], WORK, lambda *heard: None)
