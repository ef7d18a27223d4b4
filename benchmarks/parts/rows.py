"""measurements, one by one -> a file that holds each as soon as it is known, and what failed."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from leuda_deploy.errors import one_line
from leuda_deploy.machine.files import write_json
from leuda_deploy.machine.outside import read_json

Row = dict[str, Any]


class AbsentError(Exception):
    """What a row is about is not here; the message says what would bring it."""


class Rows:
    """The rows of a part by name; those of an earlier process that were measured are kept."""

    def __init__(self, path: Path) -> None:
        self.path = path
        rows: dict[str, Row] = read_json(path)["rows"] if path.is_file() else {}
        self.rows = {name: row for name, row in rows.items() if measured(row)}

    def measure(self, name: str, function: Callable[..., Row], *args: Any, **about: Any) -> None:
        """Write what the function finds, with what it is about; a failure is written, too."""
        if name in self.rows:
            return
        try:
            row = function(*args)
        except AbsentError as error:
            row = {"absent": str(error)}
        except Exception as error:  # noqa: BLE001  (whatever it is: the next row is tried)
            traceback.print_exc()  # into the part's log
            row = {"failed": f"{type(error).__name__}: {one_line(error)}"}
        self.rows[name] = about | row
        self.write()

    def write(self) -> None:
        """What is known so far."""
        write_json(self.path, {"rows": self.rows})


def measured(row: Row) -> bool:
    """Whether it holds figures."""
    return "failed" not in row and "absent" not in row


def what_is_missing(rows: dict[str, Row]) -> str | None:
    """Why rows have no figures, in one line; None if all have."""
    reasons = [row.get("failed") or row["absent"] for row in rows.values() if not measured(row)]
    if not reasons:
        return None
    return f"{len(reasons)} of {len(rows)} without figures: {'; '.join(dict.fromkeys(reasons))}"
