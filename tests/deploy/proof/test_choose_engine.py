"""The fastest engine that agrees runs; one that was named runs, too, but not in silence."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from support.makers import MakeModel

from leuda_deploy.engines.engine import EngineName, EngineSettings, Float32
from leuda_deploy.model.model_file import ModelFile
from leuda_deploy.proof import choose_engine as module
from leuda_deploy.proof.choose_engine import (
    NoEngineError,
    check_named,
    choose_engine,
    explain,
    installed_engines,
    is_settled,
)
from leuda_deploy.proof.trial import Trial

SETTINGS = EngineSettings(threads=1)
TRIALS = {
    "openvino": Trial(
        engine="openvino", description="", failure="disagrees", detail="by far", window_ms={1: 0.1}
    ),
    "ort-cpu": Trial(
        engine="ort-cpu",
        description="",
        window_ms={1: 3.0, 2: 2.0, 4: 1.99},
        growth_bytes={1: 1, 2: 2, 4: 4},
    ),
    "ort-cuda": Trial(engine="ort-cuda", description="", disagreement=1e-5, window_ms={1: 2.5}),
    "tensorrt": Trial(engine="tensorrt", description="", failure="crashed", detail="code -11"),
}


@pytest.fixture
def model(make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> ModelFile:
    return ModelFile.open(make_model(tmp_path_factory.mktemp("model")))


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was found of each engine, without trying any."""

    def trial(model: ModelFile, name: EngineName, *other: Any) -> Trial:
        return TRIALS[name]

    monkeypatch.setattr(module, "try_engine", trial)


def windows() -> Float32:
    return np.random.default_rng(0).normal(size=(4, 1, 16, 16)).astype(np.float32)


@pytest.mark.usefixtures("tried")
def test_the_fastest_that_agrees_is_taken(
    model: ModelFile, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        choice = choose_engine(
            model, ["tensorrt", "openvino", "ort-cuda", "ort-cpu"], SETTINGS, windows
        )
    # TensorRT does not run; then CUDA is taken, and no time of the CPU's is asked for
    assert choice.engine == "ort-cuda"
    assert {trial.engine for trial in choice.others} == {"tensorrt"}
    assert len(caplog.records) == 2  # one passed over, one chosen


@pytest.mark.usefixtures("tried")
def test_without_a_gpu_it_is_the_fastest_on_the_cpu(model: ModelFile) -> None:
    TRIALS["openvino"], wrong = (
        Trial(engine="openvino", description="", disagreement=0.0, window_ms={1: 2.0}),
        TRIALS["openvino"],
    )
    try:
        choice = choose_engine(model, ["openvino", "ort-cpu"], SETTINGS, windows)
    finally:
        TRIALS["openvino"] = wrong
    assert choice.engine == "ort-cpu"
    assert choice.trial.batch == 2  # as fast as 4, give or take five per cent


def test_openvino_that_disagrees_in_bf16_runs_in_fp32(
    model: ModelFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = Trial(engine="openvino", description="fp32", disagreement=0.0, window_ms={1: 1.0})

    def trial(model: ModelFile, name: EngineName, settings: EngineSettings, *other: Any) -> Trial:
        return exact if (name, settings.precision) == ("openvino", "fp32") else TRIALS[name]

    monkeypatch.setattr(module, "try_engine", trial)
    monkeypatch.setattr(
        module, "kept_trial", lambda model, name, settings: trial(model, name, settings)
    )
    monkeypatch.setattr(module, "installed_engines", lambda *asked: ("openvino", "ort-cpu"))
    choice = choose_engine(model, ["openvino", "ort-cpu"], SETTINGS, windows)
    assert choice.engine == "openvino"
    assert choice.settings == replace(SETTINGS, precision="fp32")
    assert [trial.failure for trial in choice.others] == ["disagrees", None]
    assert is_settled(model, "auto", SETTINGS)
    # who asked for bf16 gets that or nothing
    with pytest.raises(NoEngineError):
        choose_engine(model, ["openvino"], replace(SETTINGS, precision="bf16"), windows)


@pytest.mark.usefixtures("tried")
def test_where_none_agrees_each_says_why(model: ModelFile) -> None:
    with pytest.raises(NoEngineError) as refused:
        choose_engine(model, ["tensorrt", "openvino"], SETTINGS, windows)
    # OpenVINO in the precision it takes, then in fp32
    failures = [trial.failure for trial in refused.value.trials]
    assert failures == ["crashed", "disagrees", "disagrees"]
    with pytest.raises(NoEngineError) as refused:
        choose_engine(model, [], SETTINGS, windows)
    assert refused.value.trials == ()


@pytest.mark.usefixtures("tried")
def test_a_named_engine_that_disagrees_runs_with_a_warning_and_a_broken_one_not_at_all(
    model: ModelFile, caplog: pytest.LogCaptureFixture
) -> None:
    assert check_named(model, "ort-cpu", SETTINGS, windows).engine == "ort-cpu"
    assert caplog.records == []
    assert check_named(model, "openvino", SETTINGS, windows).engine == "openvino"
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    with pytest.raises(NoEngineError) as refused:
        check_named(model, "tensorrt", SETTINGS, windows)
    assert [trial.failure for trial in refused.value.trials] == ["crashed"]


def test_settled_once_every_candidate_was_tried(
    model: ModelFile, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setenv("LEUDA_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(module, "installed_engines", lambda *asked: ("ort-cpu",))
    assert not is_settled(model, "ort-cpu", SETTINGS)
    check_named(model, "ort-cpu", SETTINGS, windows)
    assert is_settled(model, "ort-cpu", SETTINGS)
    assert is_settled(model, "auto", SETTINGS)
    assert not is_settled(model, "auto", replace(SETTINGS, threads=2))
    # of a rank before it, or of its own; of one behind it none has to be tried
    for other in ("ort-cuda", "openvino"):
        monkeypatch.setattr(module, "installed_engines", lambda *asked, o=other: ("ort-cpu", o))
        assert not is_settled(model, "auto", SETTINGS)


def test_side_by_side_only_the_cpu_counts(
    model: ModelFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert "ort-cuda" in installed_engines(model)
    assert set(installed_engines(model, "auto", True)) <= {"openvino", "ort-cpu"}


def test_bf16_leaves_openvino_alone(model: ModelFile) -> None:
    assert set(installed_engines(model, "bf16")) <= {"openvino"}
    assert "ort-cpu" in installed_engines(model)


def test_every_finding_is_one_line() -> None:
    trials = [*TRIALS.values(), Trial(engine="ort-cpu", description="", failure="no memory")]
    trials += [Trial(engine="openvino", description="", failure="not judged", window_ms={1: 1.0})]
    lines = [explain(trial) for trial in trials]
    assert len(set(lines)) == len(lines)
    assert all(line and "\n" not in line for line in lines)


@pytest.mark.usefixtures("tried")
def test_an_int8_graph_that_is_another_network_here_is_refused_by_name_too(
    make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("int8")
    model = ModelFile.open(make_model(folder, precision="int8"))
    with pytest.raises(NoEngineError) as refused:
        check_named(model, "openvino", SETTINGS, windows)
    assert [trial.failure for trial in refused.value.trials] == ["disagrees"]
    assert check_named(model, "ort-cpu", SETTINGS, windows).engine == "ort-cpu"
