"""records that the program logs -> one plain line each on stderr."""

from __future__ import annotations

import logging
import sys

from leuda_deploy.errors import printable

MAX_LINE = 2000  # characters
PACKAGES = ("leuda_deploy", "leuda_train")


def log_to_stderr() -> None:
    """Show what both packages log, from INFO on."""
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
