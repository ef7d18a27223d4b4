"""arguments of the `leuda` command -> exit code, stdout and stderr, as a user sees them.

`leuda` runs it in a process of its own: slow to start, and needed where the process matters
(imports, signals, an interpreter without a package). `leuda_here` runs it in this one, where a test
may replace a part of it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import IO
from unittest import mock

Done = subprocess.CompletedProcess[str]


def leuda(*arguments: object, prelude: str = "", **environment: str) -> Done:
    """The command in a process of its own, after the Python code of `prelude`."""
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


def leuda_here(*arguments: object) -> Done:
    """The command in this process."""
    from leuda_train.cli import main

    argv = ["leuda", *map(str, arguments)]
    code: object = 0
    with (
        mock.patch.object(sys, "argv", argv),
        mock.patch.dict(os.environ, COLUMNS="200"),
        _written_to(1) as out,
        _written_to(2) as err,
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as stopped:
            code = stopped.code
        out.flush()
        err.flush()
        out.seek(0)
        err.seek(0)
        status = code if isinstance(code, int) else int(code is not None)
        return Done(argv, status, out.read(), err.read())


@contextmanager
def _written_to(descriptor: int) -> Iterator[IO[str]]:
    """A file that gets what is written to a descriptor, by libraries in C and by children, too."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as file:
        before = os.dup(descriptor)
        os.dup2(file.fileno(), descriptor)
        try:
            yield file
        finally:
            os.dup2(before, descriptor)
            os.close(before)
