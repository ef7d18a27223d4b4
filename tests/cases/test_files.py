"""Cases of people's folders and outputs: nothing destroyed, nothing skipped in silence."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from cases.odd_scans import tissue
from support.command import Done, leuda_here
from support.makers import MakeModel

from leuda_deploy.errors import InputError, ScanError
from leuda_deploy.jobs.find_jobs import Wanted, find_jobs
from leuda_deploy.model.export_folder import default_model
from leuda_deploy.scans.dicom.sources import places_of
from leuda_deploy.scans.volume import read_volume
from leuda_deploy.view.marks import Marks
from leuda_deploy.view.scene import find_scenes

AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])


@pytest.fixture(scope="module")
def model(make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    nib.save(nib.Nifti1Image(tissue(), AFFINE), tmp_path / "a.nii.gz")
    return tmp_path / "a.nii.gz"


def infer(model: Path, *arguments: object) -> Done:
    return leuda_here("infer", *arguments, "--model", model, "--batch", 4, "--no-overlay")


def refused(done: Done) -> bool:
    return done.returncode == 2 and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("at", "option"),
    [
        ("a_labels.nii.gz", "-o"),  # a reader's own labels
        ("a.nii.gz", "-o"),
        ("a.nii.gz", "--uncertainty"),
        ("a_labels.json", "none"),
    ],
)
def test_a_file_of_the_user_is_never_replaced(
    scan: Path, model: Path, at: str, option: str
) -> None:
    """Rows 1 and 2."""
    target = scan.with_name(at)
    if not target.exists():
        target.write_text("years of work")
    before = {path: path.read_bytes() for path in scan.parent.iterdir()}
    asked = [] if option == "none" else [option, target]
    if option != "-o":
        asked += ["-o", scan.with_name("a_labels.nii.gz")]
    assert refused(infer(model, scan, *asked))
    assert {path: path.read_bytes() for path in scan.parent.iterdir()} == before


@pytest.mark.parametrize("name", ["card", "manifest"])
def test_no_output_replaces_a_file_of_the_model_that_is_used(
    scan: Path, tmp_path: Path, name: str
) -> None:
    """card.nii.gz has its report in card.json."""
    export = Path(shutil.copytree(default_model(), tmp_path / "export"))
    before = (export / f"{name}.json").read_bytes()
    done = infer(export, scan, "-o", export / f"{name}.nii.gz", "--force", "--engine", "ort-cpu")
    assert refused(done), done.stderr
    assert (export / f"{name}.json").read_bytes() == before


def test_no_output_replaces_the_key_or_the_rules(scan: Path, model: Path, tmp_path: Path) -> None:
    rules = tmp_path / "rules.json"
    rules.write_text('modality = ["CT"]')
    out = tmp_path / "rules.nii.gz"
    done = infer(model, scan, "-o", out, "--rules", rules, "--force")
    assert refused(done), done.stderr
    assert rules.read_text() == 'modality = ["CT"]'


def test_two_outputs_in_one_place_are_refused(scan: Path, model: Path) -> None:
    """Row 2."""
    out = scan.with_name("l.nii.gz")
    assert refused(infer(model, scan, "-o", out, "--uncertainty", out))
    assert not out.exists()


def test_own_outputs_are_no_inputs(
    scan: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 3."""
    monkeypatch.chdir(scan.parent)
    for skipped in (False, True):
        done = infer(model, ".", "--uncertainty", ".", "--json")
        assert done.returncode == 0
        (outcome,) = json.loads(done.stdout)
        assert (Path(outcome["scan"]).name, outcome["skipped"]) == ("a.nii.gz", skipped)
    scan.with_name("a_uncertainty.nii.gz").rename(scan.with_name("renamed.nii.gz"))
    assert [job.scan.name for job in find_jobs(scan.parent, Wanted(output=scan.parent))] == [
        "a.nii.gz"
    ]


def test_what_is_passed_over_is_named(scan: Path, model: Path) -> None:
    """Rows 5, 11 and 24."""
    folder = scan.parent
    (folder / "gone.nii.gz").symlink_to(folder / "nowhere.nii.gz")
    nib.save(nib.load(scan), folder / "b.nii.gz")
    (folder / "b.nii.gz").rename(folder / "B.NII.GZ")
    (folder / "patient" / "study").mkdir(parents=True)
    for name in ("old.mnc", "ph.PAR", "mesh.gii", "c.nii.zst", "._a.nii.gz"):
        (folder / name).write_bytes(b"something")
    (folder / "stray.dcm").write_bytes(bytes(128) + b"DICM")
    done = infer(model, folder, "-o", folder / "out", "--json")
    assert done.returncode == 0
    assert [Path(each["scan"]).name for each in json.loads(done.stdout)] == ["B.NII.GZ", "a.nii.gz"]
    for name in (
        "gone.nii.gz",
        "patient",
        "stray.dcm",
        "old.mnc",
        "ph.PAR",
        "mesh.gii",
        "._a.nii.gz",
    ):
        assert name in done.stderr


