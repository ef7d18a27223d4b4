"""an ONNX file from elsewhere -> an export folder that holds it, if it is what its card says."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

from leuda_deploy.engines.open_engine import OnnxEngine, OpenVinoEngine
from leuda_deploy.errors import InputError, LeudaError, MissingExtraError, ModelError
from leuda_deploy.export.verify import CARD_FILE, PARITY_FILE, verify
from leuda_deploy.machine.files import atomic_folder
from leuda_deploy.model.card import ModelCard, Precision, parse_card
from leuda_deploy.model.export_folder import MANIFEST_FILE, check_target, write_manifest
from leuda_deploy.model.model_file import MODEL_FILE, find_model, read_model, write_model
from leuda_deploy.proof.layers import Float32

PROBED = 2  # windows of noise that a graph from elsewhere is run on
QUANTISED = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"} | {
    "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger",
}  # fmt: skip


def copy_export(source: Path, output: Path | None) -> Path:
    """A model file from elsewhere -> an export folder that holds it; checked before it is kept.

    Without `output` the file must be the one of an export folder already.
    """
    content, card = read_model(find_model(source))
    if output is None or output.resolve() == source.parent.resolve():
        if source.name != MODEL_FILE:
            raise InputError(f"{source} is not in an export folder; say where to: -o exports/NAME")
        if not (source.parent / MANIFEST_FILE).is_file():
            raise InputError(f"{source.parent} has no manifest; say where to: -o exports/NAME")
        return source.parent
    check_target(output)
    with atomic_folder(output) as folder:
        (folder / MODEL_FILE).write_bytes(content)
        (folder / CARD_FILE).write_text(card.model_dump_json(indent=1))
        proof = source.parent / PARITY_FILE
        if source.name == MODEL_FILE and (source.parent / MANIFEST_FILE).is_file():
            verify(source.parent)  # then the proof beside it is of this very model
            if proof.is_file():
                shutil.copyfile(proof, folder / PARITY_FILE)
        write_manifest(folder)
    return output


def package_graph(source: Path, card_file: Path, output: Path) -> Path:
    """A graph from elsewhere, 2D or 3D, and its card -> an export folder, if they fit each other.

    The graph is run on noise. Raises ModelError in one line if it is not ONNX, is not what its card
    says, or gives scores that are not finite; InputError if `output` holds something else.
    """
    check_target(output)
    model = _read_graph(source)
    try:
        card = parse_card(card_file.read_text(encoding="utf-8"), str(card_file))
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"the card {card_file} cannot be read: {error}") from error
    computes = precision_of(model)
    if computes != card.precision:
        raise ModelError(
            f"{source} computes in {computes}, its card says {card.precision}; "
            f'write "precision": "{computes}" into {card_file}'
        )
    opset = next((entry.version for entry in model.opset_import if not entry.domain), card.opset)
    with atomic_folder(output) as folder:
        path = folder / MODEL_FILE
        card = write_model(model, card.model_copy(update={"opset": opset}), path)
        (folder / CARD_FILE).write_text(card.model_dump_json(indent=1))
        try:
            scores = _scores_of_noise(path, card)
        except MissingExtraError:
            raise
        except LeudaError as error:  # it names the copy, which is gone by then
            raise ModelError(str(error).replace(str(path), str(source))) from error
        wanted = (PROBED, 1 + len(card.structures), *card.window)
        if scores.shape != wanted:
            raise ModelError(f"{source} gives scores {scores.shape}, its card says {wanted}")
        if not np.isfinite(scores).all():
            count = np.count_nonzero(~np.isfinite(scores))
            raise ModelError(
                f"{source} gives {count:,} scores of {scores.size:,} that are not finite on noise: "
                "look for NaN or infinity in its weights"
            )
        write_manifest(folder)
    return output


def precision_of(model: onnx.ModelProto) -> Precision:
    """What a graph computes in: int8 with quantised operators, else its smallest float type."""
    if any(node.op_type in QUANTISED for node in model.graph.node):
        return "int8"
    graph = onnx.shape_inference.infer_shapes(model).graph
    types = {value.type.tensor_type.elem_type for value in graph.value_info}
    types |= {tensor.data_type for tensor in graph.initializer}
    if TensorProto.BFLOAT16 in types:  # bf16 graphs hold fp16, too; see to_half.py
        return "bf16"
    return "fp16" if TensorProto.FLOAT16 in types else "fp32"


def _read_graph(source: Path) -> onnx.ModelProto:
    """The graph with all of its weights, float32 at both ends."""
    try:
        model = onnx.load(source)
    except (OSError, DecodeError) as error:
        raise ModelError(f"{source} is not an ONNX model: {error}") from error
    except onnx.checker.ValidationError as error:
        raise ModelError(
            f"{source} keeps weights in other files, which cannot be read: {error}"
        ) from error
    for value in (*model.graph.input, *model.graph.output):
        kind = value.type.tensor_type.elem_type
        if kind != TensorProto.FLOAT:
            raise ModelError(
                f"{source} has {TensorProto.DataType.Name(kind).lower()} {value.name!r}; input and "
                "scores have to be float32: export it with casts at both ends"
            )
    return model


def _scores_of_noise(path: Path, card: ModelCard) -> Float32:
    bf16 = card.precision == "bf16"  # which ONNX Runtime does not run on the CPU
    engine = OpenVinoEngine(path, precision="fp32") if bf16 else OnnxEngine(path)
    noise = np.random.default_rng(0).normal(size=(PROBED, 1, *card.window))
    return engine(noise.astype(np.float32))
