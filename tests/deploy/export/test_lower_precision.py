"""fp32 -> fp16 and int8: what is converted, what is not, and what the gate makes of it."""

from __future__ import annotations

from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from support.makers import MakeCard, quiet, random_network

from leuda_deploy.engines.onnx_runtime import OnnxEngine
from leuda_deploy.engines.openvino import OpenVinoEngine
from leuda_deploy.errors import LeudaError, MissingExtraError, ModelError, ParityError
from leuda_deploy.export.lower_precision import InPrecision, lower_precision
from leuda_deploy.export.to_half import to_bf16, to_fp16
from leuda_deploy.export.to_int8 import calibrate, quantisable, quantise, split_concatenations
from leuda_deploy.machine.isolated import run_isolated
from leuda_deploy.model.card import Precision
from leuda_deploy.model.export_folder import MODEL_FILE, default_model
from leuda_deploy.model.model_file import ModelFile, write_model
from leuda_deploy.proof import prove as prove_module
from leuda_deploy.proof.layers import first_layer_that_differs, layers_of, values_of
from leuda_deploy.proof.parity import TOLERANCES, run_windows
from leuda_deploy.proof.probes import Probes, make_probes
from leuda_deploy.proof.processor import int8_kind, kinds_below
from leuda_deploy.proof.prove import Reference, prove, prove_held_to
from leuda_deploy.scans.grid.resample import fit_to_window
from leuda_deploy.scans.stack import Stack
from leuda_deploy.scans.volume import read_volume
from leuda_train.data.phantom.phantom_cohort import write_cohort

# An earlier phantom model, LE-UDA behind its translator: it has all the kinds of layers that there
# are, instance normalisation among them. It also shows that an earlier file runs on.
TRANSLATED = Path(__file__).parents[2] / "data" / "translated-heart"


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    """The graph of a phantom model that stands behind its translator."""
    return onnx.load(TRANSLATED / MODEL_FILE)


