"""Many scans, one engine: what fails stops no other, what is done is not done again."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from support.command import Done, leuda_here
from support.makers import MakeModel, MakeVolume, ThresholdLabels

import leuda_deploy
from leuda_deploy.engines.engine import EngineSettings
from leuda_deploy.engines.onnx_runtime import OnnxEngine
from leuda_deploy.engines.open_engine import OpenVinoEngine, open_engine
from leuda_deploy.errors import InputError, LeudaError
from leuda_deploy.inference.memory_plan import make_plan
from leuda_deploy.inference.segmenter import Segmenter
from leuda_deploy.inference.settings import Settings
from leuda_deploy.jobs.find_jobs import find_jobs
from leuda_deploy.jobs.run_jobs import run_jobs
from leuda_deploy.machine.gpu import find_gpu
from leuda_deploy.model.model_file import ModelFile
from leuda_deploy.model.tiling import Tiling
from leuda_deploy.proof.parity import LIMITS
from leuda_deploy.proof.trial import Trial, cache_folder, limits_of, run_trial
from leuda_deploy.scans.recipe import Recipe
from leuda_deploy.scans.stack import Stack
from leuda_deploy.scans.volume import read_volume

Captured = pytest.CaptureFixture[str]
AFFINE = np.diag([0.8, 1.3, 5.0, 1.0])


@pytest.fixture(scope="session")
def model(make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def segmenter(model: Path) -> Segmenter:
    return Segmenter(model, Settings(engine="ort-cpu", threads=1, batch=4))


def values(seed: int, shape: tuple[int, int, int] = (19, 37, 6)) -> NDArray[np.int16]:
    found = np.random.default_rng(seed).integers(0, 1001, shape).astype(np.int16)
    found[0, 0, :2] = 0, 1000
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for k in range(4):
        nib.save(nib.Nifti1Image(values(k), AFFINE), tmp_path / "in" / f"s{k}.nii.gz")
    return tmp_path / "in"


def labels_of(path: Path) -> NDArray[np.uint8]:
    return np.asarray(nib.load(path).dataobj)


def infer(*arguments: object) -> Done:
    return leuda_here("infer", *arguments)


# --- folders


def test_folder_is_labelled_and_a_bad_scan_stops_no_other(
    folder: Path, model: Path,
    threshold_labels: ThresholdLabels,
) -> None:  # fmt: skip
    (folder / "s1.nii.gz").write_bytes(b"not a scan")
    (folder / "notes.txt").write_text("no scan")
    out = folder.parent / "out"
    asked = (folder, "--model", model, "-o", out, "--engine", "ort-cpu", "--batch", 4)
    said = infer(*asked, "--json")
    assert said.returncode == 1
    outcomes = {Path(outcome["scan"]).name: outcome for outcome in json.loads(said.stdout)}
    assert [outcome["error"] is None for outcome in outcomes.values()] == [True, False, True, True]
    assert not any(outcome["skipped"] for outcome in outcomes.values())
    assert said.stderr.count("error: ") == 1
    assert str(folder / "s1.nii.gz") in outcomes["s1.nii.gz"]["error"]
    for k in (0, 2, 3):
        np.testing.assert_array_equal(
            labels_of(out / f"s{k}_labels.nii.gz"), threshold_labels(values(k))
        )
        report = json.loads((out / f"s{k}_labels.json").read_text())
        assert report["scan_sha256"]
        assert report["low_confidence"] >= 0
        assert {"read", "network", "labels", "write"} <= set(report["seconds"])
    assert not (out / "s1_labels.nii.gz").exists()


def test_what_is_done_is_skipped_until_scan_or_model_changes(
    folder: Path, segmenter: Segmenter, make_model: MakeModel
) -> None:
    jobs = find_jobs(folder, folder.parent / "out")

    def run(with_: Segmenter, **settings: Any) -> list[bool]:
        done = run_jobs(jobs, with_, overlay=False, **settings)
        return [outcome.skipped for outcome in done]

    assert run(segmenter) == [False] * 4
    assert run(segmenter) == [True] * 4
    assert run(segmenter, skip_done=False) == [False] * 4
    nib.save(nib.Nifti1Image(values(9), AFFINE), folder / "s2.nii.gz")
    jobs[3].output.unlink()
    assert run(segmenter) == [True, True, False, False]
    other = make_model(folder.parent / "other", name="another")
    assert run(Segmenter(other, Settings(engine="ort-cpu", batch=4))) == [False] * 4


def test_what_was_done_otherwise_is_done_again(
    tmp_path: Path, make_model: MakeModel, threshold_labels: ThresholdLabels
) -> None:
    (tmp_path / "in").mkdir()
    frames = np.stack([values(k) for k in range(2)], axis=-1)
    nib.save(nib.Nifti1Image(frames, AFFINE), tmp_path / "in" / "f.nii.gz")
    model = make_model(tmp_path / "model", tiling=Tiling(mirror=("rows",)))
    labels, report = (tmp_path / "out" / f"f_labels.{end}" for end in ("nii.gz", "json"))

    def skipped(frame: str, **asked: Any) -> bool:
        jobs = find_jobs(tmp_path / "in", tmp_path / "out", frames=frame)
        segmenter = Segmenter(model, Settings(threads=1, batch=4, **asked))
        (outcome,) = run_jobs(jobs, segmenter, overlay=False)
        assert outcome.error is None
        return outcome.skipped

    assert not skipped("0")
    assert not skipped("1")
    np.testing.assert_array_equal(labels_of(labels), threshold_labels(values(1)))
    assert skipped("1")
    assert not skipped("1", mirror=True)
    assert skipped("1", mirror=True)
    assert not skipped("1", precision="fp32")
    assert not skipped("1", engine="auto")
    assert skipped("1", engine="auto")  # whatever it chose was what was asked for
    said = json.loads(report.read_text())
    assert said.pop("asked") == {
        "engine": "auto", "precision": "auto", "mirror": False, "frame": 1,
    }  # fmt: skip
    report.write_text(json.dumps(said))  # as an earlier leuda wrote it
    assert not skipped("1", engine="auto")


def test_uncertainty_map_lies_on_the_scans_grid(
    scan_file: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = scan_file.parent
    asked = ("--uncertainty", out / "u.nii.gz", "--engine", "ort-cpu", "--no-overlay")
    assert infer(scan_file, "--model", model, "-o", out / "l.nii.gz", *asked).returncode == 0
    doubt, scan = nib.load(out / "u.nii.gz"), nib.load(scan_file)
    assert doubt.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(doubt.affine, scan.affine)
    x = np.asarray(scan.dataobj, dtype=np.float64) / 500 - 1
    low, high = (-0.3001, 0.2503)
    logits = np.stack([0 * x, x - low, 2 * x - low - high])
    p = np.exp(logits) / np.exp(logits).sum(axis=0)
    expected = -(p * np.log(p)).sum(axis=0) / np.log(3) * 255
    np.testing.assert_allclose(np.asarray(doubt.dataobj), expected, atol=0.6)


def test_one_frame_or_all_of_a_4d_scan(
    tmp_path: Path, model: Path,
    threshold_labels: ThresholdLabels,
) -> None:  # fmt: skip
    frames = np.stack([values(k) for k in range(3)], axis=-1)
    nib.save(nib.Nifti1Image(frames, AFFINE), tmp_path / "f.nii.gz")
    asked = (tmp_path / "f.nii.gz", "--model", model, "--engine", "ort-cpu", "--no-overlay")
    assert infer(*asked, "-o", tmp_path / "l.nii.gz", "--frame", "all").returncode == 0
    for k in range(3):
        found = labels_of(tmp_path / f"l_frame{k:03d}.nii.gz")
        np.testing.assert_array_equal(found, threshold_labels(values(k)))
    assert infer(*asked, "-o", tmp_path / "one.nii.gz", "--frame", 2).returncode == 0
    np.testing.assert_array_equal(labels_of(tmp_path / "one.nii.gz"), threshold_labels(values(2)))
    for wrong in ("3", "-1", "some"):
        said = infer(*asked, "--frame", wrong)
        assert said.returncode == 2
        assert "--frame" in said.stderr


# --- memory


def test_budget_that_cannot_be_met_is_refused_with_the_least_that_would_do(
    scan_file: Path, model: Path
) -> None:
    asked = (scan_file, "--model", model, "-o", scan_file.parent / "l.nii.gz")
    settings = ("--engine", "ort-cpu", "--batch", 2)
    said = infer(*asked, *settings, "--max-memory", "20M")
    assert said.returncode == 2
    assert said.stderr.count("\n") == 1
    least = said.stderr.split("--max-memory ")[1].split()[0]
    assert not (scan_file.parent / "l.nii.gz").exists()
    assert infer(*asked, *settings, "--max-memory", least).returncode == 0


def test_plan_takes_the_largest_batch_that_fits(make_volume: MakeVolume) -> None:
    volume = make_volume(np.broadcast_to(np.int16(0), (512, 512, 300)), AFFINE)
    recipe = Recipe(slice_axis="superior", spacing_mm=(1.5, 1.5), window=(256, 256))
    growth = {1: 10**8, 2: 2 * 10**8, 4: 4 * 10**8, 8: 8 * 10**8}

    def plan(limit: int | None) -> tuple[int, int]:
        found = make_plan(
            Stack(volume, recipe), classes=5, loaded_bytes=10**8, growth_bytes=growth, batch=8,
            max_bytes=limit,
        )  # fmt: skip
        assert limit is None or found.peak_bytes <= limit
        assert found.parts["scan"] == volume.raw.size * 2
        assert found.parts["labels"] == volume.raw.size
        return found.batch, found.slab

    assert plan(None)[0] == 8
    batches = [plan(limit * 10**6)[0] for limit in (2000, 1000, 800, 700)]
    assert batches == sorted(batches, reverse=True)
    assert batches[-1] < 8
    with pytest.raises(InputError, match="least that would do is --max-memory"):
        plan(3 * 10**8)


# --- engines


def openvino_engine(model: Path, **settings: Any) -> OpenVinoEngine:
    pytest.importorskip("openvino", reason="the openvino extra is not installed")
    return OpenVinoEngine(ModelFile.open(model), **({"threads": 1} | settings))


@pytest.mark.parametrize("threads", [1, 3])
def test_openvino_fp32_agrees_with_onnx_runtime_for_any_batch(model: Path, threads: int) -> None:
    engine = openvino_engine(model, precision="fp32", threads=threads)
    reference = OnnxEngine(ModelFile.open(model), threads=1)
    assert 1 <= engine.streams <= threads
    assert "fp32" in engine.description
    assert engine.sha256 == reference.sha256
    for batch in (3, 1, 8):
        windows = np.random.default_rng(0).normal(size=(batch, 1, 16, 16)).astype(np.float32)
        found = engine(windows)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, reference(windows), atol=1e-5)
        before = found.copy()
        engine(-windows)
        np.testing.assert_array_equal(found, before)  # the caller's own


def test_engine_is_shared_by_threads(model: Path) -> None:
    engine, reference = (
        openvino_engine(model, precision="fp32"),
        OnnxEngine(ModelFile.open(model), threads=1),
    )
    windows = np.random.default_rng(0).normal(size=(40, 2, 1, 16, 16)).astype(np.float32)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(engine, windows))
    for some, logits in zip(windows, found, strict=True):
        np.testing.assert_allclose(logits, reference(some), atol=1e-5)


def test_bf16_is_had_where_the_processor_has_it_and_refused_elsewhere(model: Path) -> None:
    with pytest.raises(InputError, match="bf16"):
        open_engine(ModelFile.open(model), "ort-cpu", EngineSettings(precision="bf16"))
    openvino = pytest.importorskip("openvino", reason="the openvino extra is not installed")
    if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        assert openvino_engine(model, precision="bf16").layers["bf16"] > 0
    else:
        with pytest.raises(LeudaError, match="bf16"):
            openvino_engine(model, precision="bf16")


@pytest.mark.gpu
def test_cuda_with_io_binding_agrees_with_the_cpu(model: Path) -> None:
    if find_gpu() is None:  # where there is one, an engine that does not open is a failure
        pytest.skip("no NVIDIA GPU here")
    engine = OnnxEngine(ModelFile.open(model), provider="cuda", max_gpu_bytes=1 << 30)
    reference = OnnxEngine(ModelFile.open(model), threads=1)
    for batch in (3, 1, 3):
        windows = np.random.default_rng(batch).normal(size=(batch, 1, 16, 16)).astype(np.float32)
        np.testing.assert_allclose(engine(windows), reference(windows), atol=1e-3)


def test_trial_that_disagrees_is_a_failure(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    windows = np.random.default_rng(0).normal(size=(4, 1, 16, 16)).astype(np.float32)

    class Wrong(OnnxEngine):
        def __call__(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
            return super().__call__(windows)[:, ::-1]

    monkeypatch.setattr(
        "leuda_deploy.proof.trial.open_engine", lambda model, name, settings: Wrong(model)
    )
    trial = run_trial(
        "openvino", ModelFile.open(model), windows, EngineSettings(precision="fp32", threads=1)
    )
    assert trial.failure is not None
    assert "does not agree with ONNX Runtime" in trial.failure
    assert "allowed 0.001" in trial.failure  # the limit of fp32 in parity.py
    assert (
        run_trial("ort-cpu", ModelFile.open(model), windows, EngineSettings(threads=1)).failure
        is None
    )


def test_an_engine_is_held_to_the_limits_of_the_precision_it_runs_in() -> None:
    assert limits_of("fp32") == LIMITS["fp32"]
    assert limits_of("fp16") == LIMITS["fp16"]
    assert limits_of("bf16") == limits_of("int8") == LIMITS["int8"]


def test_auto_takes_the_fastest_that_passed_and_says_why(
    model: Path, make_volume: MakeVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tried(name: Any, *args: Any, **other: Any) -> Trial:
        made = {
            "openvino": Trial(engine="openvino", description="", failure="it is wrong",
                              agreement="", window_ms={1: 0.1}, growth_bytes={}),
            "ort-cpu": Trial(engine="ort-cpu", description="", failure=None, agreement="same",
                             window_ms={1: 3.0, 2: 2.0, 4: 1.99}, growth_bytes={1: 1, 2: 2, 4: 4}),
        }  # fmt: skip
        return made[name]

    said: list[str] = []
    names = ["openvino", "ort-cpu"]
    monkeypatch.setattr("leuda_deploy.inference.segmenter.installed_engines", lambda *asked: names)
    monkeypatch.setattr("leuda_deploy.inference.segmenter.try_engine", tried)
    segmenter = Segmenter(model, Settings(engine="auto", threads=3), say=said.append)
    volume = make_volume(values(0), AFFINE)
    plan = segmenter.plan(segmenter.stack(volume))
    assert plan.batch == 2
    assert isinstance(segmenter.engine_for(segmenter.stack(volume)), OnnxEngine)
    assert any("passed over openvino: it is wrong" in line for line in said)
    assert any("chose ort-cpu" in line for line in said)


def test_named_engine_that_disagrees_runs_with_a_warning_and_a_broken_one_not_at_all(
    model: Path, make_volume: MakeVolume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEUDA_CACHE", str(tmp_path / "cache"))
    window_ms: dict[int, float] = {1: 1.0}

    def tried(name: Any, *args: Any, **other: Any) -> Trial:
        return Trial(engine=name, description="", failure="it is wrong", agreement="",
                     window_ms=window_ms, growth_bytes={})  # fmt: skip

    said: list[str] = []
    monkeypatch.setattr("leuda_deploy.inference.segmenter.try_engine", tried)
    volume = make_volume(values(0), AFFINE)
    segmenter = Segmenter(model, Settings(engine="ort-cpu", threads=2), say=said.append)
    segmenter.engine_for(segmenter.stack(volume))
    assert said[-1].startswith("warning: ort-cpu")
    window_ms.clear()
    segmenter = Segmenter(model, Settings(engine="ort-cpu", threads=2))
    with pytest.raises(LeudaError, match="it is wrong"):
        segmenter.engine_for(segmenter.stack(volume))


def test_trials_run_in_a_process_of_their_own_and_are_kept(
    model: Path, make_volume: MakeVolume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEUDA_CACHE", str(tmp_path / "cache"))
    said: list[str] = []
    volume = make_volume(values(0), AFFINE)
    for expected in (1, 1):  # the second time nothing is tried
        segmenter = Segmenter(model, Settings(engine="ort-cpu"), say=said.append)
        segmenter.plan(segmenter.stack(volume))
        assert sum("trying" in line for line in said) == expected
        assert len(list(cache_folder().iterdir())) == 1
    for path in cache_folder().iterdir():
        path.write_text("{")  # damaged: tried again
    segmenter = Segmenter(model, Settings(engine="ort-cpu"), say=said.append)
    segmenter.plan(segmenter.stack(volume))
    assert sum("trying" in line for line in said) == 2


# --- windows


def test_card_says_how_windows_are_laid_and_whether_they_may_be_mirrored(
    make_model: MakeModel, tmp_path: Path, threshold_labels: ThresholdLabels
) -> None:
    tiling = Tiling(overlap=0.25, blending="constant", mirror=("rows",), skip_floor=True)
    model = make_model(tmp_path / "free", tiling=tiling)
    scan = values(3)
    scan[:, :, 0] = scan.min()  # a slice of air
    segmenter = Segmenter(model, Settings(threads=1, batch=4, mirror=True))
    found = segmenter(scan, affine=AFFINE).labels
    np.testing.assert_array_equal(found, threshold_labels(scan))
    strict = make_model(tmp_path / "strict")
    with pytest.raises(InputError, match="a mirrored window means the same; without --mirror"):
        Segmenter(strict, Settings(mirror=True))


# --- the library


def test_segmenter_takes_files_images_and_arrays(
    model: Path, scan_file: Path, threshold_labels: ThresholdLabels
) -> None:
    segmenter = leuda_deploy.Segmenter(model, Settings(engine="ort-cpu", threads=1, batch=4))
    image = nib.load(scan_file)
    expected = threshold_labels(np.asarray(image.dataobj))
    array = np.asarray(image.dataobj)
    for found in (
        segmenter(scan_file),
        segmenter(str(scan_file)),
        segmenter(image),
        segmenter(read_volume(scan_file)),
        segmenter(array, affine=image.affine),
        segmenter(np.stack([array, array], axis=-1), affine=image.affine, frame=1),
    ):
        np.testing.assert_array_equal(found.labels, expected)
    for wrong, fix in (((array,), "give its affine"), ((3,), "not <class 'int'>")):
        with pytest.raises(InputError, match=fix):
            segmenter(*wrong)
    with pytest.raises(InputError, match="its own"):
        segmenter(image, affine=image.affine)
    with pytest.raises(InputError, match="no engine is called"):
        Settings(engine="fast")  # type: ignore[arg-type]


def test_segmenter_is_shared_by_threads(model: Path, threshold_labels: ThresholdLabels) -> None:
    segmenter = Segmenter(model, Settings(engine="ort-cpu", threads=1, batch=4))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda k: segmenter(values(k), affine=AFFINE).labels, range(12)))
    for k, labels in enumerate(found):
        np.testing.assert_array_equal(labels, threshold_labels(values(k)))