def test_a_damaged_file_stops_no_other_with_all_frames(scan: Path, model: Path) -> None:
    """Row 24."""
    (scan.parent / "z.nii.gz").write_bytes(b"not a scan")
    done = infer(model, scan.parent, "-o", scan.parent / "out", "--frame", "all", "--json")
    assert done.returncode == 1
    assert [each["error"] is None for each in json.loads(done.stdout)] == [True, False]
    for ending in ("mnc", "PAR", "gii", "nii.zst"):
        odd = scan.parent / f"odd.{ending}"
        odd.write_bytes(b"something else")
        assert refused(infer(model, odd, "-o", scan.parent / "odd_labels.nii.gz"))


def test_names_are_looked_at_before_the_work(scan: Path, model: Path) -> None:
    """Row 25: a name as long as a name can be works, and one that is too long is refused."""
    long = scan.rename(scan.with_name("x" * 235 + ".nii.gz"))
    out = scan.parent / "out"
    assert infer(model, long, "-o", out / ("y" * 241 + ".nii.gz")).returncode == 0
    assert refused(infer(model, long, "-o", out / ("y" * 250 + ".nii.gz")))
    for wrong in (("--uncertainty", out / "x.png"), ("-o", out / "l.nii.gz" / "m.nii.gz")):
        (out / "l.nii.gz").touch()
        assert refused(infer(model, long, "-o", out / "k.nii.gz", *wrong))
    nowhere = out / "l.nii.gz" / "bench.json"
    assert refused(leuda_here("bench", "--model", model, "--save", nowhere))


@pytest.mark.parametrize(
    ("given", "named"), [("nowhere/", "nowhere"), ("net.onnx", "--model"), ("empty", "empty")]
)
def test_the_true_mistake_is_named(
    tmp_path: Path, model: Path, given: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 30."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.onnx").write_bytes(b"a model")
    (tmp_path / "empty").mkdir()
    done = infer(model, given, "-o", "out")
    assert refused(done)
    assert named in done.stderr


def test_a_folder_may_be_named_by_dots(
    scan: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 30."""
    (scan.parent / "deeper").mkdir()
    monkeypatch.chdir(scan.parent / "deeper")
    assert infer(model, "..", "-o", "out").returncode == 0
    assert (scan.parent / "deeper" / "out" / "a_labels.nii.gz").is_file()


@pytest.fixture
def at_most_20_s() -> Iterator[None]:
    """Whoever waits for a pipe would wait for ever."""

    def over(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("at_most_20_s")
def test_pipes_and_devices_are_passed_over(tmp_path: Path, scan: Path) -> None:
    for name in ("p.nii.gz", "p.nii", "p.mha", "p.nrrd", "IM1", "p.dcm", "a_labels.json"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(ScanError):
            read_volume(tmp_path / name)
        with pytest.raises(ScanError):
            places_of(tmp_path / name)
    (tmp_path / "zero.nii").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to(".")
    (tmp_path / "self.nii").symlink_to("self.nii")
    header = "ElementType = MET_SHORT\nElementSpacing = 1 1 1\nElementDataFile = p.mha\n"
    (tmp_path / "b.mhd").write_text(f"ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\n{header}")
    with pytest.raises(ScanError):
        read_volume(tmp_path / "b.mhd")
    (tmp_path / "b.mhd").unlink()
    assert [job.scan for job in find_jobs(tmp_path, Wanted(output=tmp_path / "out"))] == [scan]
    assert [scene.scan for scene in find_scenes(tmp_path)] == [scan]
    os.mkfifo(tmp_path / "marks.csv")
    with pytest.raises(InputError):
        Marks(tmp_path / "marks.csv")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_name_that_is_not_utf8_is_done_once_and_shown(model: Path, tmp_path: Path) -> None:
    scans, out = tmp_path / "scans", tmp_path / "out"
    scans.mkdir()
    scan = scans / os.fsdecode(b"n\xffame.nii.gz")
    nib.save(nib.Nifti1Image(tissue(), AFFINE), scan)
    assert infer(model, scans, "-o", out).returncode == 0
    again = infer(model, scans, "-o", out, "--json")
    assert again.returncode == 0, again.stderr
    assert "done before" in again.stderr or '"skipped": true' in again.stdout
    assert [scene.scan for scene in find_scenes(out)] == [scan]