@pytest.fixture(scope="module")
def slices(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """Slices (n, h, w) of CT phantoms that the model was not trained on."""
    folder = tmp_path_factory.mktemp("phantoms")
    counts = {"source_labelled": 1, "source_unlabelled": 1, "target_unlabelled": 2}
    write_cohort(folder, seed=5, **counts, target_test=1)
    card = ModelFile.open(TRANSLATED / MODEL_FILE).card
    found = []
    for path in sorted(folder.glob("ct_*/*_image.nii.gz")):
        stack = Stack(read_volume(path), card.recipe)
        images = stack.images(0, stack.depth)
        found.append(fit_to_window(images, card.recipe.window, stack.intensity.floor))
    return np.concatenate(found)[::3][:32]


@pytest.fixture(scope="module")
def probes(slices: np.ndarray) -> Probes:
    return make_probes({"target": slices})


@pytest.fixture(scope="module")
def reference(model: onnx.ModelProto, probes: Probes) -> Reference:
    scores = run_windows(OnnxEngine(ModelFile.open(TRANSLATED)), probes.windows)
    return Reference(title="ONNX fp32", probes=probes, scores=scores, graph=model)


def lowered(
    reference: Reference, precision: Precision, path: Path, slices: NDArray[np.float32]
) -> InPrecision:
    """The phantom model in that precision, written to `path`."""
    card = ModelFile.open(TRANSLATED / MODEL_FILE).card
    return lower_precision(reference, card, precision, path, calibration=slices, progress=quiet)


def test_splitting_concatenations_changes_nothing(model: onnx.ModelProto, slices) -> None:
    split = split_concatenations(model)
    assert not [node for node in split.graph.node if node.op_type == "Concat"]
    assert len(quantisable(split)) == len(quantisable(model)) + 3
    (found,) = values_of(split, slices[:4, None], ["logits"])
    (wanted,) = values_of(model, slices[:4, None], ["logits"])
    np.testing.assert_allclose(found["logits"], wanted["logits"], atol=1e-4)


def test_int8_takes_what_it_may_and_nothing_else(model: onnx.ModelProto, slices) -> None:
    split = split_concatenations(model)
    names = quantisable(split)
    graph = quantise(split, calibrate(split, slices[:8, None]), names).graph
    writers = {output: node for node in graph.node for output in node.output}
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    convolutions = [node for node in graph.node if "Conv" in node.op_type]
    fed_by_int8 = {
        node.name: node.input[1] in writers and writers[node.input[1]].op_type == "DequantizeLinear"
        for node in convolutions
    }
    first, last = convolutions[0].name, convolutions[-1].name
    assert not fed_by_int8[first]
    assert not fed_by_int8[last]
    for node in convolutions:
        assert fed_by_int8[node.name] == (node.name in names)
        if node.op_type == "ConvTranspose":
            assert not fed_by_int8[node.name]
        if node.name in names:
            weights = initializers[writers[node.input[1]].input[0]]
            scale = numpy_helper.to_array(initializers[writers[node.input[1]].input[1]])
            assert weights.data_type == TensorProto.INT8
            assert scale.shape == (weights.dims[0],)  # one a channel
    for node in graph.node:
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
            zero = numpy_helper.to_array(initializers[node.input[2]])
            assert zero.dtype == np.int8
            assert not zero.any()
    assert {opset.domain for opset in graph_of(model).opset_import} == {""}


def graph_of(model: onnx.ModelProto) -> onnx.ModelProto:
    return quantise(model, {}, [])


@pytest.mark.slow
def test_int8_lifts_the_worst_layer_first_and_ends_where_every_engine_agrees(
    slices, probes: Probes, tmp_path: Path
) -> None:
    """How many layers stay in int8 depends on the processor. What is tested holds on all."""
    phantom = ModelFile.open(default_model())
    spoilt, worst = with_a_layer_that_int8_cannot_hold(phantom.graph())
    onnx.save(spoilt, tmp_path / "fp32.onnx")
    (values,) = values_of(spoilt, probes.windows, ["logits"], batch=len(probes.windows))
    reference = Reference(title="ONNX fp32", probes=probes, scores=values["logits"], graph=spoilt)
    path = tmp_path / MODEL_FILE
    found = lower_precision(
        reference, phantom.card, "int8", path, calibration=slices, progress=quiet
    )
    assert found.lifted_layers[0] == worst
    titles = {layer.node: str(layer) for layer in layers_of(split_concatenations(spoilt))}
    may_be_int8 = [titles[name] for name in quantisable(split_concatenations(spoilt))]
    assert sorted(found.int8_layers + found.lifted_layers) == sorted(may_be_int8)
    assert found.int8_layers
    engines = ["ONNX Runtime CPU", *(["OpenVINO CPU"] if find_spec("openvino") else [])]
    assert [parity.stage for parity in found.parities] == [
        f"ONNX fp32 -> {engine} int8" for engine in engines
    ]
    for parity in found.parities:
        assert 0 < parity.mean_abs <= TOLERANCES["int8"].mean_abs
        assert parity.disagreement <= TOLERANCES["int8"].disagreement
        dice = [value for value in parity.class_dice.values() if value is not None]
        assert min(dice) >= TOLERANCES["int8"].dice
    tensors = onnx.load(path).graph.initializer
    weights = [t for t in tensors if t.data_type == TensorProto.INT8 and len(t.dims) == 4]
    assert len(weights) == len(found.int8_layers)
    assert path.stat().st_size < (tmp_path / "fp32.onnx").stat().st_size
    assert OnnxEngine(ModelFile.open(path)).card == found.model.card


def with_a_layer_that_int8_cannot_hold(model: onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
    """A copy in which one layer has a huge weight, for a channel that is always 0; and its name.

    The weight changes nothing, but leaves no steps for the others of the layer.
    """
    spoilt = onnx.ModelProto()
    spoilt.CopyFrom(model)
    tensors = {tensor.name: tensor for tensor in spoilt.graph.initializer}

    def change(name: str, index: tuple[slice | int, ...], value: float) -> None:
        values = numpy_helper.to_array(tensors[name]).copy()
        values[index] = value
        tensors[name].CopyFrom(numpy_helper.from_array(values, name))

    change("network.encoder.1.0.weight", (0,), 0.0)
    change("network.encoder.1.0.bias", (0,), 0.0)
    change("network.encoder.1.4.weight", (slice(None), 0), 1e3)
    return spoilt, "Conv network.encoder.1.4"


def test_int8_that_never_passes_is_refused(tmp_path: Path, make_card: MakeCard) -> None:
    graph = random_network(1, 4, 4, 3)
    images = np.random.default_rng(0).normal(size=(8, 16, 16)).astype(np.float32)
    probes = make_probes({"target": images})
    (values,) = values_of(graph, probes.windows, ["logits"], batch=len(probes.windows))
    swapped = Reference(
        title="ONNX fp32", probes=probes, scores=values["logits"][:, [0, 2, 1]], graph=graph
    )
    path, steps = tmp_path / MODEL_FILE, []
    with pytest.raises(ParityError) as refused:
        lower_precision(
            swapped, make_card(), "int8", path, calibration=images,
            progress=lambda *step: steps.append(step),
        )  # fmt: skip
    said = str(refused.value)
    assert said.startswith("ONNX fp32 -> ONNX Runtime CPU int8")
    assert "no layer of it can be int8" in said
    assert (1, 1, "layers tried alone") in steps  # conv1: the first and the last stay as they are


def test_fp16_halves_the_file_and_passes(reference: Reference, slices, tmp_path: Path) -> None:
    path = tmp_path / MODEL_FILE
    found = lowered(reference, "fp16", path, slices)
    assert 1e-5 < found.parities[-1].max_abs < 0.05
    assert path.stat().st_size < 0.55 * (TRANSLATED / MODEL_FILE).stat().st_size


@pytest.mark.slow
def test_bf16_is_proven_by_the_engine_that_runs_it(
    reference: Reference, slices, tmp_path: Path
) -> None:
    pytest.importorskip("openvino")
    if "bf16" not in OpenVinoEngine(ModelFile.open(TRANSLATED), precision="auto").layers:
        pytest.skip("this processor has no bf16")
    path = tmp_path / MODEL_FILE
    found = lowered(reference, "bf16", path, slices)
    (parity,) = found.parities
    assert parity.stage == "ONNX fp32 -> OpenVINO CPU bf16"
    assert 1e-4 < parity.mean_abs < 1e-2
    assert found.model.card.opset == onnx.load(path).opset_import[0].version == 22
    assert OpenVinoEngine(ModelFile.open(path), precision="fp32").layers["bf16"] >= 20


def test_bf16_that_nothing_here_can_run_is_refused(
    reference: Reference, slices, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prove_module, "find_spec", lambda name: None)
    path = tmp_path / MODEL_FILE
    with pytest.raises(MissingExtraError, match=r"proving a bf16 graph.*leuda\[openvino\]"):
        lowered(reference, "bf16", path, slices)
    with pytest.raises(LeudaError, match="bf16"):
        OnnxEngine(ModelFile.open(path))


def test_bf16_weights_are_the_nearest(model: onnx.ModelProto) -> None:
    halves = {t.name: t for t in to_bf16(model).graph.initializer}
    by_type = Counter(tensor.data_type for tensor in halves.values())
    assert by_type[TensorProto.BFLOAT16] > by_type[TensorProto.FLOAT16] > 0
    for tensor in model.graph.initializer:
        if (twin := halves.get(f"{tensor.name}_bf16")) is not None:
            values = numpy_helper.to_array(tensor)
            rounded = numpy_helper.to_array(twin).astype(np.float32)
            assert np.abs(rounded - values).max() <= 2**-8 * np.abs(values).max()
            assert (rounded != np.trunc(values)).any()


def test_what_one_engine_computes_and_another_does_not_is_refused(
    reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Off:
        def __call__(self, windows):
            return np.roll(reference.scores[: len(windows)], 1, axis=1)

    monkeypatch.setattr(prove_module, "find_spec", lambda name: name)  # as if it were installed
    monkeypatch.setattr(prove_module, "OpenVinoEngine", lambda *given, **more: Off())
    with pytest.raises(ParityError) as refused:
        prove(ModelFile.open(TRANSLATED / MODEL_FILE), reference)
    said = str(refused.value)
    assert said.startswith("ONNX fp32 -> OpenVINO CPU fp32: ")
    assert "'ONNX fp32 -> ONNX Runtime CPU fp32' passed; nothing was kept" in said


def test_sums_and_what_a_leaky_relu_leaves_decide_the_ranges(
    model: onnx.ModelProto, slices
) -> None:
    split = split_concatenations(model)
    names = quantisable(split)
    ranges = calibrate(split, slices[:8, None])
    graph = quantise(split, ranges, names).graph
    adds = [n for n in graph.node if n.op_type == "Add" and "_sum" in n.name]
    assert len(adds) == 3
    written = {output: node.op_type for node in graph.node for output in node.output}
    for node in adds:  # both parts and the sum are rounded
        assert {written[name] for name in node.input} == {"DequantizeLinear"}
        assert f"{node.output[0]}_q" in written
    for node in split.graph.node:
        if node.op_type == "LeakyRelu" and {node.input[0], node.output[0]} <= ranges.keys():
            assert ranges[node.input[0]] == ranges[node.output[0]]
    readers = [name for node in graph.node for name in node.input if "_dq_" in name]
    assert len(readers) == len(set(readers))  # none is shared


def test_an_image_is_never_rounded(model: onnx.ModelProto) -> None:
    split = split_concatenations(model)
    weights = {n.name: n.input[1] for n in split.graph.node if n.op_type == "Conv"}
    left = {weights[name] for name in weights if name not in quantisable(split)}
    assert {"network.output.weight", "network.encoder.0.0.weight"} <= left
    assert len(left) == 4  # the translator's ends, too


def test_weights_that_half_precision_cannot_hold_are_refused(model: onnx.ModelProto) -> None:
    large = onnx.ModelProto()
    large.CopyFrom(model)
    (tensor,) = [t for t in large.graph.initializer if t.name == "network.encoder.1.4.bias"]
    values = np.full(tuple(tensor.dims), 70000, dtype=np.float32)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    with pytest.raises(ModelError, match=r"network\.encoder\.1\.4\.bias pass 65504"):
        to_fp16(large)


def test_the_first_layer_that_differs_is_found(model: onnx.ModelProto, slices) -> None:
    other = onnx.ModelProto()
    other.CopyFrom(model)
    window = slices[:1, None]
    assert "the fault is behind it" in first_layer_that_differs(model, other, window, limit=1e-6)
    name = "to_source.layers.12.layers.5.weight"
    (tensor,) = [t for t in other.graph.initializer if t.name == name]
    values = numpy_helper.to_array(tensor) + np.float32(1e-2)
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    said = first_layer_that_differs(model, other, window, limit=1e-3)
    assert "the first layer that differs is Conv to_source.layers.12.layers.5" in said


def test_graphs_without_a_common_layer_cannot_be_bisected(model: onnx.ModelProto, slices) -> None:
    node = helper.make_node("Identity", ["windows"], ["same"])
    output = helper.make_tensor_value_info("same", TensorProto.FLOAT, ["batch", 1, 64, 64])
    other = helper.make_model(
        helper.make_graph([node], "other", model.graph.input, [output]),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    with pytest.raises(ModelError, match="no layer in common"):
        first_layer_that_differs(model, other, slices[:1, None], limit=1e-3)


@pytest.mark.skipif(
    find_spec("openvino") is None or "x86 AVX2" not in kinds_below(int8_kind()),
    reason="needs OpenVINO and a processor that can compute like one with AVX2 alone",
)
@pytest.mark.parametrize(("levels", "same"), [(63, True), (127, False)])
def test_weights_of_eight_bits_are_another_network_without_vnni(
    tmp_path: Path, make_card: MakeCard, levels: int, same: bool
) -> None:
    even = random_network(1, 16, 16, 3)
    for tensor in even.graph.initializer:  # all products as large as they come
        values = np.abs(numpy_helper.to_array(tensor))
        scale = np.arange(1, 1 + len(values)).reshape(-1, 1, 1, 1) if len(values) == 3 else 1.0
        filled = np.full_like(values, 1 / values[0].size) * np.float32(scale)
        tensor.CopyFrom(numpy_helper.from_array(filled.astype(np.float32), tensor.name))
    windows = np.random.default_rng(0).uniform(0.9, 1.0, (6, 16, 16)).astype(np.float32)
    ranges = calibrate(even, windows[:, None])
    rounded = quantise(even, ranges, quantisable(even), weight_levels=levels)
    path = tmp_path / MODEL_FILE
    model = write_model(rounded, make_card(precision="int8"), path)
    probes = make_probes({"bright": windows})
    exact = Reference(
        title="exact", probes=probes, scores=run_windows(OnnxEngine(model), probes.windows)
    )
    if same:
        parity = run_isolated(None, prove_held_to, "x86 AVX2", model, exact)
        assert parity.disagreement <= TOLERANCES["int8"].disagreement
    else:
        with pytest.raises(ParityError):
            run_isolated(None, prove_held_to, "x86 AVX2", model, exact)
