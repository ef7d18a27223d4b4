"""records that the program logs -> one plain line each on stderr, whatever state stderr is in.

A terminal may not know a letter, a log may be on a full disk, or the streams may be closed. What is
said there is lost then; the work goes on.
"""

from __future__ import annotations

import codecs
import logging
import os
import sys
import unicodedata
import warnings
from contextlib import suppress
from typing import Any, TextIO

from leuda_deploy.errors import printable

MAX_LINE = 2000  # characters
PACKAGES = ("leuda_deploy", "leuda_train")
PLAIN = {"Δ": "d", "±": "+-", "×": "x", "−": "-", "…": "...", "→": "->", "≤": "<=", "≥": ">="}
HANDLER = "leuda-plain"


def log_to_stderr() -> None:
    """Show what both packages log, from INFO on; no warning that quotes what a DICOM file says."""
    warnings.filterwarnings("ignore", module=r"pydicom\.")  # e.g. a patient's odd date of birth
    for package in PACKAGES:
        logger = logging.getLogger(package)
        logger.handlers = [_Lines()]
        logger.setLevel(logging.INFO)


class _Lines(logging.Handler):
    """Information as it is; what is worse behind its level: "warning: ..."."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line, even if the text has several, and nothing that a terminal would obey."""
        line = printable(record.getMessage(), MAX_LINE)
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        sys.stderr.write(f"{level}{line}\n")
        sys.stderr.flush()


def plain(error: UnicodeError) -> tuple[str, int]:
    """For letters that a stream cannot write: others that look alike, or a question mark."""
    assert isinstance(error, UnicodeEncodeError)
    letters = error.object[error.start : error.end]
    return "".join(map(_plain_letter, letters)), error.end


def _plain_letter(letter: str) -> str:
    parts = unicodedata.normalize("NFKD", letter)
    return PLAIN.get(letter) or "".join(part for part in parts if part.isascii()) or "?"


def make_patient() -> None:
    """Let no stream of this process stop the work. To be called before anything is opened."""
    codecs.register_error(HANDLER, plain)
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:  # closed: the next file that is opened would be taken for it
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            # the file lives as long as the process
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123
        elif hasattr(stream, "reconfigure"):
            with suppress(ValueError, OSError):
                stream.reconfigure(errors=HANDLER)
    sys.stderr = _Patient(sys.stderr)


class _Patient:
    """A text stream that drops what it cannot write."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
