"""PyTorch module and its ONNX graph, one window -> the first layer that differs."""

from __future__ import annotations

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from leuda_deploy.proof.layers import layers_of, relative_error, values_of
from leuda_train.networks.instance_norm import InstanceNorm

# what a module of this kind is in the graph
OPERATORS: dict[type[nn.Module], str] = {
    nn.Conv2d: "Conv",
    nn.ConvTranspose2d: "ConvTranspose",
    nn.BatchNorm2d: "Conv",  # folded into the convolution before it
    InstanceNorm: "InstanceNormalization",
    nn.LeakyReLU: "LeakyRelu",
    nn.ReLU: "Relu",
    nn.MaxPool2d: "MaxPool",
}


def first_layer_that_differs(
    module: nn.Module, model: onnx.ModelProto, window: NDArray[np.float32], *, limit: float
) -> str:
    """The first PyTorch layer whose output the graph does not compute, in words.

    window  (1, 1, h, w)
    Layers of one kind run in the same order in both; their k-th outputs are compared.
    """
    expected = _outputs(module, window)
    layers = [layer for layer in layers_of(model) if layer.operator in set(OPERATORS.values())]
    (found,) = values_of(model, window, [layer.output for layer in layers])
    queues: dict[str, list[NDArray[np.float32]]] = {}
    for layer in layers:
        queues.setdefault(layer.operator, []).append(found[layer.output])
    last = "the input"
    for name, operator, values in expected:
        queue = queues.get(operator, [])
        if not queue:
            return f"the graph lacks layer {name} ({operator}), which follows {last}"
        error = relative_error(values, queue.pop(0))
        if not error <= limit:
            return f"the first layer that differs is {name} ({operator}), by {error:.2%}"
        last = name
    return f"every layer up to {last} agrees: the fault is behind it"


@torch.no_grad()
def _outputs(
    module: nn.Module, window: NDArray[np.float32]
) -> list[tuple[str, str, NDArray[np.float32]]]:
    """(name, ONNX operator, output) of each layer, as they run; batch norm replaces its input."""
    seen: list[tuple[str, str, NDArray[np.float32]]] = []
    hooks = []

    def look(name: str, layer: nn.Module) -> None:
        operator = OPERATORS[type(layer)]

        def hook(_layer: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
            title = name
            if isinstance(layer, nn.BatchNorm2d):
                # the convolution before it no longer exists in the graph on its own
                title = f"{seen.pop()[0]} with its batch norm"
            seen.append((title, operator, output.detach().clone().float().cpu().numpy()))

        hooks.append(layer.register_forward_hook(hook))

    for name, layer in module.named_modules():
        if type(layer) in OPERATORS:
            look(name, layer)
    try:
        module(torch.from_numpy(window))
    finally:
        for hook in hooks:
            hook.remove()
    return seen
