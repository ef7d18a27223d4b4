"""fp32 graph -> mixed-precision graph: fp16 or bf16 where it is safe, float32 where it is not.

TensorRT 11 takes its precision from the graph alone, so it is written there, as Cast nodes and
16-bit weights. Tensors keep their names.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from leuda_deploy.errors import ModelError

# Only these compute in 16 bits. Everything else stays float32, and so do by name: the
# graph's input, the statistics of InstanceNormalization, and the layer that writes the scores.
HALF = frozenset({"Conv", "ConvTranspose", "LeakyRelu", "Relu", "MaxPool", "Concat", "Pad", "Add"})
HALF_MAX = float(np.finfo(np.float16).max)


BF16_OPSET = 22  # the first in which ONNX has bf16 convolutions
NAMES = {TensorProto.FLOAT: "single", TensorProto.FLOAT16: "half", TensorProto.BFLOAT16: "bf16"}


def to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """The mixed-precision graph. Raises ModelError for a weight that half precision cannot hold."""
    return _convert(model, dict.fromkeys(HALF, TensorProto.FLOAT16))


def to_bf16(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same in bf16, of opset 22; transposed convolutions in fp16.

    TensorRT 11 has no bf16 tactic for those (TensorRT for RTX 1.7 cannot build them at all).
    """
    raised = onnx.ModelProto()
    raised.CopyFrom(model)
    raised.opset_import[0].version = BF16_OPSET  # its operators only take more types
    types = dict.fromkeys(HALF, TensorProto.BFLOAT16) | {"ConvTranspose": TensorProto.FLOAT16}
    return _convert(raised, types)


def _convert(model: onnx.ModelProto, types: dict[str, int]) -> onnx.ModelProto:
    """types: operator -> what it computes in; the others in float32."""
    converted = onnx.ModelProto()
    converted.CopyFrom(model)
    del converted.graph.node[:]
    del converted.graph.value_info[:]
    writer = _Writer(converted, model, types)
    for node in model.graph.node:
        writer.add(node)
    writer.finish()
    onnx.checker.check_model(converted, full_check=True)
    return converted


class _Writer:
    """Appends nodes to a graph and casts their inputs where the precision changes."""

    def __init__(
        self, graph: onnx.ModelProto, original: onnx.ModelProto, types: dict[str, int]
    ) -> None:
        self.graph, self.types = graph.graph, types
        self.weights = {
            tensor.name: tensor
            for tensor in original.graph.initializer
            if tensor.data_type == TensorProto.FLOAT
        }
        self.floats = _float_tensors(original)
        self.last = _writes_scores(original)
        self.written: dict[str, int] = {}  # tensor -> what its node has written it in
        self.casts: dict[tuple[str, int], str] = {}  # tensor or weight, type -> its twin

    def add(self, node: onnx.NodeProto) -> None:
        """Append a copy of the node, in the precision of its operator."""
        kind = self.types.get(node.op_type, TensorProto.FLOAT)
        if node.name == self.last:
            kind = TensorProto.FLOAT
        added = onnx.NodeProto()
        added.CopyFrom(node)
        for place, name in enumerate(node.input):
            if name in self.floats and self.written.get(name, TensorProto.FLOAT) != kind:
                added.input[place] = self._twin(name, kind)
        self.written |= {name: kind for name in node.output if name in self.floats}
        self.graph.node.append(added)

    def _twin(self, name: str, kind: int) -> str:
        if (name, kind) not in self.casts:
            self.casts[name, kind] = twin = f"{name}_{NAMES[kind]}"
            if name in self.weights:
                self.graph.initializer.append(_small_weight(self.weights[name], twin, kind))
            else:
                cast = helper.make_node("Cast", [name], [twin], name=f"cast_{twin}", to=kind)
                self.graph.node.append(cast)
        return self.casts[name, kind]

    def finish(self) -> None:
        """Drop weights that no node reads any more."""
        read = {name for node in self.graph.node for name in node.input}
        kept = [tensor for tensor in self.graph.initializer if tensor.name in read]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)


def _float_tensors(model: onnx.ModelProto) -> set[str]:
    """Names of everything that holds float32: inputs, weights, what nodes write."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    values = [*graph.input, *graph.value_info, *graph.output]
    found = {v.name for v in values if v.type.tensor_type.elem_type == TensorProto.FLOAT}
    return found | {t.name for t in graph.initializer if t.data_type == TensorProto.FLOAT}


def _writes_scores(model: onnx.ModelProto) -> str:
    """The name of the last convolution: from it on, scores are float32."""
    convolutions = [str(node.name) for node in model.graph.node if node.op_type == "Conv"]
    return convolutions[-1]


def _small_weight(tensor: onnx.TensorProto, name: str, kind: int) -> onnx.TensorProto:
    values = numpy_helper.to_array(tensor)
    fits = kind != TensorProto.FLOAT16 or np.abs(values).max(initial=0.0) <= HALF_MAX
    if not fits or not np.isfinite(values).all():
        raise ModelError(f"weights {tensor.name} pass {HALF_MAX:g}: they do not fit half precision")
    if kind == TensorProto.FLOAT16:
        return numpy_helper.from_array(values.astype(np.float16), name)
    bits = np.ascontiguousarray(values).view(np.uint32)  # bf16: its upper half, to nearest even
    upper = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    return helper.make_tensor(name, kind, values.shape, upper.tobytes(), raw=True)
