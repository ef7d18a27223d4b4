"""a file from elsewhere -> its content, no larger and no deeper than what it is needed for.

The one reader of small files that leuda did not just write itself: JSON, TOML, keys. A file is
looked at before it is read, so that none costs more memory than its limit.
"""

from __future__ import annotations

import errno
import json
import math
import os
import stat
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from leuda_deploy.errors import InputError, LeudaError, one_line, printable

MAX_DIGITS = 300  # of a whole number
MAX_DEPTH = 50  # tables within tables: far more than any format here has
UNSTATED = 1 << 20  # the default limit, in bytes
# Windows has neither the first flag nor such pipes; nothing else has the second
NO_WAIT = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
Failure = Callable[[str], LeudaError]


def open_file(path: Path | str) -> BinaryIO:
    """A regular file, or a link to one, opened to be read; no pipe and no device.

    Raises:
        OSError, ValueError: There is none of this name, or it is something else.
    """
    # opening a pipe would else wait for somebody to write into it
    descriptor = os.open(path, os.O_RDONLY | NO_WAIT)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a file, but a pipe, a device or a folder")
    return os.fdopen(descriptor, "rb")


def read_bytes(path: Path | str, *, most: int = UNSTATED, failed: Failure = InputError) -> bytes:
    """The bytes of a file.

    Args:
        path: A regular file, or a link to one; no pipe and no device.
        most: Bytes it may have.
        failed: Makes the error that is raised of a line.

    Raises:
        LeudaError: As `failed` makes it: no such file, none that can be read, or a larger one.
    """
    name = printable(str(path))
    try:
        with open_file(path) as file:
            status = os.fstat(file.fileno())
            # one byte more than allowed: a file can grow, and those of /proc state no size
            content = b"" if status.st_size > most else file.read(most + 1)
            size = max(status.st_size, len(content))
    except FileNotFoundError as error:
        raise failed(f"no such file: {name}") from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte within the name
        raise failed(f"{name} cannot be read: {one_line(error)}") from error
    if size > most:
        raise failed(f"{name} has {size:,} bytes; at most {most:,} are read")
    return content


def read_text(path: Path | str, *, most: int = UNSTATED, failed: Failure = InputError) -> str:
    """The text of a UTF-8 file. Raises as `read_bytes` does, also where it is none."""
    try:
        return _text(read_bytes(path, most=most, failed=failed))
    except UnicodeDecodeError as error:
        raise failed(f"{printable(str(path))} is not UTF-8 text: {one_line(error)}") from error


def read_json(
    path: Path | str,
    *,
    most: int = UNSTATED,
    failed: Failure = InputError,
    file_names: bool = False,
) -> Any:
    """The value of a JSON file. Raises as `read_bytes` and `parse_json` do."""
    content = read_bytes(path, most=most, failed=failed)
    return parse_json(content, str(path), failed=failed, file_names=file_names)


def read_toml(
    path: Path | str, *, most: int = UNSTATED, failed: Failure = InputError
) -> dict[str, Any]:
    """The table of a TOML file. Raises as `read_bytes` and `parse_toml` do."""
    return parse_toml(read_bytes(path, most=most, failed=failed), str(path), failed=failed)


def parse_json(
    content: bytes | str, name: str, *, failed: Failure = InputError, file_names: bool = False
) -> Any:
    """A JSON text -> its value, which can be written as JSON again.

    Args:
        content: UTF-8, with or without a byte order mark.
        name: What messages call it.
        failed: Makes the error that is raised of a line.
        file_names: Take the halves of characters by which Python keeps names that are not UTF-8.

    Raises:
        LeudaError: As `failed` makes it: no UTF-8, no JSON, NaN or infinity, half a character, or
            nested deeper than MAX_DEPTH.
    """
    try:
        value = json.loads(
            _text(content),
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_whole,
        )
        _check_depth(value)
        # no half of a character in it
        halves = "surrogateescape" if file_names else "strict"
        json.dumps(value, ensure_ascii=False).encode(errors=halves)
    except (ValueError, RecursionError) as error:
        raise failed(f"{printable(name)} is not JSON: {one_line(error)}") from error
    return value


def parse_toml(content: bytes, name: str, *, failed: Failure = InputError) -> dict[str, Any]:
    """A TOML text -> its table. Raises as `parse_json` does."""
    try:
        table = tomllib.loads(_text(content))
        _check_depth(table)
    except (ValueError, RecursionError) as error:
        raise failed(f"{printable(name)} is not TOML: {one_line(error)}") from error
    return table


def _text(content: bytes | str) -> str:
    return content.decode("utf-8-sig") if isinstance(content, bytes) else content


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    """1e400 is written as a number, and would be infinite."""
    number = float(text)
    return number if math.isfinite(number) else _refuse_constant(text)


def _whole(text: str) -> int:
    """A number that a float can hold, too: others end in an OverflowError, much later."""
    return int(text) if len(text) <= MAX_DIGITS else _refuse_constant(f"{text[:20]}...")


def _check_depth(value: Any) -> None:
    """Level by level, not by recursion."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for each in level
            if isinstance(each, dict | list)
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return
    raise ValueError(f"nested deeper than {MAX_DEPTH}")
