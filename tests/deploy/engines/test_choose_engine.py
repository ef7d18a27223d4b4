"""Which TensorRT engine runs: the one that was proven and fits, or one line that says why none.

The GPU and TensorRT itself are stood in for; running an engine needs both (marker gpu).
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.engine_files import HERE, VERSION, with_engine
from support.makers import MakeModel, MakeVolume

from leuda_deploy.engines import engine_fit
from leuda_deploy.engines import tensorrt as tensorrt_engine
from leuda_deploy.engines.engine import EngineSettings
from leuda_deploy.engines.onnx_runtime import OnnxEngine
from leuda_deploy.engines.open_engine import open_engine
from leuda_deploy.errors import InputError, LeudaError, ModelError, ParityError
from leuda_deploy.export import add_engines as add_engines_module
from leuda_deploy.export.add_engines import add_engines
from leuda_deploy.export.to_tensorrt import EngineTarget, engine_targets
from leuda_deploy.inference import segmenter as segmenter_module
from leuda_deploy.inference.segmenter import Segmenter, installed_engines
from leuda_deploy.inference.settings import Settings
from leuda_deploy.machine.files import file_sha256
from leuda_deploy.machine.gpu import find_gpu
from leuda_deploy.model.default_model import default_model
from leuda_deploy.model.export_folder import MODEL_FILE, read_manifest, write_manifest
from leuda_deploy.model.model_file import ModelFile
from leuda_deploy.proof.probes import make_probes
from leuda_deploy.proof.trial import Trial


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
    ("changes", "message"),
    [
        ({"family": "tensorrt_rtx"}, r"has no tensorrt engine; build it: leuda export .* --trt"),
        ({"capability": "8.6"}, r"compute capability: the engine is for 8\.6, here it is 8\.9"),
        ({"gpu": "NVIDIA A100"}, "gpu: the engine is for NVIDIA A100"),
        ({"version": "10.1"}, "tensorrt version: the engine is for 10.1"),
        ({"onnx_sha256": "0" * 64}, "onnx_sha256"),
        ({"proven": False}, "never compared with ONNX Runtime.*--prove"),
        ({"sha256": "0" * 64}, "nothing was loaded"),
    ],
)
def test_engine_asked_for_by_name_is_one_line_where_it_cannot_run(
    folder: Path, changes: dict[str, Any], message: str
) -> None:
    model = with_engine(folder, **changes)
    with pytest.raises(ModelError, match=message) as refused:
        Segmenter(folder, Settings(engine="tensorrt"))
    assert "\n" not in str(refused.value)
    assert "tensorrt" not in installed_engines(ModelFile.open(model)) or "sha256" in changes


def test_model_without_engines_is_one_line(folder: Path) -> None:
    with pytest.raises(ModelError, match="has no manifest"):
        open_engine(ModelFile.open(folder), "tensorrt")
    write_manifest(folder)
    with pytest.raises(ModelError, match="has no tensorrt_rtx engine"):
        open_engine(ModelFile.open(folder), "tensorrt-rtx")
    shutil.copy(folder / MODEL_FILE, folder / "other.onnx")
    with pytest.raises(ModelError, match="no export folder's model"):
        open_engine(ModelFile.open(folder / "other.onnx"), "tensorrt")
    with pytest.raises(InputError, match="bf16 is for openvino"):
        open_engine(ModelFile.open(folder), "tensorrt", EngineSettings(precision="bf16"))


@pytest.mark.usefixtures("stand_in")
def test_engine_that_takes_more_than_the_budget_is_refused_with_the_least(folder: Path) -> None:
    with_engine(folder)
    with pytest.raises(InputError, match=r"takes 100 MB .* --max-gpu-memory 101M"):
        Segmenter(folder, Settings(engine="tensorrt", max_gpu_bytes=50 * 10**6))
    Segmenter(folder, Settings(engine="tensorrt", max_gpu_bytes=101 * 10**6))


@pytest.mark.usefixtures("stand_in")
def test_auto_takes_it_where_it_is_fastest_and_tries_a_new_one_anew(
    folder: Path, make_volume: MakeVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[tuple[str, str]] = []

    def trial(name: Any, model: ModelFile, code: str, *more: Any) -> Trial:
        tried.append((name, code))
        return Trial(
            engine=name,
            description=name,
            failure=None if name in ("tensorrt", "ort-cpu") else "not here",
            agreement="it agrees",
            window_ms={1: 1.0 if name == "tensorrt" else 9.0},
            growth_bytes={1: 0},
        )

    monkeypatch.setattr(segmenter_module, "try_engine", trial)
    model = with_engine(folder)
    said: list[str] = []
    segmenter = Segmenter(folder, Settings(engine="auto"), say=said.append)
    values = np.random.default_rng(0).integers(0, 1000, (20, 18, 3)).astype(np.int16)
    segmenter.engine_for(segmenter.stack(make_volume(values)))
    assert any("chose tensorrt" in line for line in said)
    codes = dict(tried)
    assert codes["ort-cpu"] == file_sha256(model)
    assert codes["tensorrt"] == hashlib.sha256(b"code").hexdigest()
    with_engine(folder, proven=False)
    assert "tensorrt" not in installed_engines(ModelFile.open(model))


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
