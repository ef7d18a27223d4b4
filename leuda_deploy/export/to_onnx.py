"""nn.Module + card -> model.onnx, one self-describing file. The one module that imports torch."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import onnx
import torch

from leuda_deploy.model.card import ModelCard
from leuda_deploy.model.model_file import ModelFile, write_model

OPSET = 20
INPUT, OUTPUT = "windows", "logits"


class WithSoftmax(torch.nn.Module):
    """(B, C, h, w) -> probabilities (B, K, h, w) of a module that gives logits."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """Softmax over the classes."""
        return torch.softmax(self.module(windows), dim=1)


def to_onnx(module: torch.nn.Module, card: ModelCard, path: Path | str) -> ModelFile:
    """Write (B, C, h, w) float32 -> (B, K, h, w) float32 with a dynamic batch and a fixed window.

    Of a card with a depth, (d, h, w) in place of (h, w).

    With `card.options.dynamic_window` h and w are open, too: any multiples of `window_multiple`.
    Batch norm is folded into the convolutions; weights are inside the file.
    """
    example = torch.zeros(2, card.scan_count, *card.window)
    for name in ("torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        program = torch.onnx.export(
            module.eval(),
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=(_open_axes(card),),
            external_data=False,
            optimize=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    _strip(model)
    onnx.checker.check_model(model, full_check=True)
    return write_model(model, card.model_copy(update={"opset": OPSET}), path)


def _open_axes(card: ModelCard) -> dict[int, Any]:
    axes: dict[int, Any] = {0: torch.export.Dim("batch", min=1, max=4096)}
    if card.options.dynamic_window:
        multiple = card.options.window_multiple
        for axis, name in ((2, "rows"), (3, "columns")):
            axes[axis] = multiple * torch.export.Dim(name, min=2, max=4096 // multiple)
    return axes


def _strip(model: onnx.ModelProto) -> None:
    """Drop what the exporter leaves behind: stack traces and file names of the build machine."""
    del model.metadata_props[:]
    for part in (
        *model.graph.node,
        *model.graph.value_info,
        *model.graph.initializer,
        *model.graph.input,
        *model.graph.output,
    ):
        part.doc_string = ""
        del part.metadata_props[:]
    del model.graph.metadata_props[:]
    model.doc_string = ""
