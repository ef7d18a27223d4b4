"""`leuda bench`: figures of every engine, and a gate that compares two result files."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from support.command import leuda_here
from support.makers import MakeModel, ThresholdLabels
from support.tiny import write_tiny_cohort

from leuda_deploy.bench.accuracy import Labelled, LabelledScans, accuracy, check_fits
from leuda_deploy.bench.bench import bench, parse_shape, regressions
from leuda_deploy.errors import InputError
from leuda_deploy.model.model_file import ModelFile
from leuda_train.cli.evaluate import labelled_targets


def test_bench_measures_and_compares(tmp_path: Path, make_model: MakeModel) -> None:
    model, saved = make_model(tmp_path / "model"), tmp_path / "bench.json"
    asked = ("--model", model, "--shape", "40x30x6", "--engine", "ort-cpu", "--rounds", 2)
    done = leuda_here("bench", *asked, "--save", saved, "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout) == json.loads(saved.read_text())
    result = json.loads(saved.read_text())
    (row,) = result["engines"]
    assert row["p50_seconds"] <= row["p99_seconds"]
    assert {"read", "network", "labels", "write"} <= set(row["stage_seconds"])
    assert set(row["least_seconds"]) == {"read", "normalise", "resample", "labels", "write"}
    assert all(seconds > 0 for seconds in row["least_seconds"].values())
    with Image.open(saved.with_suffix(".png")) as picture:
        assert picture.size[0] == 900
        assert len(picture.getcolors(1 << 20) or []) > 5
    assert regressions(result, saved, 1.2) == []
    row["p50_seconds"] *= 1.5
    (worse,) = regressions(result, saved, 1.2)
    assert (worse.engine, worse.figure) == ("ort-cpu", "p50_seconds")
    assert worse.now == pytest.approx(1.5 * worse.before)
    done = leuda_here("bench", *asked, "--against", saved, "--limit", 1000)
    assert done.returncode == 0
    assert "ort-cpu" in done.stdout
    with pytest.raises(InputError):
        regressions(result | {"shape": [1, 1, 1]}, saved, 1.2)
    (tmp_path / "junk.json").write_text("[]")
    with pytest.raises(InputError):
        regressions(result, tmp_path / "junk.json", 1.2)


def test_engine_that_cannot_run_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"junk")
    asked = ("--model", tmp_path / "a.onnx", "--shape", "9x9x2", "--engine", "ort-cpu")
    done = leuda_here("bench", *asked)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert str(tmp_path / "a.onnx") in done.stderr


def test_engines_are_named_in_a_list_and_a_wrong_name_is_one_line(
    make_model: MakeModel, tmp_path: Path
) -> None:
    model = make_model(tmp_path)
    found = bench(model, "ort-cpu,openvino", (20, 20, 3), rounds=1, threads=1)
    assert [row["engine"] for row in found["engines"]] == ["ort-cpu", "openvino"]
    with pytest.raises(InputError) as caught:
        bench(model, "ort-cpu,opnvino", (20, 20, 3), rounds=1, threads=1)
    assert "'opnvino'" in str(caught.value)


def test_shape_reads_as_people_write_it() -> None:
    assert parse_shape("512x512X300") == (512, 512, 300)
    for wrong in ("512", "1x2", "axbxc", "0x1x1"):
        with pytest.raises(InputError):
            parse_shape(wrong)


def test_dice_by_engine_and_precision_on_labelled_scans(
    make_model: MakeModel, tmp_path: Path, threshold_labels: ThresholdLabels
) -> None:
    model, affine = make_model(tmp_path / "model"), np.diag([1.0, 1.0, 4.0, 1.0])
    scans = []
    for seed in range(2):
        raw = np.random.default_rng(seed).integers(0, 1001, (20, 24, 5)).astype(np.int16)
        raw[0, 0, :2] = 0, 1000
        truth = threshold_labels(raw) * np.uint8(10)
        truth[:10] = np.where(truth[:10] == 20, 0, truth[:10])  # half of the bright is missing
        image, label = tmp_path / f"{seed}_image.nii.gz", tmp_path / f"{seed}_label.nii.gz"
        nib.save(nib.Nifti1Image(raw, affine), image)
        nib.save(nib.Nifti1Image(truth, affine), label)
        scans.append(Labelled(image=image, label=label, class_of_raw={10: 1, 20: 2}))
    labelled = LabelledScans(scans=scans, structures=("grey", "bright"))
    opened = ModelFile.open(model)
    (row,) = accuracy(opened, ["ort-cpu"], labelled, threads=1)
    assert (row["engine"], row["scans"]) == ("ort-cpu", 2)
    assert row["dice"]["grey"] == 1
    assert row["dice"]["bright"] == pytest.approx(2 / 3, abs=0.03)
    assert row["mean_dice"] == pytest.approx((1 + row["dice"]["bright"]) / 2, abs=1e-4)
    for wrong in (
        LabelledScans(scans=scans, structures=("bright", "grey")),
        LabelledScans(scans=(), structures=("grey", "bright")),
    ):
        with pytest.raises(InputError):
            check_fits(opened, wrong)


def test_a_cohort_gives_its_labelled_target_scans(tmp_path: Path) -> None:
    found = labelled_targets(write_tiny_cohort(tmp_path))
    assert found.structures
    assert found.scans
    assert all(scan.label.is_file() and scan.class_of_raw for scan in found.scans)
