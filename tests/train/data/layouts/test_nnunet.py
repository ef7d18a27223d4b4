"""Two datasets as nnU-Net keeps them become a cohort."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from support.command import leuda_here

from leuda_deploy.errors import InputError
from leuda_train.data.cohort import Cohort, read_cohort
from leuda_train.data.layouts.cohort_plan import write_plan
from leuda_train.data.layouts.nnunet import plan, read_dataset


def write(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values.astype(np.int16), np.diag([1.5, 1.5, 5.0, 1.0])), path)


def make_dataset(
    folder: Path,
    *,
    train: str,
    labelled: str = "",
    test: str = "",
    test_labelled: str = "",
    values: tuple[int, ...] = (1, 2),
    channels: int = 1,
    **said: Any,
) -> Path:
    """Cases are letters. `said` replaces what dataset.json says."""
    marks = np.zeros((8, 8, 4))
    marks.flat[: len(values)] = values
    for part, cases, with_labels in (("Tr", train, labelled), ("Ts", test, test_labelled)):
        for case in cases:
            for channel in range(channels):
                ramp = np.arange(256).reshape(8, 8, 4) + channel
                write(folder / f"images{part}" / f"{case}_{channel:04}.nii.gz", ramp)
        for case in with_labels:
            write(folder / f"labels{part}" / f"{case}.nii.gz", marks)
    content = {
        "channel_names": {str(n): f"C{n}" for n in range(channels)},
        "labels": {"background": 0, "liver": 1, "spleen": 2},
        "numTraining": len(train),
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(content | said))
    return folder


def roles(cohort: Cohort) -> dict[str, str]:
    names = ("source labelled", "source unlabelled", "target unlabelled", "target test")
    return {role: "".join(scan.subject for scan in cohort.role(role)) for role in names}


def made(source: Path, target: Path, out: Path, **asked: Any) -> Cohort:
    write_plan(plan(read_dataset(source), read_dataset(target), name="two", **asked), out)
    return read_cohort(out)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_dataset(tmp_path / "Dataset001_MR", train="abc", labelled="ab", test="d")


def test_folders_of_the_two_play_their_roles(source, tmp_path):
    target = make_dataset(
        tmp_path / "Dataset002_CT", train="mn", labelled="mn", test="opq", test_labelled="pq",
        channel_names={"0": "CT"},
    )  # fmt: skip
    cohort = made(source, target, tmp_path / "cohort.toml")
    assert roles(cohort) == {
        "source labelled": "ab",
        "source unlabelled": "cd",
        "target unlabelled": "mno",
        "target test": "pq",
    }
    assert cohort.structures == {"liver": 1, "spleen": 2}
    assert (cohort.spec.source.modality, cohort.spec.target.modality) == ("C0", "CT")
    assert cohort.spec.slices.spacing_mm == (1.5, 1.5)


def test_without_test_labels_the_last_training_cases_are_held_out(source, tmp_path):
    target = make_dataset(tmp_path / "Dataset002_CT", train="mnopqrstuv", labelled="mnopqrstuv")
    cohort = made(source, target, tmp_path / "cohort.toml")
    assert roles(cohort)["target test"] == "uv"
    assert all(scan.label is not None for scan in cohort.role("target unlabelled"))
    cohort = made(source, target, tmp_path / "other.toml", test=3, labelled=1)
    assert roles(cohort)["target test"] == "tuv"
    assert roles(cohort)["source labelled"] == "a"


def test_structures_are_matched_by_name_and_the_others_are_background(source, tmp_path):
    target = make_dataset(
        tmp_path / "Dataset002_CT", train="mn", labelled="n", values=(3, 6),
        labels={"background": 0, "Kidney": 3, "Liver": 6},
    )  # fmt: skip
    cohort = made(source, target, tmp_path / "cohort.toml")
    assert cohort.structures == {"liver": 1}
    assert cohort.spec.class_of_raw("source") == {2: 0, 1: 1}
    assert cohort.spec.class_of_raw("target") == {3: 0, 6: 1}
    assert "spleen, Kidney: background" in (tmp_path / "cohort.toml").read_text()


def test_a_target_without_labels_takes_the_sources_classes_and_has_no_test(source, tmp_path):
    target = make_dataset(tmp_path / "Dataset002_CT", train="mn", labels={"background": 0, "x": 1})
    cohort = made(source, target, tmp_path / "cohort.toml")
    assert cohort.structures == {"liver": 1, "spleen": 2}
    assert roles(cohort)["target test"] == ""


def test_the_older_dataset_json_is_read(tmp_path):
    folder = make_dataset(tmp_path / "Task03_Liver", train="ab", labelled="ab")
    said = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "liver", "2": "cancer"}}
    (folder / "dataset.json").write_text(json.dumps(said))
    for case in "ab":  # the Decathlon leaves _0000 out
        (folder / "imagesTr" / f"{case}_0000.nii.gz").rename(folder / "imagesTr" / f"{case}.nii.gz")
    found = read_dataset(folder)
    assert (found.modality, found.classes) == ("CT", {"liver": 1, "cancer": 2})
    assert [*found.train.images] == ["a", "b"]


def test_one_of_several_channels_is_taken_by_number(tmp_path):
    folder = make_dataset(tmp_path / "Dataset003", train="a", labelled="a", channels=2)
    with pytest.raises(InputError, match=r"2 channels .*1 C1.*--source-channel"):
        read_dataset(folder)
    found = read_dataset(folder, 1)
    assert (found.modality, found.train.images["a"].name) == ("C1", "a_0001.nii.gz")
    with pytest.raises(InputError, match="no channel 2"):
        read_dataset(folder, 2)


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ({"labels": {"background": 0, "whole tumour": [1, 2]}}, "whole tumour.*region"),
        ({"labels": {"background": 0, "liver": 1, "ignore": 2}}, "ignore"),
        ({"file_ending": ".png"}, "png"),
        ({"labels": 3}, "not as nnU-Net writes it"),
        ({"channel_names": {}}, "0 channels"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line(tmp_path, said, what):
    folder = make_dataset(tmp_path / "Dataset004", train="a", labelled="a", **said)
    with pytest.raises(InputError, match=what):
        read_dataset(folder)


def test_missing_parts_are_named(source, tmp_path):
    with pytest.raises(InputError, match=r"dataset\.json"):
        read_dataset(tmp_path)
    (source / "imagesTr" / "b_0000.nii.gz").unlink()
    with pytest.raises(InputError, match=r"b\.nii\.gz has no image b_0000"):
        read_dataset(source)
    unlike = make_dataset(
        tmp_path / "Dataset005", train="m", labelled="m", labels={"background": 0, "heart": 1}
    )
    with pytest.raises(InputError, match="no structure alike: heart and liver, spleen"):
        made(unlike, make_dataset(tmp_path / "Dataset006", train="n", labelled="n"), tmp_path / "c")


def test_the_command_writes_the_file_and_says_where(source, tmp_path):
    target = make_dataset(tmp_path / "Dataset002_CT", train="mno", labelled="o")
    out = tmp_path / "two.toml"
    done = leuda_here("cohort", "nnunet", source, target, "-o", out, "--axis", "array-2")
    assert (done.returncode, done.stdout) == (0, f"{out}\n"), done.stderr
    cohort = read_cohort(out)
    assert (cohort.spec.name, cohort.spec.slices.axis) == ("two", "array-2")
    assert roles(cohort)["target test"] == "o"
