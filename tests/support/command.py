"""the `leuda` command in a process of its own -> what it said and how it ended."""

from __future__ import annotations

import os
import subprocess
import sys


def leuda(
    *arguments: object, prelude: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    argv = ["leuda", *map(str, arguments)]
    code = f"{prelude}\nimport sys\nfrom leuda_train.cli import main\nsys.argv = {argv!r}\nmain()"
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "COLUMNS": "200", **environment},
    )
