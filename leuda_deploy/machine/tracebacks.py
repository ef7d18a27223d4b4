"""an error that nobody foresaw -> a file with its traceback, and one line for the user."""

from __future__ import annotations

import os
import tempfile
import time
import traceback
from pathlib import Path

from leuda_deploy.errors import one_line


def keep_traceback(error: BaseException) -> str:
    """Write the traceback to a file of the user's own; the line that says what and where.

    It goes into the folder for temporary files: a report of ours must not depend on a cache or a
    home folder that may be full or closed.
    """
    what = f"unexpected {type(error).__name__}: {one_line(error)}"
    try:
        handle, name = tempfile.mkstemp(prefix=time.strftime("leuda-%Y%m%d-%H%M%S-"), suffix=".log")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write("".join(traceback.format_exception(error)))
    except OSError:
        return what
    return f"{what} (traceback: {Path(name)})"
