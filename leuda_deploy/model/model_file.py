"""graph + card <-> one ONNX file that describes itself, and is refused if a byte of it changed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx.external_data_helper import uses_external_data

from leuda_deploy.errors import ModelError
from leuda_deploy.machine.files import atomic_path
from leuda_deploy.model.card import METADATA_KEY, ModelCard, parse_card
from leuda_deploy.model.export_folder import MANIFEST_FILE, MODEL_FILE, Manifest, read_manifest


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """One exported model: found, read, validated and hashed once, then handed on.

    Whoever has one need not look at the file again: what runs is `content`, the very bytes that
    were checked.

    Attributes:
        path: Where the file is.
        content: Its bytes, an ONNX graph with the card in its metadata.
        card: The validated model card.
        sha256: Of the bytes, as `sha256sum` prints it.
    """

    path: Path
    content: bytes = field(repr=False)
    card: ModelCard = field(repr=False)
    sha256: str

    @classmethod
    def open(cls, path: Path | str) -> ModelFile:
        """Open a model file, or the one in an export folder.

        Args:
            path: A `*.onnx` file or an export folder.

        Raises:
            ModelError: In one line, if there is none, or it is not ONNX, has no card or an unknown
                or invalid one, keeps weights outside itself, or differs in anything from what was
                written.
        """
        path = find_model(path)
        content = path.read_bytes()
        card = _check(content, path)
        return cls(
            path=path, content=content, card=card, sha256=hashlib.sha256(content).hexdigest()
        )

    @property
    def folder(self) -> Path:
        """Where it lies; engines lie beside it."""
        return self.path.parent

    @property
    def is_export(self) -> bool:
        """Whether it is the model of an export folder, which has a manifest."""
        return self.path.name == MODEL_FILE and (self.folder / MANIFEST_FILE).is_file()

    @cached_property
    def manifest(self) -> Manifest | None:
        """What belongs to its export folder, as it is when first asked for; None outside of one.

        Raises ModelError if the manifest cannot be used.
        """
        return read_manifest(self.folder) if self.is_export else None

    def graph(self) -> onnx.ModelProto:
        """The graph, parsed anew: the caller's own to change."""
        return onnx.load_model_from_string(self.content)


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


def write_model(graph: onnx.ModelProto, card: ModelCard, path: Path | str) -> ModelFile:
    """Write graph and card atomically; the card gets its checksum. Returns what was written."""
    del graph.metadata_props[:]
    sha256 = content_sha256(graph, card.model_copy(update={"sha256": ""}).to_json())
    card = card.model_copy(update={"sha256": sha256})
    entry = graph.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, card.to_json()
    content: bytes = graph.SerializeToString(deterministic=True)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return ModelFile(
        path=Path(path), content=content, card=card, sha256=hashlib.sha256(content).hexdigest()
    )


def _check(content: bytes, path: Path) -> ModelCard:
    """The validated card of a model file's bytes. Raises ModelError."""
    try:
        graph = onnx.load_model_from_string(content)
    except DecodeError as error:
        raise ModelError(f"{path} is not an ONNX model (truncated or damaged?)") from error
    cards = [entry.value for entry in graph.metadata_props if entry.key == METADATA_KEY]
    if len(cards) != 1:
        raise ModelError(
            f"{path} carries no leuda model card; it was not written by `leuda export`"
        )
    if not isinstance(cards[0], str):  # protobuf hands out bytes that are not UTF-8 as they are
        raise ModelError(f"the model card of {path} is not text: the file is damaged")
    card = parse_card(cards[0], str(path))
    if any(uses_external_data(tensor) for tensor in graph.graph.initializer):
        raise ModelError(f"{path} keeps weights in other files; a leuda model is one file")
    # the text as it stands: a field that an earlier version did not write has its default
    found = content_sha256(graph, cards[0].replace(f'"sha256":"{card.sha256}"', '"sha256":""'))
    if found != card.sha256:
        raise ModelError(
            f"{path} does not match its own checksum (sha256 {found[:12]}, its card says "
            f"{card.sha256[:12]}): the file is damaged or was altered"
        )
    return card


def content_sha256(graph: onnx.ModelProto, card: str) -> str:
    """SHA-256 over the graph, its weights and the card's text without a checksum in it."""
    bare = onnx.ModelProto()
    bare.CopyFrom(graph)
    del bare.metadata_props[:]
    digest = hashlib.sha256(bare.SerializeToString(deterministic=True))
    digest.update(card.encode())
    return digest.hexdigest()
