"""Which files are looked at together, and in which order."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.view_files import write_case

from leuda_deploy.errors import InputError
from leuda_deploy.view.scene import find_scenes, make_scene, read_class_values


def test_labels_map_and_report_are_found_beside_the_scan(tmp_path: Path) -> None:
    scene = make_scene(write_case(tmp_path, unsure=0.25))
    assert [path.name for path in scene.labels] == ["case_labels.nii.gz"]
    assert scene.uncertainty == tmp_path / "case_uncertainty.nii.gz"
    assert scene.unsure == 0.25
    assert not scene.unlike
    assert scene.card is None  # its model is gone


def test_the_truth_of_a_cohort_is_found_by_its_name(tmp_path: Path) -> None:
    scan = write_case(tmp_path).rename(tmp_path / "x_image.nii.gz")
    (tmp_path / "case_truth.nii.gz").rename(tmp_path / "x_label.nii.gz")
    assert make_scene(scan).labels == (tmp_path / "x_label.nii.gz",)


def test_unlike_scans_come_first_then_the_unsure_then_those_without_a_report(
    tmp_path: Path,
) -> None:
    for name, unsure in (("a", 0.1), ("b", 0.9), ("c", 0.3)):
        write_case(tmp_path, name, unsure=unsure)
    assert [scene.scan.name for scene in find_scenes(tmp_path)] == [
        "b.nii.gz",
        "c.nii.gz",
        "a.nii.gz",
    ]
    assert [scene.unlike for scene in find_scenes(tmp_path)] == [True, False, False]


def test_results_that_were_moved_are_found_by_their_names(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    write_case(here)
    shutil.move(here, there)
    (scene,) = find_scenes(there)
    assert scene.scan == there / "case.nii.gz"
    assert scene.labels == (there / "case_labels.nii.gz",)


def test_results_are_found_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`leuda infer scans -o work/out` was run in a folder above; `leuda view` is run elsewhere."""
    scans, out, elsewhere = (tmp_path / name for name in ("scans", "work/out", "elsewhere"))
    for folder in (scans, out, elsewhere):
        folder.mkdir(parents=True)
    write_case(out)
    (out / "case.nii.gz").rename(scans / "case.nii.gz")
    report = out / "case_labels.json"
    said = json.loads(report.read_text())
    said |= {"scan": "scans/case.nii.gz", "labels": "work/out/case_labels.nii.gz"}
    report.write_text(json.dumps(said))
    monkeypatch.chdir(elsewhere)
    (scene,) = find_scenes(out)
    assert scene.scan == scans / "case.nii.gz"
    assert scene.report == said


def test_a_report_of_other_labels_shows_nothing(tmp_path: Path) -> None:
    write_case(tmp_path)
    report = tmp_path / "case_labels.json"
    said = json.loads(report.read_text())
    report.write_text(json.dumps(said | {"labels": str(tmp_path / "case_truth.nii.gz")}))
    scenes = find_scenes(tmp_path)  # then it is a folder of scans
    assert scenes[0].report == {} or scenes[0].labels[0].name == "case_labels.nii.gz"


@pytest.mark.parametrize("content", ["[]", "{", '{"scan": 3}', "[" * 100_000])
def test_what_is_no_report_is_passed_over(tmp_path: Path, content: str) -> None:
    write_case(tmp_path)
    (tmp_path / "case_labels.json").write_text(content)
    assert make_scene(tmp_path / "case.nii.gz").report == {}


def test_bad_input_is_refused(tmp_path: Path) -> None:
    scan = write_case(tmp_path)
    with pytest.raises(InputError):
        make_scene(tmp_path / "no.nii.gz")
    with pytest.raises(InputError):
        make_scene(scan, (scan, scan, scan))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError):
        find_scenes(tmp_path / "empty")


def folders(tmp_path: Path, *names: str) -> list[Path]:
    made = [tmp_path / name for name in names]
    for folder in made:
        folder.mkdir()
    return made


def test_scans_are_paired_with_labels_in_two_folders(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scans, first, second = folders(tmp_path, "imagesTr", "labelsTr", "predicted")
    for name in ("a", "b", "c"):
        write_case(tmp_path, name)
        shutil.move(tmp_path / f"{name}.nii.gz", scans / f"{name}_0000.nii.gz")
        if name != "c":
            shutil.move(tmp_path / f"{name}_truth.nii.gz", first / f"{name}.nii.gz")
    shutil.move(tmp_path / "a_labels.nii.gz", second / "A_pred.nii.gz")
    shutil.move(tmp_path / "c_labels.nii.gz", second / "z.nii.gz")
    a, b, c = find_scenes(scans, [first, second])
    assert a.labels == (first / "a.nii.gz", second / "A_pred.nii.gz")
    assert b.labels == (first / "b.nii.gz",)
    assert c.labels == ()
    said = " ".join(record.getMessage() for record in caplog.records)
    assert "b_0000.nii.gz, c_0000.nii.gz" in said
    assert "z.nii.gz" in said


def test_a_folder_beside_results_is_their_truth(tmp_path: Path) -> None:
    results, truth = folders(tmp_path, "results", "truth")
    write_case(results, unsure=0.2)
    shutil.move(results / "case_truth.nii.gz", truth / "case.nii.gz")
    (truth / "case_uncertainty.nii.gz").write_bytes(b"no labels")
    (scene,) = find_scenes(results, [truth])
    assert scene.labels == (results / "case_labels.nii.gz", truth / "case.nii.gz")
    assert scene.unsure == 0.2


def test_folders_of_labels_that_cannot_be_paired_are_refused(tmp_path: Path) -> None:
    scans, labels = folders(tmp_path, "scans", "labels")
    scan = write_case(scans)
    with pytest.raises(InputError, match="no folder"):
        find_scenes(scans, [scan])
    with pytest.raises(InputError, match="belongs to a scan"):
        find_scenes(scans, [labels])
    for name in ("case_gt", "case_truth"):
        shutil.copy(scans / "case_truth.nii.gz", labels / f"{name}.nii.gz")
    with pytest.raises(InputError, match="one scan"):
        find_scenes(scans, [labels])
    with pytest.raises(InputError, match="two can be compared"):
        find_scenes(scans, [labels, labels, labels])


def test_class_values_come_from_a_toml_table(tmp_path: Path) -> None:
    path = tmp_path / "cohort.toml"
    path.write_text("[classes]\nliver = 1\nspleen = 205\n")
    assert read_class_values(path) == {"liver": 1, "spleen": 205}
    deep = "[classes]\nliver = " + "[" * 3000
    for wrong in ("", "[classes]\nliver = 'x'\n", "no toml", deep):
        path.write_text(wrong)
        with pytest.raises(InputError):
            read_class_values(path)


def test_results_that_are_not_shown_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("one", "two"):
        write_case(tmp_path, name)
    (report,) = tmp_path.glob("two*.json")
    report.write_text(report.read_text()[:-20])
    assert [scene.name for scene in find_scenes(tmp_path)] == ["one.nii.gz"]
    assert report.name in caplog.text
