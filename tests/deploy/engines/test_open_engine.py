"""Engines give the same scores for any batch, from any thread, in the precision asked for."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.makers import MakeModel

from leuda_deploy.engines.engine import EngineName, EngineSettings
from leuda_deploy.engines.onnx_runtime import OnnxEngine
from leuda_deploy.engines.open_engine import open_engine, reference_engine
from leuda_deploy.engines.openvino import OpenVinoEngine
from leuda_deploy.errors import InputError, LeudaError
from leuda_deploy.machine.gpu import find_gpu
from leuda_deploy.model.export_folder import default_model
from leuda_deploy.model.model_file import ModelFile


@pytest.fixture(scope="module")
def model(make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> ModelFile:
    return ModelFile.open(make_model(tmp_path_factory.mktemp("model")))


def openvino_engine(model: ModelFile, **settings: Any) -> OpenVinoEngine:
    pytest.importorskip("openvino", reason="the openvino extra is not installed")
    return OpenVinoEngine(model, **({"threads": 1} | settings))


@pytest.mark.parametrize("threads", [1, 3])
def test_openvino_fp32_agrees_with_onnx_runtime_for_any_batch(
    model: ModelFile, threads: int
) -> None:
    engine = openvino_engine(model, precision="fp32", threads=threads)
    reference = OnnxEngine(model, threads=1)
    assert 1 <= engine.streams <= threads
    assert engine.precision == "fp32"
    assert engine.sha256 == reference.sha256 == model.sha256
    for batch in (3, 1, 8):
        windows = np.random.default_rng(0).normal(size=(batch, 1, 16, 16)).astype(np.float32)
        found = engine(windows)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, reference(windows), atol=1e-5)
        before = found.copy()
        engine(-windows)
        np.testing.assert_array_equal(found, before)  # the caller's own


def test_engine_is_shared_by_threads(model: ModelFile) -> None:
    engine, reference = openvino_engine(model, precision="fp32"), OnnxEngine(model, threads=1)
    windows = np.random.default_rng(0).normal(size=(40, 2, 1, 16, 16)).astype(np.float32)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(engine, windows))
    for some, scores in zip(windows, found, strict=True):
        np.testing.assert_allclose(scores, reference(some), atol=1e-5)


@pytest.mark.parametrize("name", ["ort-cpu", "ort-cuda", "tensorrt", "tensorrt-rtx"])
def test_bf16_is_for_openvino(model: ModelFile, name: EngineName) -> None:
    with pytest.raises(InputError):
        open_engine(model, name, EngineSettings(precision="bf16"))


def has_bf16() -> bool:
    openvino = pytest.importorskip("openvino", reason="the openvino extra is not installed")
    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def test_bf16_runs_where_the_processor_has_it() -> None:
    if not has_bf16():
        pytest.skip("this processor has no bf16")
    model = ModelFile.open(default_model())
    found, exact = (
        openvino_engine(model, precision="bf16"),
        openvino_engine(model, precision="fp32"),
    )
    assert found.precision == "bf16"
    assert found.layers["bf16"] >= 10
    windows = np.random.default_rng(0).normal(size=(2, 1, *model.card.window)).astype(np.float32)
    gap = np.abs(found(windows) - exact(windows)).max()
    assert 0 < gap < 0.5  # another precision, the same network


def test_bf16_is_refused_where_the_processor_lacks_it(
    model: ModelFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    openvino = pytest.importorskip("openvino", reason="the openvino extra is not installed")

    class WithoutBf16(openvino.Core):  # type: ignore[misc, name-defined]
        def get_property(self, device: str, name: str) -> Any:
            found = super().get_property(device, name)
            return [x for x in found if x != "BF16"] if name.endswith("CAPABILITIES") else found

    monkeypatch.setattr(openvino, "Core", WithoutBf16)
    with pytest.raises(LeudaError) as refused:
        OpenVinoEngine(model, precision="bf16", threads=1)
    assert not isinstance(refused.value, InputError)  # right to ask for, but not here
    assert OpenVinoEngine(model, threads=1).precision == "fp32"  # auto takes what there is


def test_the_reference_is_onnx_runtime_or_where_it_cannot_run_openvino(model: ModelFile) -> None:
    reference = reference_engine(model, threads=1)
    assert isinstance(reference, OnnxEngine)
    assert (reference.provider, reference.precision) == ("CPUExecutionProvider", "fp32")
    pytest.importorskip("openvino", reason="the openvino extra is not installed")
    from dataclasses import replace

    half = replace(model, card=model.card.model_copy(update={"precision": "bf16"}))
    assert isinstance(reference_engine(half, threads=1), OpenVinoEngine)
    with pytest.raises(LeudaError):
        OnnxEngine(half, threads=1)


@pytest.mark.gpu
def test_cuda_with_io_binding_agrees_with_the_cpu(model: ModelFile) -> None:
    if find_gpu() is None:  # where there is one, an engine that does not open is a failure
        pytest.skip("no NVIDIA GPU here")
    engine = OnnxEngine(model, provider="cuda", max_gpu_bytes=1 << 30)
    reference = OnnxEngine(model, threads=1)
    for batch in (3, 1, 3):
        windows = np.random.default_rng(batch).normal(size=(batch, 1, 16, 16)).astype(np.float32)
        np.testing.assert_allclose(engine(windows), reference(windows), atol=1e-3)


def test_a_folder_stands_for_the_model_in_it(make_model: MakeModel, tmp_path: Path) -> None:
    path = make_model(tmp_path)
    assert OnnxEngine(ModelFile.open(tmp_path), threads=1).path == path
