"""an ONNX file from elsewhere -> an export folder that holds it, if it is what its card says."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

from leuda_deploy.engines.engine import Float32
from leuda_deploy.engines.open_engine import reference_engine
from leuda_deploy.errors import (
    InputError,
    LeudaError,
    MissingExtraError,
    ModelError,
    one_line,
    reading,
)
from leuda_deploy.export.verify import verify
from leuda_deploy.machine.files import atomic_folder
from leuda_deploy.machine.outside import read_text
from leuda_deploy.model.card import MAX_CARD_BYTES, ModelCard, Precision, parse_card
from leuda_deploy.model.export_folder import (
    CARD_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    PARITY_FILE,
    check_replaceable,
    default_model,
    write_manifest,
)
from leuda_deploy.model.model_file import (
    ModelFile,
    check_ends,
    keeps_weights_elsewhere,
    write_model,
)

STEADY_WITHIN = 1e-3  # of the range of its scores, by which rounding may move them
PROBED = 2  # windows of noise that a graph from elsewhere is run on
QUANTISED = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"} | {
    "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger",
}  # fmt: skip


def copy_export(source: Path, output: Path | None) -> ModelFile:
    """A model file from elsewhere -> an export folder that holds it; checked before it is kept.

    Without `output` the file must be the one of an export folder already.
    """
    model = ModelFile.open(source)
    if output is None or output.resolve() == source.parent.resolve():
        if source.name != MODEL_FILE:
            raise InputError(f"{source} is not in an export folder; say where to: -o exports/NAME")
        if not (source.parent / MANIFEST_FILE).is_file():
            raise InputError(f"{source.parent} has no manifest; say where to: -o exports/NAME")
        return model
    check_replaceable(output)
    with atomic_folder(output) as folder:
        (folder / MODEL_FILE).write_bytes(model.content)
        (folder / CARD_FILE).write_text(model.card.model_dump_json(indent=1))
        proof = source.parent / PARITY_FILE
        if source.name == MODEL_FILE and (source.parent / MANIFEST_FILE).is_file():
            verify(source.parent)  # then the proof beside it is of this very model
            if proof.is_file():
                shutil.copyfile(proof, folder / PARITY_FILE)
        write_manifest(folder, known={MODEL_FILE: model.sha256})
    return replace(model, path=output / MODEL_FILE)


def package_graph(source: Path, card_file: Path, output: Path) -> ModelFile:
    """A graph from elsewhere, 2D or 3D, and its card -> an export folder, if they fit each other.

    The graph is run on noise. Raises ModelError in one line if it is not ONNX, is not what its card
    says, or gives scores that are not finite; InputError if `output` holds something else.
    """
    check_replaceable(output)
    graph = read_graph(source)
    card = parse_card(read_text(card_file, most=MAX_CARD_BYTES, failed=ModelError), str(card_file))
    _check_its_own(card, card_file)
    computes = precision_of(graph)
    if computes != card.precision:
        raise ModelError(
            f"{source} computes in {computes}, its card says {card.precision}; "
            f'write "precision": "{computes}" into {card_file}'
        )
    opset = next((entry.version for entry in graph.opset_import if not entry.domain), card.opset)
    with atomic_folder(output) as folder:
        card = card.model_copy(update={"opset": opset})
        model = write_model(graph, card, folder / MODEL_FILE)
        (folder / CARD_FILE).write_text(model.card.model_dump_json(indent=1))
        try:
            scores = _scores_of_noise(replace(model, path=source))  # what a refusal is to name
        except MissingExtraError:
            raise
        except LeudaError as error:
            raise ModelError(str(error)) from error
        wanted = (PROBED, card.score_count, *card.window)
        if scores.shape != wanted:
            raise ModelError(f"{source} gives scores {scores.shape}, its card says {wanted}")
        if not np.isfinite(scores).all():
            count = np.count_nonzero(~np.isfinite(scores))
            raise ModelError(
                f"{source} gives {count:,} scores of {scores.size:,} that are not finite on noise: "
                "look for NaN or infinity in its weights"
            )
        _check_steady(replace(model, path=source), scores)
        write_manifest(folder, known={MODEL_FILE: model.sha256})
    return replace(model, path=output / MODEL_FILE)


def _check_its_own(card: ModelCard, card_file: Path) -> None:
    """Refuse a card with the facts of the phantom model: a copy that was not filled in."""
    phantom = ModelFile.open(default_model()).card
    same = [
        name
        for name in ("name", "provenance", "domain")
        if getattr(card, name) is not None and getattr(card, name) == getattr(phantom, name)
    ]
    if same:
        raise InputError(
            f"{card_file} has the {' and '.join(same)} of another model, the phantom model that "
            "comes with leuda: say those of yours (`leuda card init` writes a card with room for "
            'them), or "domain": null'
        )


def _check_steady(model: ModelFile, scores: Float32) -> None:
    """Refuse a graph whose scores of a window differ from run to run, or with its company.

    Dropout that is alive does the first, batch statistics the second; some graphs mix their batch.
    """
    engine, noise = reference_engine(model), _noise(model.card)
    tolerance = STEADY_WITHIN * float(np.ptp(scores))
    again, alone = engine(noise), np.concatenate([engine(window[None]) for window in noise])
    for found, when in ((again, "from run to run"), (alone, "alone and in a batch")):
        apart = float(np.abs(found - scores).max())
        if apart > tolerance:
            raise ModelError(
                f"{model.path} gives a window other scores {when} (up to {apart:.3g} apart): "
                "export it in evaluation mode (.eval()), and with nothing that mixes a batch"
            )


def precision_of(model: onnx.ModelProto) -> Precision:
    """What a graph computes in: int8 with quantised operators, else its smallest float type."""
    if any(node.op_type in QUANTISED for node in model.graph.node):
        return "int8"
    with reading(lambda what: ModelError(f"the graph's shapes contradict each other: {what}")):
        graph = onnx.shape_inference.infer_shapes(model).graph
    types = {value.type.tensor_type.elem_type for value in graph.value_info}
    types |= {tensor.data_type for tensor in graph.initializer}
    if TensorProto.BFLOAT16 in types:  # bf16 graphs hold fp16, too; see to_half.py
        return "bf16"
    return "fp16" if TensorProto.FLOAT16 in types else "fp32"


def read_graph(source: Path) -> onnx.ModelProto:
    """The graph with all of its weights, float32 at both ends."""
    try:
        model = onnx.load(source)
    except (OSError, DecodeError) as error:
        raise ModelError(f"{source} is not an ONNX model: {one_line(error)}") from error
    except onnx.checker.ValidationError as error:
        raise ModelError(
            f"{source} keeps weights in other files, which cannot be read: {one_line(error)}"
        ) from error
    if keeps_weights_elsewhere(model):
        raise ModelError(f"{source} keeps values of a branch or function in other files")
    check_ends(model, source)
    for value in (*model.graph.input, *model.graph.output):
        kind = value.type.tensor_type.elem_type
        if kind != TensorProto.FLOAT:
            raise ModelError(
                f"{source} has {TensorProto.DataType.Name(kind).lower()} {value.name!r}; input and "
                "scores have to be float32: export it with casts at both ends"
            )
    return model


def _scores_of_noise(model: ModelFile) -> Float32:
    return reference_engine(model)(_noise(model.card))


def _noise(card: ModelCard) -> Float32:
    noise = np.random.default_rng(0).normal(size=(PROBED, card.scan_count, *card.window))
    return noise.astype(np.float32)
