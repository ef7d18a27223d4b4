"""model file -> a model repository for NVIDIA Triton Inference Server.

    DIR/NAME/config.pbtxt      what the server has to know, in protobuf text (ModelConfig)
    DIR/NAME/1/model.onnx      version 1

Clients send windows and blend them as `leuda_deploy.inference.sliding_window` does; the card, which
says how scans become windows, is the parameter "leuda.card" of the served model.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import onnx
from google.protobuf.text_encoding import CEscape

from leuda_deploy.errors import InputError, ModelError
from leuda_deploy.machine.files import atomic_folder
from leuda_deploy.machine.outside import open_file
from leuda_deploy.model.card import METADATA_KEY, ModelCard
from leuda_deploy.model.export_folder import MODEL_FILE
from leuda_deploy.model.model_file import ModelFile

# Windows of one scan arrive together: a short wait fills batches without being felt.
QUEUE_DELAY_US = 2000
HEAD = "# Written by `leuda export --triton`"


def to_triton(model: ModelFile, repository: Path, *, batch: int = 8) -> Path:
    """Write the export into a model repository; returns the model's folder there.

    Raises InputError if the name cannot be a folder of a repository, or is another model's.
    """
    card = model.card
    if not re.fullmatch(r"\w[\w.-]{0,199}", card.name):
        raise InputError(f"{card.name!r} cannot name a served model: use letters, digits, - _ .")
    folder = repository / card.name
    if os.path.lexists(folder) and not _is_ours(folder):
        raise InputError(
            f"{folder} is there already, and leuda did not write all of it; choose another "
            "repository, or move it away"
        )
    with atomic_folder(folder) as temporary:
        (temporary / "1").mkdir()
        (temporary / "1" / MODEL_FILE).write_bytes(model.content)
        config = server_config(model.graph(), card, batch)
        (temporary / "config.pbtxt").write_text(config, encoding="utf-8")
    return folder


def _is_ours(folder: Path) -> bool:
    """Whether a folder holds what `to_triton` writes, and nothing else."""
    config = folder / "config.pbtxt"
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    if folder.is_symlink() or there != {"1", f"1/{MODEL_FILE}", config.name}:
        return False
    with open_file(config) as file:
        return file.read(len(HEAD)) == HEAD.encode()


def server_config(model: onnx.ModelProto, card: ModelCard, batch: int) -> str:
    """The text of config.pbtxt; dimensions are given without the batch, -1 is open."""
    open_window = card.options.dynamic_window
    window = ", ".join("-1" if open_window else str(size) for size in card.window)
    ends = [_quoted(value.name) for value in (*model.graph.input, *model.graph.output)]
    if len(model.graph.input) != 1 or len(model.graph.output) != 1:
        raise ModelError(f"a model to serve has one input and one output; this graph has {ends}")
    entry, scores = ends
    return f"""\
{HEAD}; schema: ModelConfig of the Triton Inference Server.
name: {_quoted(card.name)}
backend: "onnxruntime"
max_batch_size: {batch}
input [
  {{ name: {entry} data_type: TYPE_FP32 dims: [ {card.scan_count}, {window} ] }}
]
output [
  {{ name: {scores} data_type: TYPE_FP32 dims: [ {card.score_count}, {window} ] }}
]
version_policy {{ latest {{ num_versions: 1 }} }}
dynamic_batching {{ max_queue_delay_microseconds: {QUEUE_DELAY_US} }}
parameters {{
  key: "{METADATA_KEY}"
  value {{ string_value: {_quoted(card.to_json())} }}
}}
"""


def _quoted(text: str) -> str:
    """A string of protobuf text: no quote or line break in it ends it."""
    return f'"{CEscape(text, as_utf8=True)}"'
