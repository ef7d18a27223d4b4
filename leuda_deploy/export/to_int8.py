"""fp32 graph + unlabelled target windows -> int8 graph: Q/DQ nodes around its convolutions.

Static quantisation, symmetric (zero point 0, which TensorRT asks for), one scale a tensor for
activations and one a channel for weights. Standard ONNX operators only; tensors keep their names.

Why this is ours, and not onnxruntime.quantization, which writes Q/DQ nodes as well:
- Layers are put into int8 and taken out again, many times, until the labels agree with fp32. Here
  that needs a graph, names and ranges in memory; there, a run of the tool from file to file.
- A range is the one with the least squared error of clipping and rounding together, judged behind
  the LeakyRelu. Its calibrators use the extremes, a percentile, the entropy or the distribution.
- Convolutions of concatenations are split first, and the sum of their parts is rounded as one
  tensor; `split_concatenations` says what OpenVINO makes of them otherwise.

What a processor makes of it: x86 without VNNI (AVX2, older AVX-512) multiplies an unsigned byte by
a signed one, and adds two such products in 16 bits, which saturate at 32767. With weights up to 127
two products reach 64770, and OpenVINO computes other numbers there than with VNNI: a layer of
random weights was off by up to 21 of 127 steps, exactly what this rule predicts. ONNX Runtime did
the same until `OnnxEngine` asked it for exact sums. With weights up to 63, 7 bits, two products
reach 32130: nothing saturates in any engine (64 is the last that does not, 65 does; tried with VNNI
and on an emulated AVX2 processor). Seven bits move the scores 2 to 15 % more than eight, so
`lower_precision` takes them where the same layers pass with them, and eight bits elsewhere.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from leuda_deploy.engines.engine import Float32
from leuda_deploy.proof.layers import values_of

BINS = 2048
CALIBRATION_PIXELS = 1 << 16  # of the input, at a time
LEVELS = 127  # of activations: int8 without -128, so that the range is symmetric
PORTABLE_LEVELS = 63  # of weights: 2 * 255 * 63 <= 32767, see above


def quantisable(model: onnx.ModelProto) -> list[str]:
    """Names of the convolutions that may become int8, in order.

    The first, the last (it writes the logits) and the transposed ones stay in float32: Q/DQ around
    transposed convolutions can cost more than it gives (TensorRT #4668). So do those that read or
    write an image of one channel, as a translator's do: eight bits of an image are too few.
    """
    shapes = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    return [node.name for node in convolutions[1:-1] if 1 not in shapes[node.input[1]][:2]]


def split_concatenations(model: onnx.ModelProto) -> onnx.ModelProto:
    """conv(concat(a, b)) -> conv_a(a) + conv_b(b), the same sum, for the sake of int8.

    Each part gets a range of its own, and OpenVINO 2026.4 computes an int8 convolution behind a
    concatenation wrongly (mean |Δlogit| 0.35 instead of 0.06 on the phantom model).
    """
    joins = {node.output[0]: node for node in model.graph.node if node.op_type == "Concat"}
    readers = {name: node.op_type for node in model.graph.node for name in node.input}
    joins = {name: join for name, join in joins.items() if readers.get(name) == "Conv"}
    weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    channels = {
        node.output[0]: weights[node.input[1]].shape[1 if node.op_type == "ConvTranspose" else 0]
        for node in model.graph.node
        if "Conv" in node.op_type
    }
    nodes: list[onnx.NodeProto] = []
    extra: list[onnx.TensorProto] = []
    for node in model.graph.node:
        if node.op_type in {"LeakyRelu", "Relu"} and node.input[0] in channels:
            channels[node.output[0]] = channels[node.input[0]]
        join = joins.get(node.input[0]) if node.op_type == "Conv" else None
        if join is not None and all(name in channels for name in join.input):
            made, more = _split(node, [(n, channels[n]) for n in join.input], weights)
            nodes, extra = nodes + made, extra + more
        else:
            nodes.append(node)
    return _rebuilt(model, nodes, extra)


def _split(
    node: onnx.NodeProto, parts: list[tuple[str, int]], weights: Mapping[str, NDArray[np.float32]]
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """One convolution for each (tensor, channels) of a concatenation, and their sum."""
    nodes, tensors, begin = [], [], 0
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    output, bias = node.output[0], list(node.input[2:])
    names = [f"{output}_part{i}" for i in range(len(parts))]
    for i, (tensor, width) in enumerate(parts):
        weight = f"{node.input[1].removesuffix('.weight')}.part{i}.weight"
        values = np.ascontiguousarray(weights[node.input[1]][:, begin : begin + width])
        tensors.append(numpy_helper.from_array(values, weight))
        inputs = [tensor, weight, *(bias if i == 0 else [])]
        name = f"{node.name}_part{i}"
        nodes.append(helper.make_node("Conv", inputs, [names[i]], name=name, **attributes))
        begin += width
    assert begin == weights[node.input[1]].shape[1]
    total = names[0]
    for i, name in enumerate(names[1:], start=1):
        target = output if i == len(names) - 1 else f"{output}_sum{i}"
        nodes.append(helper.make_node("Add", [total, name], [target], name=f"{node.name}_sum{i}"))
        total = target
    return nodes, tensors


def calibrate(model: onnx.ModelProto, windows: Float32) -> dict[str, float]:
    """Windows (N, 1, h, w) -> for each tensor that may be rounded, the |value| of 127.

    Two passes: the largest values, then histograms. The range is the one with the least expected
    squared error of clipping and rounding together, at least half of the largest value. What only
    a LeakyRelu reads is judged behind it, where hardly anything is left of the negative values.
    """
    judged = {
        name: next((n.output[0] for n in readers if n.op_type == "LeakyRelu"), name)
        for name, readers in _rounded(model, quantisable(model)).items()
    }
    tensors = sorted(set(judged.values()))
    # every tensor of every window is held at once: few windows where they are large
    batch = max(1, CALIBRATION_PIXELS // windows[0].size)
    top = dict.fromkeys(tensors, 1e-6)
    for values in values_of(model, windows, tensors, batch=batch):
        for name, value in values.items():
            top[name] = max(top[name], float(np.abs(value).max()))
    counts = {name: np.zeros(BINS) for name in tensors}
    for values in values_of(model, windows, tensors, batch=batch):
        for name, value in values.items():
            counts[name] += np.histogram(np.abs(value), bins=BINS, range=(0.0, top[name]))[0]
    ranges = {name: _best_range(counts[name], top[name]) for name in tensors}
    return {name: ranges[seen] for name, seen in judged.items()}


def _best_range(counts: NDArray[np.float64], top: float) -> float:
    centres = (np.arange(BINS) + 0.5) * top / BINS
    best, least = top, float("inf")
    for upper in np.linspace(top / 2, top, 65):
        inside = centres <= upper
        rounding = float(counts[inside].sum()) * (upper / LEVELS) ** 2 / 12
        clipping = float(counts[~inside] @ (centres[~inside] - upper) ** 2)
        if rounding + clipping < least:
            best, least = float(upper), rounding + clipping
    return best


def quantise(
    model: onnx.ModelProto,
    ranges: Mapping[str, float],
    names: Collection[str],
    *,
    weight_levels: int = LEVELS,
) -> onnx.ModelProto:
    """The graph with the named convolutions in int8: inputs, weights and outputs go through Q/DQ.

    Outputs, too, because ONNX Runtime's integer convolution needs both ends; so does what stands
    between two of them, see `_rounded`. Other readers of an input get it as it was: ONNX Runtime
    fuses no convolution whose DequantizeLinear somebody else reads, too.
    """
    weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    rounded = _rounded(model, names)
    nodes: list[onnx.NodeProto] = []
    extra: list[onnx.TensorProto] = []
    scales: dict[str, list[str]] = {}  # rounded tensor -> its scale and zero point

    def scale(name: str, values: NDArray[np.float32]) -> list[str]:
        zeros = np.zeros(values.shape, dtype=np.int8)
        extra.append(numpy_helper.from_array(values, f"{name}_scale"))
        extra.append(numpy_helper.from_array(zeros, f"{name}_zero"))
        return [f"{name}_scale", f"{name}_zero"]

    def add_q(name: str) -> None:
        scales[name] = scale(name, np.asarray(ranges[name] / LEVELS, dtype=np.float32))
        made = f"{name}_q"
        nodes.append(helper.make_node("QuantizeLinear", [name, *scales[name]], [made], name=made))

    def add_dq(name: str, reader: str) -> str:
        made = f"{name}_dq_{reader}"
        inputs = [f"{name}_q", *scales[name]]
        nodes.append(helper.make_node("DequantizeLinear", inputs, [made], name=made))
        return made

    def add_weight(name: str) -> str:
        values, by_channel = _int8_weights(weights[name], weight_levels)
        extra.append(numpy_helper.from_array(values, f"{name}_q"))
        inputs = [f"{name}_q", *scale(name, by_channel)]
        made = f"{name}_dq"
        nodes.append(helper.make_node("DequantizeLinear", inputs, [made], name=made, axis=0))
        return made

    for node in model.graph.node:
        added = onnx.NodeProto()
        added.CopyFrom(node)
        for place, name in enumerate(node.input):
            if node in rounded.get(name, ()):
                added.input[place] = add_dq(name, node.name)
        if node.name in names:
            added.input[1] = add_weight(node.input[1])
        nodes.append(added)
        for name in node.output:
            if name in rounded:
                add_q(name)
    return _rebuilt(model, nodes, extra)


def _rounded(model: onnx.ModelProto, names: Collection[str]) -> dict[str, list[onnx.NodeProto]]:
    """Tensors that go through Q/DQ when the named convolutions are int8 -> who reads them so.

    Everything that reads an int8 convolution's output; of the others, int8 convolutions alone.
    A sum of int8 convolutions (`split_concatenations`) counts as one.
    """
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found: dict[str, list[onnx.NodeProto]] = {}
    whole: set[str] = set()  # outputs of int8 convolutions and their sums
    for node in model.graph.node:
        summed = node.op_type == "Add" and whole.issuperset(node.input)
        if node.name in names or summed:
            whole.add(node.output[0])
            found[node.output[0]] = readers[node.output[0]]
        if node.name in names and node.input[0] not in whole:
            found.setdefault(node.input[0], []).append(node)
    return found


def _int8_weights(
    values: NDArray[np.float32], levels: int
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """(out, in, h, w) -> int8 of the same shape, none beyond `levels`, and a scale (out,)."""
    scale = np.maximum(np.abs(values).max(axis=(1, 2, 3)), 1e-9) / levels
    whole = np.round(values / scale[:, None, None, None])  # scale: along the first axis
    return np.clip(whole, -levels, levels).astype(np.int8), scale.astype(np.float32)


def _rebuilt(
    model: onnx.ModelProto, nodes: list[onnx.NodeProto], extra: list[onnx.TensorProto]
) -> onnx.ModelProto:
    """The model with other nodes, more weights, and without what no node reads any more."""
    output = {value.name for value in model.graph.output}
    read = {name for node in nodes for name in node.input} | output
    nodes = [node for node in nodes if any(name in read for name in node.output)]
    read = {name for node in nodes for name in node.input}
    built = onnx.ModelProto()
    built.CopyFrom(model)
    for part in (built.graph.node, built.graph.initializer, built.graph.value_info):
        del part[:]
    built.graph.node.extend(nodes)
    kept = {t.name: t for t in (*model.graph.initializer, *extra) if t.name in read}
    built.graph.initializer.extend(kept.values())
    onnx.checker.check_model(built, full_check=True)
    return built
