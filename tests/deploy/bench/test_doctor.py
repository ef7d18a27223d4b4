"""`leuda doctor`: engines are really run, and its exit status is whether infer would run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.command import leuda
from support.makers import MakeModel

from leuda_deploy.bench import doctor
from leuda_deploy.bench.doctor import diagnose
from leuda_deploy.model.model_file import ModelFile


def test_what_runs_is_said_and_the_exit_status_is_that(tmp_path: Path) -> None:
    done = leuda("doctor", "--json", LEUDA_CACHE=str(tmp_path / "cache"))
    found = json.loads(done.stdout)
    assert done.returncode == 0
    assert found["fit"]
    assert "ort-cpu" in found["runs_on"]
    assert found["machine"]["cores"] > 0
    states = {finding["name"]: finding["state"] for finding in found["findings"]}
    assert states["ort-cpu"] == "works"
    assert states["cache"] == "works"
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700


def test_an_engine_that_does_not_run_is_found(make_model: MakeModel, tmp_path: Path) -> None:
    # ONNX Runtime runs no bf16 on a processor
    model = ModelFile.open(make_model(tmp_path, precision="bf16"))
    found = diagnose(model)
    broken = {finding.name: finding for finding in found.findings}["ort-cpu"]
    assert broken.state == "broken"
    assert broken.mend
    assert "ort-cpu" not in found.runs_on
    # `infer` takes what is left: OpenVINO runs bf16 where it is installed, on x86 that has it
    assert found.fit == ("openvino" in found.runs_on)


def test_packages_that_exclude_each_other_and_a_closed_cache_are_named(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = {"onnxruntime": "1.22", "onnxruntime-gpu": "1.22"}
    monkeypatch.setattr(doctor, "installed", lambda: versions)
    monkeypatch.setattr(
        doctor, "_engine", lambda model, name: doctor.Finding(name=name, state="absent", detail="")
    )
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LEUDA_CACHE", str(tmp_path / "file" / "cache"))
    found = {f.name: f for f in diagnose(ModelFile.open(make_model(tmp_path))).findings}
    assert found["onnxruntime"].state == "conflict"
    assert found["cache"].state == "broken"
    assert found["cache"].mend
