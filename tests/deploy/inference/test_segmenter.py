"""The library: whatever holds a scan goes in, labels on its own grid come out."""

from __future__ import annotations

import logging
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from support.makers import MakeModel, MakeVolume, ThresholdLabels

import leuda_deploy
from leuda_deploy.errors import InputError
from leuda_deploy.inference import segmenter as module
from leuda_deploy.inference.memory_plan import Workload, make_plan
from leuda_deploy.inference.segmenter import Segmenter
from leuda_deploy.inference.settings import Settings
from leuda_deploy.inference.slabs import Part
from leuda_deploy.machine.cache_folder import cache_folder
from leuda_deploy.model.card import GraphOptions
from leuda_deploy.model.tiling import Tiling
from leuda_deploy.scans.volume import read_volume

AFFINE = np.diag([0.8, 1.3, 5.0, 1.0])
SETTINGS = Settings(threads=1, batch=4)


@pytest.fixture(scope="module")
def model(make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


def values(seed: int, shape: tuple[int, int, int] = (19, 37, 6)) -> NDArray[np.int16]:
    found = np.random.default_rng(seed).integers(0, 1001, shape).astype(np.int16)
    found[0, 0, :2] = 0, 1000
    return found


def test_segmenter_takes_files_images_and_arrays(
    model: Path, scan_file: Path, threshold_labels: ThresholdLabels
) -> None:
    segmenter = leuda_deploy.Segmenter(model, SETTINGS)
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
    for wrong in (array, 3):
        with pytest.raises(InputError):
            segmenter(wrong)
    with pytest.raises(InputError):  # it has one of its own
        segmenter(image, affine=image.affine)


def test_segmenter_is_shared_by_threads(model: Path, threshold_labels: ThresholdLabels) -> None:
    segmenter = Segmenter(model, SETTINGS)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda k: segmenter(values(k), affine=AFFINE).labels, range(12)))
    for k, labels in enumerate(found):
        np.testing.assert_array_equal(labels, threshold_labels(values(k)))


def test_settings_are_plain_and_checked() -> None:
    assert pickle.loads(pickle.dumps(SETTINGS)) == SETTINGS
    wrong: list[dict[str, Any]] = [
        {"engine": "fast"},
        {"engine": "ort-cpu", "max_gpu_bytes": 1},
        {"engine": "openvino", "max_gpu_bytes": 1},
    ]
    for fields in wrong:
        with pytest.raises(InputError):
            Settings(**fields)
    assert Settings(engine="auto", max_gpu_bytes=1).max_gpu_bytes == 1


def test_auto_opens_what_was_chosen(
    model: Path, make_volume: MakeVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "installed_engines", lambda *asked: ("ort-cpu",))
    segmenter = Segmenter(model, Settings(engine="auto", threads=1))
    stack = segmenter.stack(make_volume(values(0), AFFINE))
    engine = segmenter.engine_for(stack)
    assert (engine.sha256, engine.streams) == (segmenter.sha256, 1)
    assert segmenter.engine_for(stack) is engine
    assert segmenter.asked["engine"] == "auto"  # what was asked for, not what it came to


def test_trials_run_in_a_process_of_their_own_and_are_kept(
    model: Path,
    make_volume: MakeVolume,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("LEUDA_CACHE", str(tmp_path / "cache"))
    caplog.set_level(logging.INFO)
    volume = make_volume(values(0), AFFINE)

    def plan() -> int:
        """How many trials were made so far."""
        segmenter = Segmenter(model, Settings(engine="ort-cpu", threads=1))
        segmenter.plan(segmenter.stack(volume))
        assert segmenter.settled
        assert len(list(cache_folder().iterdir())) == 1
        return sum(record.name == "leuda_deploy.proof.trial" for record in caplog.records)

    assert not Segmenter(model, Settings(engine="ort-cpu", threads=1)).settled
    assert plan() == 1
    assert plan() == 1  # the second time nothing is tried
    (kept,) = cache_folder().iterdir()
    kept.write_text("{")  # damaged: tried again
    assert plan() == 2


def test_card_says_how_windows_are_laid_and_whether_they_may_be_mirrored(
    make_model: MakeModel, tmp_path: Path, threshold_labels: ThresholdLabels
) -> None:
    tiling = Tiling(overlap=0.25, blending="constant", mirror=("rows",), skip_floor=True)
    model = make_model(tmp_path / "free", tiling=tiling)
    scan = values(3)
    scan[:, :, 0] = scan.min()  # a slice of air
    mirrored = Settings(threads=1, batch=4, mirror=True)
    found = Segmenter(model, mirrored)(scan, affine=AFFINE).labels
    np.testing.assert_array_equal(found, threshold_labels(scan))
    strict = make_model(tmp_path / "strict")
    with pytest.raises(InputError):
        Segmenter(strict, mirrored)


def test_slices_are_scored_whole_and_air_is_left_out_where_the_card_says_so(
    make_model: MakeModel,
    make_volume: MakeVolume,
    tmp_path: Path,
    threshold_labels: ThresholdLabels,
) -> None:
    scan = np.zeros((60, 50, 6), dtype=np.int16)
    scan[20:43, 11:30] = values(5, (23, 19, 6))
    volume, expected = make_volume(scan, AFFINE), threshold_labels(scan)
    options = GraphOptions(dynamic_window=True, window_multiple=8)
    tiling = Tiling(whole=(64, 64), air=0.01, mirror=("rows",))
    model = make_model(tmp_path / "open", options=options, tiling=tiling)

    def part(model: Path, **asked: Any) -> Part:
        segmenter = Segmenter(model, Settings(engine="ort-cpu", threads=1, batch=4, **asked))
        found = segmenter(volume)
        np.testing.assert_array_equal(found.labels, expected)
        return found.part

    # of 50 rows and 60 columns those of the body, with a pixel around, in multiples of 8
    assert part(model).window == part(model).shape == (24, 32)
    for in_windows in (part(model, tiling="windows"), part(model, mirror=True)):
        assert (in_windows.window, in_windows.shape) == ((16, 16), (50, 60))
    fixed = make_model(tmp_path / "fixed", tiling=Tiling(air=0.01))
    assert (part(fixed).window, part(fixed).shape) == ((16, 16), (21, 25))
    small = make_model(tmp_path / "small", options=options, tiling=Tiling(whole=(49, 60)))
    assert part(small).window == (16, 16)  # larger than what was proven
    with pytest.raises(InputError):
        Settings(tiling="rows")  # type: ignore[arg-type]


def test_the_plan_counts_the_pixels_of_whole_slices(
    make_model: MakeModel, make_volume: MakeVolume, tmp_path: Path
) -> None:
    options = GraphOptions(dynamic_window=True, window_multiple=8)
    model = make_model(tmp_path, options=options, tiling=Tiling(whole=(64, 64)))
    segmenter = Segmenter(model, Settings(engine="ort-cpu", threads=1))
    stack = segmenter.stack(make_volume(values(0, (64, 64, 6)), AFFINE))
    workload = Workload(
        classes=3, growth_bytes={1: 10, 16: 160}, tiling=segmenter.card.tiling, multiple=8
    )
    assert make_plan(stack, workload, batch=1).parts["network"] == 160  # 16 times the window
    assert make_plan(stack, workload, batch=2).parts["network"] == 320
    in_windows = replace(workload, tiling=Tiling())
    assert make_plan(stack, in_windows, batch=1).parts["network"] == 10
    assert segmenter.plan(stack).slab == segmenter.plan(stack).batch  # one window a slice
