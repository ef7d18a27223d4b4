"""Which TensorRT engine runs: the one that was proven and fits, or one line that says why none.

The GPU and TensorRT itself are stood in for; running an engine needs both (marker gpu).
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.engine_files import HERE, VERSION, with_engine
from support.makers import MakeModel

from leuda_deploy.engines.engine import EngineName, EngineSettings
from leuda_deploy.engines.onnx_runtime import OnnxEngine
from leuda_deploy.engines.open_engine import open_engine
from leuda_deploy.engines.tensorrt import engine as tensorrt_engine
from leuda_deploy.engines.tensorrt import engine_fit
from leuda_deploy.engines.tensorrt.engine_fit import EngineRefusedError, fitting_engine
from leuda_deploy.errors import InputError, LeudaError, ParityError
from leuda_deploy.export import add_engines as add_engines_module
from leuda_deploy.export.add_engines import add_engines
from leuda_deploy.export.to_tensorrt import EngineTarget, engine_targets
from leuda_deploy.inference.segmenter import Segmenter
from leuda_deploy.inference.settings import Settings
from leuda_deploy.machine.gpu import find_gpu
from leuda_deploy.model.export_folder import (
    MODEL_FILE,
    default_model,
    read_manifest,
    write_manifest,
)
from leuda_deploy.model.model_file import ModelFile
from leuda_deploy.proof.probes import make_probes
from leuda_deploy.proof.trial import trial_key


@pytest.fixture
def folder(make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An export folder on a machine with a GPU and TensorRT, where nothing was tried before."""
    monkeypatch.setenv("LEUDA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(engine_fit, "find_gpu", lambda: HERE)
    monkeypatch.setattr(
        engine_fit,
        "installed_version",
        lambda family: VERSION if family == "tensorrt" else None,
    )
    return make_model(tmp_path / "export").parent


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime runs in place of TensorRT."""
    monkeypatch.setattr(tensorrt_engine, "TensorRTEngine", lambda model, name: OnnxEngine(model))


@pytest.mark.usefixtures("stand_in")
def test_proven_engine_that_fits_is_opened_by_name(folder: Path) -> None:
    engine = open_engine(ModelFile.open(with_engine(folder)), "tensorrt")
    assert engine(np.zeros((1, 1, 16, 16), np.float32)).shape == (1, 3, 16, 16)


@pytest.mark.parametrize(
    ("changes", "refusal", "reason"),
    [
        ({"family": "tensorrt_rtx"}, "missing", None),
        ({"capability": "8.6"}, "misfit", "compute capability"),
        ({"gpu": "NVIDIA A100"}, "misfit", "gpu"),
        ({"version": "10.1"}, "misfit", "version"),
        ({"onnx_sha256": "0" * 64}, "misfit", "model"),
        ({"proven": False}, "unproven", None),
        ({"sha256": "0" * 64}, "altered", None),
    ],
)
def test_engine_asked_for_by_name_is_refused_where_it_cannot_run(
    folder: Path, changes: dict[str, Any], refusal: str, reason: str | None
) -> None:
    model = ModelFile.open(with_engine(folder, **changes))
    with pytest.raises(EngineRefusedError) as refused:
        open_engine(model, "tensorrt")
    assert refused.value.refusal == refusal
    assert [misfit.reason for misfit in refused.value.misfits] == ([reason] if reason else [])
    assert "\n" not in str(refused.value)
    # by its passport alone it is taken: the code is hashed where it is loaded
    assert (fitting_engine(model, "tensorrt") is not None) == ("sha256" in changes)


def test_a_misfit_says_what_is_wanted_and_what_is_here(folder: Path) -> None:
    with_engine(folder, capability="8.6")
    with pytest.raises(EngineRefusedError) as refused:
        Segmenter(folder, Settings(engine="tensorrt"))
    (misfit,) = refused.value.misfits
    assert (misfit.wants, misfit.here) == ("8.6", HERE.capability)


def test_model_without_engines_is_refused(folder: Path) -> None:
    def refusal(path: Path, name: EngineName) -> str:
        with pytest.raises(EngineRefusedError) as refused:
            open_engine(ModelFile.open(path), name)
        return refused.value.refusal

    assert refusal(folder, "tensorrt") == "no export"
    write_manifest(folder)
    assert refusal(folder, "tensorrt-rtx") == "missing"
    shutil.copy(folder / MODEL_FILE, folder / "other.onnx")
    assert refusal(folder / "other.onnx", "tensorrt") == "no export"


@pytest.mark.usefixtures("stand_in")
def test_engine_that_takes_more_than_the_budget_is_refused_with_the_least(folder: Path) -> None:
    with_engine(folder)
    with pytest.raises(InputError, match=r"--max-gpu-memory 101M"):
        Segmenter(folder, Settings(engine="tensorrt", max_gpu_bytes=50 * 10**6))
    Segmenter(folder, Settings(engine="tensorrt", max_gpu_bytes=101 * 10**6))


def test_a_new_engine_is_tried_anew(folder: Path) -> None:
    settings = EngineSettings(threads=1)

    def key() -> str:
        return trial_key(ModelFile.open(folder), "tensorrt", settings)

    alone = key()
    with_engine(folder)
    first = key()
    assert first == key() != alone
    with_engine(folder, code=b"other code")
    assert key() not in (first, alone)
    with_engine(folder, proven=False)
    assert key() == alone  # as if there were none
    assert trial_key(ModelFile.open(folder), "ort-cpu", settings) != alone


class OnnxInPlace(OnnxEngine):
    """ONNX Runtime in place of a TensorRT engine that is to be proven; `scale` makes it wrong."""

    memory_mb, scale = 70.0, 1.0

    def __init__(self, model: ModelFile, name: str, *, unproven: bool) -> None:
        assert unproven
        super().__init__(model)

    def __call__(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.float32(self.scale) * super().__call__(windows)

    def inspect(self) -> dict[str, str]:
        return {}


def test_engine_that_is_there_unproven_is_proven_and_not_built_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "model.here.engine"
    with_engine(folder, proven=False)
    key = read_manifest(folder).engines[name].key()
    monkeypatch.setattr(EngineTarget, "key", lambda self, onnx_sha256: key)
    monkeypatch.setattr(
        add_engines_module, "to_tensorrt", lambda *asked, **more: pytest.fail("built again")
    )
    monkeypatch.setattr(add_engines_module, "TensorRTEngine", OnnxInPlace)
    images = np.random.default_rng(0).uniform(-1, 1, (8, 16, 16)).astype(np.float32)
    target = EngineTarget(family="tensorrt", name="here", capability="8.9", gpu=HERE.name)
    assert not add_engines(ModelFile.open(folder), [target], probes=None)[name].proven
    assert add_engines(ModelFile.open(folder), [target], probes=make_probes({"noise": images}))[
        name
    ].proven
    assert read_manifest(folder).engines[name].proven
    monkeypatch.setattr(OnnxInPlace, "scale", 2.0)
    add_engines(
        ModelFile.open(folder), [target], probes=make_probes({"noise": images})
    )  # proven before: not again
    with_engine(folder, proven=False)
    with pytest.raises(ParityError):
        add_engines(ModelFile.open(folder), [target], probes=make_probes({"noise": images}))
    assert not (folder / name).exists()
    assert read_manifest(folder).engines == {}


@pytest.mark.gpu
def test_engine_of_this_gpu_labels_as_onnx_runtime_does(tmp_path: Path) -> None:
    if find_gpu() is None:
        pytest.skip("no NVIDIA GPU here")
    shutil.copytree(default_model(), tmp_path / "export")
    images = np.random.default_rng(0).uniform(-1, 1, (16, 64, 64)).astype(np.float32)
    (target,) = engine_targets([])
    add_engines(
        ModelFile.open(tmp_path / "export"), [target], probes=make_probes({"noise": images})
    )
    name: Any = target.family.replace("_", "-")
    found = open_engine(ModelFile.open(tmp_path / "export"), name)
    reference = OnnxEngine(ModelFile.open(tmp_path / "export"), threads=1)
    assert found.sha256 == reference.sha256
    for batch in (3, 1, 20):
        windows = np.resize(images[:, None], (batch, 1, 64, 64))
        labels = reference(windows).argmax(axis=1)
        assert (found(windows).argmax(axis=1) != labels).mean() < 1e-3
    with pytest.raises(LeudaError):
        open_engine(
            ModelFile.open(tmp_path / "export"), "tensorrt" if "rtx" in name else "tensorrt-rtx"
        )
