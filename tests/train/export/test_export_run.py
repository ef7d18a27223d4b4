"""What export writes is proven; what was tampered with is refused, at the right stage and layer."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from support import tiny
from support.engine_files import FileLooks
from typer.testing import CliRunner

from leuda_deploy.engines.onnx_runtime import OnnxEngine
from leuda_deploy.errors import ParityError
from leuda_deploy.export import lower_precision as lower_module
from leuda_deploy.machine.files import file_sha256
from leuda_deploy.model.card import GraphOptions
from leuda_deploy.model.export_folder import read_manifest
from leuda_deploy.model.model_file import ModelFile, write_model
from leuda_deploy.model.tiling import Tiling
from leuda_deploy.scans.dicom.rules import SeriesRules
from leuda_train.cli import app
from leuda_train.export import proven as export_module
from leuda_train.export.export_run import export_run
from leuda_train.export.product_file import (
    ProductFacts,
    build_product,
    load_product,
    save_product,
)
from leuda_train.export.proven import scores_windows_alone
from leuda_train.networks.product import TorchEngine

pytestmark = pytest.mark.slow
FIRST, SECOND = "PyTorch fp32 -> ONNX Runtime CPU fp32", "ONNX fp32 -> ONNX Runtime CPU fp16"


def by_engine(stage: str) -> list[str]:
    """The stage with each engine that is installed."""
    there = ["ONNX Runtime", *(["OpenVINO"] if find_spec("openvino") else [])]
    return [stage.replace("ONNX Runtime", name) for name in there]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with an untrained product, whose batch norms have seen something."""
    torch.manual_seed(0)
    config = tiny.config(unet={"widths": [8, 16, 32], "dropout": [0.0, 0.1, 0.1]})
    facts = ProductFacts(
        recipe={"slice_axis": "superior", "spacing_mm": "native", "window": (32, 32)},
        structures=("one", "two", "three"),
        codes={"two": ("SCT", "10200004", "Liver")},
        modality="CT",
        feed="target_as_source",
        network="intra_teacher",
        widths=config.unet.widths,
        dropout=config.unet.dropout,
        generator=(4, 1),
        method="none",
        cohort="none",
        cohort_sha256="0" * 64,
        config={},
        seed=0,
        steps=0,
        hardware="cpu",
    )
    product = build_product(facts)
    rng = np.random.default_rng(0)
    coarse = rng.normal(size=(40, 8, 8)).astype(np.float32)
    images = np.kron(coarse, np.ones((1, 4, 4), np.float32)) + rng.normal(
        size=(40, 32, 32), scale=0.2
    ).astype(np.float32)
    product.train()
    for _ in range(10):
        product(torch.from_numpy(images[:, None]))
    folder = tmp_path_factory.mktemp("run")
    families = {"target": images[:24], "source_as_target": images[24:32]}
    save_product(folder, product, facts, families)
    return folder


def test_an_export_says_how_it_was_proven(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "exports" / "tiny"
    model, parity = export_run(run, out)
    assert {path.name for path in out.iterdir()} == {
        "model.onnx",
        "card.json",
        "parity.json",
        "manifest.json",
    }
    stage, *others = json.loads((out / "parity.json").read_text())["stages"]
    assert [stage, *others][-1] == json.loads(json.dumps(parity.as_dict()))
    assert [row["stage"] for row in (stage, *others)] == by_engine(FIRST)
    assert stage["real_windows"] >= 64
    assert stage["windows"] > stage["real_windows"]
    assert 0 < stage["max_abs"] < 1e-4
    assert list(stage["class_dice"]) == ["background", "one", "two", "three"]
    assert model.card.precision == "fp32"
    assert [each.code for each in model.card.structures] == [
        None,
        ("SCT", "10200004", "Liver"),
        None,
    ]
    assert model == ModelFile.open(out)
    manifest = read_manifest(out)
    assert manifest.files["model.onnx"] == file_sha256(out / "model.onnx")


def test_fp16_keeps_inputs_statistics_and_scores_in_fp32(run: Path, tmp_path: Path) -> None:
    made, parity = export_run(run, tmp_path / "half", precision="fp16")
    assert made.card.precision == "fp16"
    assert parity.stage == by_engine(SECOND)[-1]
    assert 1e-5 < parity.max_abs < 0.05
    model = onnx.load(tmp_path / "half" / "model.onnx")
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in onnx.shape_inference.infer_shapes(model).graph.value_info
    }
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    by_operator: dict[str, set[int]] = {}
    for node in model.graph.node:
        by_operator.setdefault(node.op_type, set()).add(types.get(node.output[0], 1))
    assert by_operator["InstanceNormalization"] == {onnx.TensorProto.FLOAT}
    assert by_operator["ConvTranspose"] == by_operator["MaxPool"] == {onnx.TensorProto.FLOAT16}
    assert by_operator["Conv"] == {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16}  # the last one
    stages = json.loads((tmp_path / "half" / "parity.json").read_text())["stages"]
    assert [stage["stage"] for stage in stages] == by_engine(FIRST) + by_engine(SECOND)


