"""A folder that a command fills may hold the user's own files: they stay, and are named at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import tiny
from support.makers import MakeModel

from leuda_deploy.errors import InputError
from leuda_deploy.export.to_triton import to_triton
from leuda_deploy.model.model_file import ModelFile
from leuda_train.data.cohort import read_cohort
from leuda_train.data.phantom.phantom_cohort import write_cohort
from leuda_train.loop.run_folder import RunFolder
from leuda_train.runs.compare import RESULTS, Comparison, compare
from leuda_train.runs.demo import METHODS, SUMMARY, run_demo
from leuda_train.runs.train import train

MINE = b"not yours"
FEW = {
    "source_labelled": 1,
    "source_unlabelled": 0,
    "target_unlabelled": 1,
    "target_test": 0,
}


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def write_mine(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(MINE)
    return path


@pytest.mark.parametrize("name", ["model.pt", "report.html", "checkpoints/x", "predictions/x"])
def test_a_run_replaces_nothing_in_a_folder_that_is_no_run(name: str, tmp_path: Path) -> None:
    cohort = read_cohort(tiny.write_tiny_cohort(tmp_path / "cohort"), cache=tmp_path / "cache")
    write_mine(tmp_path / "run" / name)
    with pytest.raises(InputError) as refused:
        train(cohort, tiny.config(), tmp_path / "run")
    assert name.partition("/")[0] in str(refused.value)
    assert files_of(tmp_path / "run") == {name: MINE}


def test_the_names_of_a_run_are_all_that_it_writes() -> None:
    folder = RunFolder(Path("run"))
    written = {
        value.relative_to(folder.path).parts[0]
        for name in dir(RunFolder)
        if isinstance(value := getattr(folder, name), Path) and name != "path"
    }
    assert folder.names == written - {folder.lock.name}


@pytest.mark.parametrize("name", RESULTS)
def test_a_comparison_replaces_nothing(name: str, tmp_path: Path) -> None:
    cohort = read_cohort(tiny.write_tiny_cohort(tmp_path / "cohort"), cache=tmp_path / "cache")
    write_mine(tmp_path / "out" / name)
    with pytest.raises(InputError) as refused:
        compare(cohort, tmp_path / "out", Comparison(methods=["source-only"], config="demo"))
    assert name in str(refused.value)
    assert files_of(tmp_path / "out") == {name: MINE}


@pytest.mark.parametrize(
    "name", [SUMMARY, "labels.nii.gz", "labels.json", "model/x", f"{METHODS[-1]}/model.pt"]
)
def test_a_demo_replaces_nothing(name: str, tmp_path: Path) -> None:
    write_mine(tmp_path / name)
    with pytest.raises(InputError) as refused:
        run_demo(tmp_path)
    assert name.partition("/")[0] in str(refused.value)
    assert files_of(tmp_path) == {name: MINE}


def test_phantoms_replace_neither_a_cohort_file_nor_scans_of_another_seed(tmp_path: Path) -> None:
    mine = write_mine(tmp_path / "a" / "cohort.toml")
    with pytest.raises(InputError):
        write_cohort(tmp_path / "a", **FEW)
    assert files_of(tmp_path / "a") == {mine.name: MINE}
    write_cohort(tmp_path / "b", **FEW)
    before = files_of(tmp_path / "b")
    write_cohort(tmp_path / "b", **FEW)  # what is there already is the same
    with pytest.raises(InputError):
        write_cohort(tmp_path / "b", seed=1, **FEW)
    assert files_of(tmp_path / "b") == before


def test_a_model_repository_keeps_what_leuda_did_not_write(
    tmp_path: Path, make_model: MakeModel
) -> None:
    model = ModelFile.open(make_model(tmp_path / "model"))
    repository = tmp_path / "repository"
    mine = write_mine(repository / model.card.name / "1" / "model.onnx")
    write_mine(repository / model.card.name / "config.pbtxt")
    with pytest.raises(InputError):
        to_triton(model, repository)
    assert mine.read_bytes() == MINE
    assert to_triton(model, tmp_path / "other") == to_triton(model, tmp_path / "other")
    write_mine(tmp_path / "other" / model.card.name / "2" / "model.onnx")  # a version of theirs
    with pytest.raises(InputError):
        to_triton(model, tmp_path / "other")


def test_a_file_that_looks_like_json_of_others_is_no_comparison(tmp_path: Path) -> None:
    cohort = read_cohort(tiny.write_tiny_cohort(tmp_path / "cohort"), cache=tmp_path / "cache")
    theirs = tmp_path / "out" / RESULTS[0]
    theirs.parent.mkdir()
    theirs.write_text(json.dumps({"rows": []}))
    with pytest.raises(InputError):
        compare(cohort, tmp_path / "out", Comparison(methods=["source-only"], config="demo"))
    assert json.loads(theirs.read_text()) == {"rows": []}
