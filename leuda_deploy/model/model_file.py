"""graph + card <-> one ONNX file that describes itself, and is refused if a byte of it changed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO

import onnx
from google.protobuf.message import DecodeError, Message

from leuda_deploy.errors import ModelError
from leuda_deploy.machine.files import atomic_path
from leuda_deploy.machine.outside import read_bytes
from leuda_deploy.model.card import MAX_CARD_BYTES, METADATA_KEY, ModelCard, parse_card
from leuda_deploy.model.export_folder import (
    CARD_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    UNLISTED,
    Manifest,
    read_manifest,
)

MAX_MODEL_BYTES = (1 << 31) - 1  # protobuf's own limit
FIXED = {1: 8, 5: 4}  # kinds of protobuf fields with a fixed number of bytes
METADATA_FIELD = 14  # of onnx.ModelProto: metadata_props
MAX_OTHER_METADATA = 1 << 20
REPEATING = {"Loop", "Scan", "SequenceMap"}  # operators


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
        check_sizes(path)
        content = read_bytes(path, most=MAX_MODEL_BYTES, failed=ModelError)
        card = _check(content, path)
        return cls(
            path=path, content=content, card=card, sha256=hashlib.sha256(content).hexdigest()
        )

    @classmethod
    def open_signed(cls, path: Path | str, key: Path) -> ModelFile:
        """Open the model of an export that the owner of a public key has signed.

        Its manifest is the one that was signed, so its engines are, too. Raises as `open` and
        `signed_manifest` do.
        """
        from leuda_deploy.model.signature import signed_manifest

        model = cls.open(path)
        manifest = signed_manifest(model.folder, key)
        if manifest.files.get(model.path.name) != model.sha256:
            raise ModelError(f"{model.path} is not the one that was signed")
        model.__dict__["manifest"] = manifest  # as if it had been asked for
        return model

    @property
    def folder(self) -> Path:
        """Where it lies; engines lie beside it."""
        return self.path.parent

    @property
    def files(self) -> tuple[Path, ...]:
        """The model, and what belongs to it in its export folder: no output may replace these."""
        if not self.is_export:
            return (self.path,)
        names = {CARD_FILE, *UNLISTED}
        with suppress(ModelError):  # a manifest that cannot be used is refused where it is needed
            names |= set(self.manifest.files) if self.manifest is not None else set()
        return (self.path, *(self.folder / name for name in sorted(names)))

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
    if keeps_weights_elsewhere(graph):
        raise ModelError(f"{path} keeps weights in other files; a leuda model is one file")
    check_ends(graph, path)
    # the text as it stands: a field that an earlier version did not write has its default
    found = content_sha256(graph, cards[0].replace(f'"sha256":"{card.sha256}"', '"sha256":""'))
    if found != card.sha256:
        raise ModelError(
            f"{path} does not match its own checksum (sha256 {found[:12]}, its card says "
            f"{card.sha256[:12]}): the file is damaged or was altered"
        )
    return card


def check_sizes(path: Path) -> None:
    """Refuse a model file that is too large, or whose metadata are, before it is read whole.

    Walks along the fields of the ONNX message (protobuf: a key, then a length, then as many bytes)
    without reading what is in them. What is no such message is refused later. Raises ModelError.
    """
    size = path.stat().st_size
    if size > MAX_MODEL_BYTES:
        raise ModelError(f"{path} has {size:,} bytes; an ONNX file has {MAX_MODEL_BYTES:,} at most")
    with path.open("rb") as file:
        metadata, place = 0, 0
        while place < size:
            if (key := _varint(file)) is None:
                return
            kind = key & 7
            if kind in FIXED:
                file.seek(FIXED[kind], 1)
            elif kind not in (0, 2):
                raise ModelError(f"{path} is not an ONNX model (truncated or damaged?)")
            elif (value := _varint(file)) is None:
                return
            elif kind == 2:
                metadata += value if key >> 3 == METADATA_FIELD else 0
                file.seek(value, 1)
            place = file.tell()
    if metadata > MAX_CARD_BYTES + MAX_OTHER_METADATA:
        raise ModelError(
            f"{path} has {metadata:,} bytes of metadata; of a card {MAX_CARD_BYTES:,} are read"
        )


def _varint(file: IO[bytes]) -> int | None:
    """The next number, 7 bits a byte, lowest first; None if there is none."""
    number = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            return None
        number |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return number
    return None


def keeps_weights_elsewhere(message: Message) -> bool:
    """Whether any tensor of a graph, however deep in it, takes its values from another file.

    In initializers, sparse ones, attributes, branches of If, bodies of Loop, and functions.
    """
    return any(
        each.external_data or each.data_location == onnx.TensorProto.EXTERNAL
        for each in _parts(message)
        if isinstance(each, onnx.TensorProto)
    )


def check_ends(graph: onnx.ModelProto, path: Path) -> None:
    """Raises ModelError if an operator, however deep, repeats others as often as its input says."""
    for part in _parts(graph):
        if isinstance(part, onnx.NodeProto) and part.op_type in REPEATING:
            raise ModelError(
                f"{path} holds a {part.op_type}, which can run for ever; export the network with "
                "its loops unrolled"
            )


def _parts(message: Message) -> Iterator[Message]:
    """A message of a graph and all that it holds, tensors unopened."""
    waiting: list[Message] = [message]
    while waiting:
        each = waiting.pop()
        yield each
        if isinstance(each, onnx.TensorProto):
            continue
        for field_of, value in each.ListFields():
            if field_of.message_type is not None:
                waiting += value if isinstance(value, Sequence) else [value]


def content_sha256(graph: onnx.ModelProto, card: str) -> str:
    """SHA-256 over the graph, its weights and the card's text without a checksum in it."""
    bare = onnx.ModelProto()
    bare.CopyFrom(graph)
    del bare.metadata_props[:]
    digest = hashlib.sha256(bare.SerializeToString(deterministic=True))
    digest.update(card.encode())
    return digest.hexdigest()
