"""a TorchScript from elsewhere -> its module, if its code reaches nothing but tensors.

A TorchScript is a program. Operators of torch write files (`torch.save`, `torch.from_file`) and
call other machines (`rpc_...`), and it runs as soon as it is loaded (`__setstate__`). So its source
is looked through before. What is loaded is an archive made anew of what was looked at: two readers
of one zip need not agree on what it holds.
"""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path
from typing import Any

from leuda_deploy.errors import ModelError, printable
from leuda_deploy.machine.outside import read_bytes

MOST_BYTES = (1 << 31) - 1
# of bytes, so that a letter beyond ASCII is no part of a word, as in TorchScript
REACHES_OUT = re.compile(rb"\b(?:from_file|save|rpc_\w+|classes|print)\b")
OTHER_OPERATORS = re.compile(rb"\bops\b(?!\s*\.\s*(?:aten|prim)\b)")
GETATTR = re.compile(rb"\bgetattr\b")
# as torch writes it, of children with a number for a name; no escape can hide a word in it
PLAIN_GETATTR = re.compile(rb'\bgetattr\([\w.]+, "[^"\\\n]*"\)')
FOREIGN_OBJECTS = re.compile(rb"\bclasses\b")


def load_torchscript(path: Path) -> Any:
    """The module, on the CPU. Raises ModelError where its code does more than compute."""
    import torch

    content = read_bytes(path, most=MOST_BYTES, failed=ModelError)
    return torch.jit.load(io.BytesIO(_checked(content, path)), map_location="cpu")


def _checked(content: bytes, path: Path) -> bytes:
    """The same archive, of nothing but what was looked at. Raises ModelError."""
    made = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as given,
        zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as checked,
    ):
        members = given.infolist()
        # torch takes the names of members for the same whatever their case is
        if len({member.filename.lower() for member in members}) < len(members):
            raise ModelError(f"{path} holds two files of one name")
        if sum(member.file_size for member in members) > MOST_BYTES:
            raise ModelError(f"{path} has more than {MOST_BYTES:,} bytes when it is unpacked")
        for member in members:
            name = member.filename.lower()
            if name.endswith(".debug_pkl"):  # where its lines stood once: nothing needs it
                continue
            data = given.read(member)
            _check(name, data, path)
            checked.writestr(member.filename, data)
    return made.getvalue()


def _check(name: str, data: bytes, path: Path) -> None:
    """Raises ModelError for a member whose code does more than compute."""
    found = None
    if name.endswith(".py"):
        found = REACHES_OUT.search(data) or OTHER_OPERATORS.search(data)
        if found is None and len(GETATTR.findall(data)) != len(PLAIN_GETATTR.findall(data)):
            found = GETATTR.search(data)
    elif name.endswith(".pkl"):
        found = FOREIGN_OBJECTS.search(data)
    elif name.endswith("model.json") or "/code/" in name:
        raise ModelError(f"{path} is of an early torch: {printable(name)}")
    if found is not None:
        raise ModelError(
            f"{path} does more than compute: {printable(name)} uses {found[0].decode()!r}, which "
            "can write files, call other machines or run what is not torch's; it is not loaded"
        )
