"""graph + windows -> what its layers compute; two graphs -> the first layer that differs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from leuda_deploy.engines.engine import Float32
from leuda_deploy.engines.runtimes import import_onnx_runtime
from leuda_deploy.errors import ModelError

# the operators whose outputs are compared: what a network's layers are made of
LAYERS = frozenset(
    {"Conv", "ConvTranspose", "InstanceNormalization", "LeakyRelu", "Relu", "MaxPool", "Concat"}
    | {"Add", "Pad", "Softmax"}
)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer: its ONNX node, the operator, where its weights come from, its output tensor."""

    node: str
    operator: str
    weights: str
    output: str

    def __str__(self) -> str:
        return f"{self.operator} {self.weights or self.node}"


def layers_of(model: onnx.ModelProto) -> list[Layer]:
    """The layers of a graph, in the order in which they run."""
    return [
        Layer(
            node=node.name,
            operator=node.op_type,
            weights=node.input[1].removesuffix(".weight") if "Conv" in node.op_type else "",
            output=node.output[0],
        )
        for node in model.graph.node
        if node.op_type in LAYERS
    ]


def values_of(
    model: onnx.ModelProto, windows: Float32, tensors: Sequence[str], *, batch: int = 8
) -> Iterator[dict[str, NDArray[Any]]]:
    """Run windows (N, 1, h, w) and yield the named tensors, `batch` windows at a time.

    The graph is run as it is written (no fusion), so that every tensor in it exists.
    """
    ort = import_onnx_runtime()

    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    del opened.graph.output[:]
    opened.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        opened.SerializeToString(), sess_options=options, providers=["CPUExecutionProvider"]
    )
    entry = session.get_inputs()[0].name
    for start in range(0, len(windows), batch):
        group = np.ascontiguousarray(windows[start : start + batch])
        yield dict(zip(tensors, session.run(None, {entry: group}), strict=True))


def relative_error(expected: NDArray[Any], found: NDArray[Any]) -> float:
    """Root mean square of the difference over that of the expected values; inf if not finite."""
    if expected.shape != found.shape:
        return float("inf")
    expected, found = expected.astype(np.float64), found.astype(np.float64)
    size = float(np.sqrt(np.mean(expected**2)))
    gap = float(np.sqrt(np.mean((found - expected) ** 2)))
    return gap / max(size, 1e-12) if np.isfinite(gap) else float("inf")


def first_layer_that_differs(
    reference: onnx.ModelProto, candidate: onnx.ModelProto, window: Float32, *, limit: float
) -> str:
    """The first layer whose output differs relatively by more than `limit`, in words.

    window  (1, 1, h, w), the one on which the scores were seen to differ
    Compares the tensors that both graphs name alike, as the converters to fp16 and int8 keep them.
    """
    theirs = {name for node in candidate.graph.node for name in node.output}
    shared = [layer for layer in layers_of(reference) if layer.output in theirs]
    if not shared:
        raise ModelError("the two graphs have no layer in common")
    names = [layer.output for layer in shared]
    (expected,) = values_of(reference, window, names)
    (found,) = values_of(candidate, window, names)
    for layer in shared:
        error = relative_error(expected[layer.output], found[layer.output])
        if not error <= limit:
            return f"the first layer that differs is {layer}, by {error:.2%}"
    return f"no layer up to {shared[-1]} differs by more than {limit:.2%}: the fault is behind it"