def test_dynamic_window_and_probabilities_are_said_and_done(run: Path, tmp_path: Path) -> None:
    options = GraphOptions(dynamic_window=True, output="probabilities")
    model, _ = export_run(run, tmp_path / "open", options=options)
    assert model.card.options.window_multiple == 4
    engine = OnnxEngine(ModelFile.open(tmp_path / "open"), threads=1)
    windows = np.random.default_rng(1).normal(size=(3, 1, 48, 20)).astype(np.float32)
    found = engine(windows)
    np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=1e-5)
    product, _, _ = load_product(run)
    expected = torch.from_numpy(TorchEngine(product, tiny.CPU)(windows)).softmax(1).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_tiling_is_in_the_card_and_empty_windows_are_left_out_where_that_is_proven(
    run: Path, tmp_path: Path
) -> None:
    asked = Tiling(overlap=0.25, blending="constant", mirror=("rows",))
    rules = SeriesRules(description=("portal",), prefer="thinnest")
    model, _ = export_run(run, tmp_path / "tiled", tiling=asked, series=rules)
    assert ModelFile.open(model.path).card.series == rules
    assert model.card.tiling == asked.model_copy(update={"skip_floor": True})
    windows = np.random.default_rng(0).normal(size=(4, 1, 8, 8)).astype(np.float32)

    def alone(windows: np.ndarray) -> np.ndarray:
        return np.concatenate([windows, 2 * windows], axis=1)

    def by_the_batch(windows: np.ndarray) -> np.ndarray:  # as batch norm in training does
        return alone(windows - windows.mean())

    assert scores_windows_alone(alone, windows)
    assert not scores_windows_alone(by_the_batch, windows)
    assert not scores_windows_alone(lambda w: np.concatenate([w, w], axis=1), windows)  # a tie


class Swapped(torch.nn.Module):
    """A product with two output channels exchanged."""

    def __init__(self, product: torch.nn.Module) -> None:
        super().__init__()
        self.product = product

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        return self.product(windows)[:, [0, 2, 1, 3]]


def swap_channels(honest, module, card, path):
    return honest(Swapped(module), card, path)


def drop_last_batch_norm(honest, module, card, path):
    module = copy.deepcopy(module)
    assert isinstance(module.network.decoder[-1][5], torch.nn.BatchNorm2d)
    module.network.decoder[-1][5] = torch.nn.Identity()
    return honest(module, card, path)


def shift_weights(honest, module, card, path):
    made = honest(module, card, path)
    return write_model(shifted(made.graph(), "network.encoder.1.4.weight"), made.card, path)


