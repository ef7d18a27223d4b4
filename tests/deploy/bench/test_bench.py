"""`leuda bench`: figures of every engine, and a gate that compares two result files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from support.command import leuda_here
from support.makers import MakeModel

from leuda_deploy.bench.bench import bench, parse_shape, regressions
from leuda_deploy.errors import InputError


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
