"""fp32 graph -> mixed-precision graph: half where it is safe, float32 where it is not.

TensorRT 11 takes its precision from the graph alone, so it is written there, as Cast nodes and
half-precision weights. Tensors keep their names.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from leuda_deploy.errors import ModelError

# Only these compute in half precision. Everything else stays float32, and so do by name: the
# graph's input, the statistics of InstanceNormalization, and the layer that writes the scores.
HALF = frozenset({"Conv", "ConvTranspose", "LeakyRelu", "Relu", "MaxPool", "Concat", "Pad", "Add"})
HALF_MAX = float(np.finfo(np.float16).max)


def to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """The mixed-precision graph. Raises ModelError for a weight that half precision cannot hold."""
    converted = onnx.ModelProto()
    converted.CopyFrom(model)
    del converted.graph.node[:]
    del converted.graph.value_info[:]
    writer = _Writer(converted, model)
    for node in model.graph.node:
        writer.add(node)
    writer.finish()
    onnx.checker.check_model(converted, full_check=True)
    return converted


class _Writer:
    """Appends nodes to a graph and casts their inputs where the precision changes."""

    def __init__(self, graph: onnx.ModelProto, original: onnx.ModelProto) -> None:
        self.graph = graph.graph
        self.weights = {
            tensor.name: tensor
            for tensor in original.graph.initializer
            if tensor.data_type == TensorProto.FLOAT
        }
        self.floats = _float_tensors(original)
        self.last = _writes_scores(original)
        self.half: set[str] = set()  # tensors that nodes have written in half precision
        self.casts: dict[str, str] = {}  # tensor or weight -> its twin in the other precision

    def add(self, node: onnx.NodeProto) -> None:
        """Append a copy of the node, in half precision if it is one of those."""
        half = node.op_type in HALF and node.name != self.last
        added = onnx.NodeProto()
        added.CopyFrom(node)
        for place, name in enumerate(node.input):
            if name in self.floats and (name in self.half) != half:
                added.input[place] = self._twin(name, half)
        if half:
            self.half.update(name for name in node.output if name in self.floats)
        self.graph.node.append(added)

    def _twin(self, name: str, half: bool) -> str:
        if name not in self.casts:
            self.casts[name] = twin = f"{name}_{'half' if half else 'single'}"
            if name in self.weights:
                self.graph.initializer.append(_half_weight(self.weights[name], twin))
            else:
                to = TensorProto.FLOAT16 if half else TensorProto.FLOAT
                self.graph.node.append(
                    helper.make_node("Cast", [name], [twin], name=f"cast_{twin}", to=to)
                )
        return self.casts[name]

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


def _half_weight(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    values = numpy_helper.to_array(tensor)
    if not np.abs(values).max(initial=0.0) <= HALF_MAX:
        raise ModelError(f"weights {tensor.name} pass {HALF_MAX:g}: they do not fit half precision")
    return numpy_helper.from_array(values.astype(np.float16), name)
