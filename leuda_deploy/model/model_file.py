"""graph + card <-> one ONNX file that describes itself, and is refused if a byte of it changed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx.external_data_helper import uses_external_data

from leuda_deploy.errors import ModelError
from leuda_deploy.machine.files import atomic_path
from leuda_deploy.model.card import METADATA_KEY, ModelCard, parse_card

MODEL_FILE = "model.onnx"


def find_model(path: Path | str) -> Path:
    """An export folder or a model file -> the model file. Raises ModelError if there is none."""
    path = Path(path)
    model = path / MODEL_FILE if path.is_dir() else path
    if (path / "model.pt").is_file() and not model.is_file():
        raise ModelError(f"{path} is a training run; first: leuda export {path} -o exports/NAME")
    if not model.is_file():
        raise ModelError(
            f"no model at {path}: expected a *.onnx file or a folder with {MODEL_FILE}"
        )
    return model


def write_model(model: onnx.ModelProto, card: ModelCard, path: Path | str) -> ModelCard:
    """Write graph and card atomically; the card as written, with its checksum filled in."""
    del model.metadata_props[:]
    sha256 = content_sha256(model, card.model_copy(update={"sha256": ""}).to_json())
    card = card.model_copy(update={"sha256": sha256})
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, card.to_json()
    with atomic_path(path) as temporary:
        temporary.write_bytes(model.SerializeToString(deterministic=True))
    return card


def read_model(path: Path) -> tuple[bytes, ModelCard]:
    """The bytes of a model file and its validated card.

    Raises ModelError in one line for a file that is not ONNX, has no card or an unknown or invalid
    one, keeps weights outside itself, or differs in anything from what was written.
    """
    content = path.read_bytes()
    try:
        model = onnx.load_model_from_string(content)
    except DecodeError as error:
        raise ModelError(f"{path} is not an ONNX model (truncated or damaged?)") from error
    cards = [entry.value for entry in model.metadata_props if entry.key == METADATA_KEY]
    if len(cards) != 1:
        raise ModelError(
            f"{path} carries no leuda model card; it was not written by `leuda export`"
        )
    if not isinstance(cards[0], str):  # protobuf hands out bytes that are not UTF-8 as they are
        raise ModelError(f"the model card of {path} is not text: the file is damaged")
    card = parse_card(cards[0], str(path))
    if any(uses_external_data(tensor) for tensor in model.graph.initializer):
        raise ModelError(f"{path} keeps weights in other files; a leuda model is one file")
    # the text as it stands: a field that an earlier version did not write has its default
    found = content_sha256(model, cards[0].replace(f'"sha256":"{card.sha256}"', '"sha256":""'))
    if found != card.sha256:
        raise ModelError(
            f"{path} does not match its own checksum (sha256 {found[:12]}, its card says "
            f"{card.sha256[:12]}): the file is damaged or was altered"
        )
    return content, card


def content_sha256(model: onnx.ModelProto, card: str) -> str:
    """SHA-256 over the graph, its weights and the card's text without a checksum in it."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.metadata_props[:]
    digest = hashlib.sha256(bare.SerializeToString(deterministic=True))
    digest.update(card.encode())
    return digest.hexdigest()