def shifted(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The graph with 1e-2 added to one weight tensor."""
    (tensor,) = [t for t in model.graph.initializer if t.name == name]
    values = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(values + values.dtype.type(1e-2), name))
    return model


@pytest.mark.parametrize(
    ("sabotage", "layer"),
    [
        (swap_channels, "every layer up to network.output agrees"),
        (shift_weights, "the first layer that differs is network.encoder.1.4 with its batch norm"),
        (
            drop_last_batch_norm,
            "the first layer that differs is network.decoder.1.4 with its batch norm",
        ),
    ],
)
def test_a_sabotaged_onnx_file_is_refused_at_the_first_stage(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sabotage: Callable[..., object],
    layer: str,
) -> None:
    honest = export_module.to_onnx
    monkeypatch.setattr(export_module, "to_onnx", lambda *given: sabotage(honest, *given))
    with pytest.raises(ParityError) as refused:
        export_run(run, tmp_path / "exports" / "bad", precision="fp16")
    said = str(refused.value)
    assert said.startswith(FIRST)
    assert "slice" in said
    assert "class " in said
    assert layer in said
    assert list((tmp_path / "exports").iterdir()) == []


def swap_last(model: onnx.ModelProto) -> onnx.ModelProto:
    last = model.graph.node[-1]
    assert last.op_type == "Conv"
    for tensor in model.graph.initializer:
        if tensor.name in last.input[1:]:
            values = numpy_helper.to_array(tensor)[[0, 2, 1, 3]]
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return model


@pytest.mark.parametrize(
    ("sabotage", "layer"),
    [
        (swap_last, "Conv network.output"),
        (
            lambda model: shifted(model, "network.encoder.1.4.weight_half"),
            "Conv network.encoder.1.4",
        ),
    ],
)
def test_a_sabotaged_conversion_is_refused_at_the_second_stage(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sabotage: Callable[[onnx.ModelProto], onnx.ModelProto],
    layer: str,
) -> None:
    honest = lower_module.to_fp16
    monkeypatch.setattr(lower_module, "to_fp16", lambda model: sabotage(honest(model)))
    with pytest.raises(ParityError) as refused:
        export_run(run, tmp_path / "exports" / "bad", precision="fp16")
    assert str(refused.value).startswith(SECOND)
    assert f"the first layer that differs is {layer}" in str(refused.value)
    assert list((tmp_path / "exports").iterdir()) == []


def test_scores_that_are_not_finite_are_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = export_module.to_onnx

    def poison(module, card, path):
        made = honest(module, card, path)
        graph = made.graph()
        (bias,) = [t for t in graph.graph.initializer if t.name == "network.output.bias"]
        bias.CopyFrom(numpy_helper.from_array(np.float32([0, np.nan, 0, 0]), bias.name))
        return write_model(graph, made.card, path)

    monkeypatch.setattr(export_module, "to_onnx", poison)
    with pytest.raises(ParityError, match="class one"):
        export_run(run, tmp_path / "exports" / "bad")
    assert list((tmp_path / "exports").iterdir()) == []


def test_a_run_keeps_its_windows_beside_the_model_which_holds_no_image(run: Path) -> None:
    model = torch.load(run / "model.pt", weights_only=True)
    assert set(model) == {"facts", "weights"}
    assert {*model["weights"]} == {*load_product(run)[0].state_dict()}
    windows = torch.load(run / "windows.pt", weights_only=True)
    assert {name: len(images) for name, images in windows.items()} == {
        "target": 24,
        "source_as_target": 8,
    }


@pytest.mark.parametrize("families", [True, False])
def test_a_run_from_before_windows_had_a_file_is_still_exported(
    run: Path, tmp_path: Path, families: bool
) -> None:
    state = torch.load(run / "model.pt", weights_only=True)
    windows = torch.load(run / "windows.pt", weights_only=True)
    state["samples"] = {"target": windows["target"]} if families else windows["target"]
    torch.save(state, tmp_path / "model.pt")
    _, _, families = load_product(tmp_path)
    assert list(families) == ["target"]
    assert ModelFile.open(export_folder(tmp_path)).card.name == "kept"


def export_folder(run: Path) -> Path:
    export_run(run, run / "kept")
    return run / "kept"


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_export_parses_and_hashes_its_model_file_at_most_twice(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    looks = FileLooks(monkeypatch)
    order = ["export", str(run), "-o", str(tmp_path / "out"), "--precision", precision]
    done = CliRunner().invoke(app, order)
    assert done.exit_code == 0, done.output
    assert looks.parsed <= 2
    assert 1 <= looks.hashed(tmp_path / "out" / "model.onnx") <= 2
