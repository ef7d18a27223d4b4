"""A graph from elsewhere is packaged if it is what its card says; only an export is replaced."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.command import leuda_here
from support.makers import MakeCard, MakeModel

from leuda_deploy.engines.onnx_runtime import OnnxEngine
from leuda_deploy.errors import InputError, LeudaError, ModelError
from leuda_deploy.export.import_onnx import copy_export, package_graph, precision_of
from leuda_deploy.export.to_half import to_bf16, to_fp16
from leuda_deploy.export.to_int8 import calibrate, quantise
from leuda_deploy.export.verify import verify
from leuda_deploy.model.export_folder import check_replaceable
from leuda_deploy.model.model_file import ModelFile

Change = Callable[[onnx.ModelProto], object]


def network() -> onnx.ModelProto:
    """(B, 1, 16, 16) -> (B, 3, 16, 16), three convolutions with random weights."""
    rng = np.random.default_rng(0)
    names, channels = ["windows", "a", "b", "logits"], [1, 4, 4, 3]
    nodes, weights = [], []
    for k in range(3):
        shape = (channels[k + 1], channels[k], 3, 3)
        weights.append(numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), f"w{k}"))
        nodes.append(
            helper.make_node("Conv", [names[k], f"w{k}"], [names[k + 1]], name=f"conv{k}",
                             pads=[1, 1, 1, 1])
        )  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("windows", TensorProto.FLOAT, ["batch", 1, 16, 16])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3, 16, 16])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture
def packaged(tmp_path: Path, make_card: MakeCard) -> Callable[..., Path]:
    """Write graph and card, then package them into `out`."""

    def make(model: onnx.ModelProto, **card: Any) -> Path:
        onnx.save(model, tmp_path / "net.onnx")
        (tmp_path / "card.json").write_text(make_card(**card).to_json())
        return package_graph(tmp_path / "net.onnx", tmp_path / "card.json", tmp_path / "out").folder

    return make


def fix_batch(model: onnx.ModelProto) -> None:
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1


def half_ends(model: onnx.ModelProto) -> None:
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def poison(model: onnx.ModelProto) -> None:
    values = numpy_helper.to_array(model.graph.initializer[1]).copy()
    values[0, 0] = np.nan
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(values, "w1"))


def only_seven(model: onnx.ModelProto) -> None:
    """It says that any batch will do, and runs none but 7."""
    model.graph.node[2].output[0] = "c"
    shape = numpy_helper.from_array(np.array([7, 3, 16, 16]), "shape")
    model.graph.initializer.append(shape)
    model.graph.node.append(helper.make_node("Reshape", ["c", "shape"], ["logits"]))


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        (fix_batch, "1 in, 1 out"),
        (half_ends, "float16 'windows'"),
        (poison, "1,536"),
        (only_seven, "batch in, 7 out"),
        (lambda model: model.ClearField("graph"), "net.onnx"),
    ],
)
def test_a_graph_that_does_not_fit_is_one_line_about_the_file_given(
    packaged: Callable[..., Path], tmp_path: Path, change: Change, fact: str
) -> None:
    model = network()
    change(model)
    with pytest.raises(ModelError) as refused:
        packaged(model)
    assert fact in str(refused.value)
    assert "net.onnx" in str(refused.value)
    assert ".tmp" not in str(refused.value)
    assert "\n" not in str(refused.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["card.json", "net.onnx"]


def test_windows_that_a_graph_cannot_run_are_one_line(
    make_model: MakeModel, tmp_path: Path
) -> None:
    engine = OnnxEngine(ModelFile.open(make_model(tmp_path)))
    with pytest.raises(LeudaError) as refused:
        engine(np.zeros((1, 2, 16, 16), np.float32))
    assert "(1, 2, 16, 16)" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_weights_in_another_file_are_taken_in_or_missed_in_one_line(
    tmp_path: Path, make_card: MakeCard
) -> None:
    source, card = tmp_path / "net.onnx", tmp_path / "card.json"
    onnx.save_model(network(), source, save_as_external_data=True, location="w", size_threshold=0)
    card.write_text(make_card().to_json())
    folder = package_graph(source, card, tmp_path / "out").folder
    verify(folder)
    windows = np.ones((2, 1, 16, 16), np.float32)
    assert np.abs(OnnxEngine(ModelFile.open(folder))(windows)).max() > 0
    (tmp_path / "w").unlink()
    done = leuda_here("export", source, "--card", card, "-o", tmp_path / "other")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert str(source) in done.stderr
    assert not (tmp_path / "other").exists()


def lower(precision: str) -> onnx.ModelProto:
    if precision == "int8":
        windows = np.random.default_rng(0).normal(size=(4, 1, 16, 16)).astype(np.float32)
        return quantise(network(), calibrate(network(), windows), ["conv1"])
    return {"fp32": lambda model: model, "fp16": to_fp16, "bf16": to_bf16}[precision](network())


@pytest.mark.parametrize("says", ["fp32", "fp16", "bf16", "int8"])
@pytest.mark.parametrize("computes", ["fp32", "fp16", "bf16", "int8"])
def test_the_cards_precision_is_the_graphs(
    packaged: Callable[..., Path], tmp_path: Path, computes: str, says: str
) -> None:
    model = lower(computes)
    assert precision_of(model) == computes
    if says != computes:
        with pytest.raises(ModelError) as refused:
            packaged(model, precision=says)
        assert {computes, says} <= set(re.findall(r"\w+", str(refused.value)))
        assert not (tmp_path / "out").exists()
        return
    if computes == "bf16":
        pytest.importorskip("openvino", reason="the openvino extra is not installed")
    assert ModelFile.open(packaged(model, precision=says)).card.precision == says


# --- where to


def test_an_export_replaces_nothing_but_an_export(tmp_path: Path) -> None:
    check_replaceable(tmp_path / "new")
    thesis = tmp_path / "precious" / "thesis.txt"
    thesis.parent.mkdir()
    check_replaceable(thesis.parent)
    thesis.write_text("years of work")
    with pytest.raises(InputError, match=r"thesis\.txt"):
        check_replaceable(thesis.parent)
    with pytest.raises(InputError):
        check_replaceable(thesis)
    old = tmp_path / "exports" / "old"
    old.mkdir(parents=True)
    (old / "manifest.json").touch()
    check_replaceable(old)
    with pytest.raises(InputError, match="old"):
        check_replaceable(old.parent)
    (old / "rtx.engine").touch()
    with pytest.raises(InputError, match=r"rtx\.engine"):
        check_replaceable(old)
    for nameless in (".", "..", "/"):
        with pytest.raises(InputError, match="-o exports/NAME"):
            check_replaceable(Path(nameless))


def test_all_ways_to_an_export_look_first_where_it_goes(
    tmp_path: Path, make_model: MakeModel
) -> None:
    pytest.importorskip("torch", reason="the train extra is not installed")
    from leuda_train.export.export_run import export_run

    model = make_model(tmp_path / "made")
    notes = tmp_path / "exports" / "notes.txt"
    notes.parent.mkdir()
    notes.write_text("keep")
    ways: list[Callable[[Path], object]] = [
        lambda out: copy_export(model, out),
        lambda out: package_graph(
            tmp_path / "no.onnx", tmp_path / "no.json", out
        ),  # nothing is read before
        lambda out: export_run(tmp_path / "no run", out),
    ]
    for way in ways:
        for out in (notes.parent, Path()):
            with pytest.raises(LeudaError, match="-o"):
                way(out)
        with pytest.raises(InputError, match=r"notes\.txt"):
            way(notes.parent)
    assert notes.read_text() == "keep"
    assert [path.name for path in notes.parent.iterdir()] == ["notes.txt"]
    out = tmp_path / "mine"
    assert (
        json.loads((copy_export(model, out).folder / "card.json").read_text())["name"]
        == "thresholds"
    )
    assert copy_export(model, out).folder == out  # an export is replaced
