"""records that the program logs -> one plain line each on stderr."""

from __future__ import annotations

import logging

PACKAGES = ("leuda_deploy", "leuda_train")


def log_to_stderr() -> None:
    """Show what both packages log, from INFO on, on the stderr of now."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Line())
    for package in PACKAGES:
        logger = logging.getLogger(package)
        logger.handlers = [handler]
        logger.setLevel(logging.INFO)


class _Line(logging.Formatter):
    """Information as it is; what is worse behind its level: "warning: ..."."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, even if the text has several."""
        line = " ".join(super().format(record).splitlines())
        return line if record.levelno <= logging.INFO else f"{record.levelname.lower()}: {line}"
