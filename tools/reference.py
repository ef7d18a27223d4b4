"""the commands and the pydantic models -> docs/reference/{commands,config,card}.md.

These three pages are kept in git, so that they can be read without building anything;
`make docs` writes them anew.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from leuda_deploy.model.card import ModelCard
from leuda_train.config.schema import TrainConfig

FOLDER = Path(__file__).parents[1] / "docs" / "reference"
NOTE = "<!-- Written by `make docs` from the code. Do not edit. -->\n\n"

CONFIG = """# Config

A config says how large and how long; a method says what is trained on what. Both are TOML files
with the keys below. `leuda train --config NAME --method NAME` lays the method over the config. A
NAME is a built-in one (`leuda_train/configs/`, `leuda_train/methods/`), or the path of your own
TOML file. A key that is not listed here is an error. The resolved config is written to
`RUN/config.toml`.
"""

CARD = """# Model card

What a model file says of itself, kept as JSON in the metadata of the ONNX file, and once more as
`card.json` beside it. A runtime needs nothing else: the card says how scans are prepared and what
the scores mean. The card of a file from elsewhere is checked against this schema, never evaluated.
"""


def main() -> None:
    """Write the three pages."""
    for name, text in pages().items():
        (FOLDER / name).write_text(text)


def pages() -> dict[str, str]:
    """File name -> text."""
    return {
        "commands.md": NOTE + _commands(),
        "config.md": NOTE + CONFIG + "".join(_sections(TrainConfig, "")),
        "card.md": NOTE + CARD + "".join(_sections(ModelCard, "")),
    }


def _commands() -> str:
    """Typer's own description of every command."""
    command = [sys.executable, "-m", "typer", "leuda_train.cli", "utils", "docs", "--name", "leuda"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    text = re.sub(r"<span [^>]*>(.*?)</span>", r"\1", text)  # the grey of the terminal
    text = text.replace("  Needs: nothing more.", "")
    # square brackets are links in Markdown
    text = re.sub(r"leuda\[(\w+)\]", r"`leuda[\1]`", text)
    text = re.sub(r"^(\* `.*) +\[([^\]\n]*)\]$", r"\1 (\2)", text, flags=re.MULTILINE)
    # the list of commands cuts their sentences short: say them whole
    for name, sentence in re.findall(r"^## `leuda (\w+)`\n\n(.*)$", text, re.MULTILINE):
        first = sentence.split("  ")[0]
        whole = f"* [`{name}`](#leuda-{name}): {first}"
        text = re.sub(rf"^\* `{name}`: .*$", whole, text, flags=re.MULTILINE)
    text = "\n".join(
        _without_links(line) if line.startswith("* ") else line for line in text.splitlines()
    )
    return text.replace("# `leuda`", "# Commands", 1).strip() + "\n"


def _sections(model: type[BaseModel], key: str) -> Iterator[str]:
    """A section for the model, then one for each model inside it, each once."""
    lead, meanings = _read_docstring(model.__doc__ or "")
    yield f"\n## {f'`[{key}]`' if key else 'Top level'}\n\n{_without_links(lead)}\n\n"
    yield "| key | value | default | meaning |\n|---|---|---|---|\n"
    parts = []
    for name, field in model.model_fields.items():
        part = _part(field.annotation)
        if part is not None:
            parts.append((part, f"{key}.{name}" if key else name))
        own = (part.__doc__ or "").split("\n\n")[0] if part else ""
        meaning = field.description or meanings.get(name, own)
        kind = f"see [`[{parts[-1][1]}]`](#{_anchor(parts[-1][1])})" if part else _kind(field)
        yield f"| `{name}` | {kind} | {_default(field)} | {_cell(meaning)} |\n"
    for part, place in parts:
        yield from _sections(part, place)


def _anchor(key: str) -> str:
    return re.sub(r"[^\w-]", "", key.lower())


def _part(kind: Any) -> type[BaseModel] | None:
    """The model that a key holds, alone or in a list, if it holds one."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind
    found = (_part(inner) for inner in get_args(kind) if get_origin(kind) is not Literal)
    return next((part for part in found if part), None)


def _kind(field: FieldInfo) -> str:
    """The values that are allowed, in words."""
    limits = [
        f"{sign} {getattr(rule, name)}"
        for rule in field.metadata
        for name, sign in {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}.items()
        if hasattr(rule, name)
    ]
    return _cell(" ".join([_words(field.annotation), *limits]))


def _words(kind: Any) -> str:
    inner = get_args(kind)
    if get_origin(kind) is Annotated:
        return _words(inner[0])
    if get_origin(kind) is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(_words(one) for one in inner if one is not NoneType)
    if get_origin(kind) is tuple:
        many = Ellipsis in inner
        return f"list of {_words(inner[0])}" if many else f"{len(inner)} × {_words(inner[0])}"
    if get_origin(kind) is dict:
        return f"table of {_words(inner[1])}"
    if isinstance(kind, type) and issubclass(kind, tuple):
        return f"`[{', '.join(kind.__annotations__)}]`"
    return {int: "whole number", float: "number", str: "text", bool: "`true`, `false`"}.get(
        kind, "value"
    )


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default is PydanticUndefined or isinstance(field.default, BaseModel):
        return "its defaults"
    if field.default is None:
        return "none"
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _read_docstring(text: str) -> tuple[str, dict[str, str]]:
    """First paragraphs, and `name  meaning` lines (several names parted by commas)."""
    lead: list[str] = []
    meanings: dict[str, str] = {}
    current: list[str] = []
    for line in text.splitlines():
        entry = re.match(r"^ {4}(?: {4})?(\w+(?:, \w+)*)(?: {2,}|: )(\S.*)$", line)
        if entry and entry[1] not in ("Attributes",):
            current = entry[1].split(", ")
            meanings |= dict.fromkeys(current, entry[2])
        elif current and re.match(r"^ {6,}\S", line):
            meanings |= {name: f"{meanings[name]} {line.strip()}" for name in current}
        elif line.strip() not in ("Attributes:",):
            current = []
            lead.append(line.strip())
    return "\n".join(lead).strip(), meanings


def _cell(text: str) -> str:
    """Text that keeps its letters inside a Markdown table."""
    text = text.replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;").replace("\n", " ")
    return _without_links(text)


def _without_links(text: str) -> str:
    """Brackets outside `code` and real links stand for themselves."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(
        part if part.startswith("`") else re.sub(r"(?<!\\)\[([^\]]*)\](?!\()", r"\\[\1\\]", part)
        for part in parts
    )


if __name__ == "__main__":
    main()
