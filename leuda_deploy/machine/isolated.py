"""a function and its arguments -> its result, worked out in a process of its own.

What runs there leaves no memory behind, and a driver that crashes takes nothing with it. The child
is a fresh interpreter and not a fork (threads of an engine do not survive one), nor
multiprocessing's spawn (which runs the user's main script again).

    parent  writes call.pickle    function, arguments
    child   writes result.pickle  ("result", value) or ("error", LeudaError)
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import ParamSpec, TypeVar

from leuda_deploy.errors import LeudaError
from leuda_deploy.machine.stop import end_with_parent, unfinished

CALL_FILE, RESULT_FILE = "call.pickle", "result.pickle"
MAX_LINE = 200
P = ParamSpec("P")
T = TypeVar("T")


class IsolatedProcessError(LeudaError):
    """The process ended without a result.

    exit_code  negative: the number of the signal that killed it; None: it took longer than allowed
    last_line  the last that it wrote on stderr; may be empty
    """

    def __init__(self, exit_code: int | None, last_line: str, timeout_s: float | None) -> None:
        if exit_code is None:
            what = f"took longer than {timeout_s:g} s"
        else:
            what = f"ended with code {exit_code}: {last_line or 'no message'}"
        super().__init__(what)
        self.exit_code, self.last_line = exit_code, last_line


def run_isolated(
    timeout_s: float | None, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """Call a function in a process of its own.

    Args:
        timeout_s: How long it may take; None for as long as it likes.
        function: A function of a module (pickle finds it by name), not of the main script.
        args: Its arguments, which are pickled, too.
        kwargs: Its keyword arguments.

    Raises:
        LeudaError: Whatever error of this tree the function raises.
        IsolatedProcessError: The process crashed, was killed, raised anything else, or took longer
            than `timeout_s`.
    """
    with tempfile.TemporaryDirectory(prefix="leuda-") as name, unfinished(Path(name)):
        folder = Path(name)
        with (folder / CALL_FILE).open("wb") as file:
            pickle.dump((function, args, kwargs), file, protocol=pickle.HIGHEST_PROTOCOL)
        command = [sys.executable, "-P", "-m", "leuda_deploy.machine.isolated", name]
        # where this process finds its modules, the child finds them
        search = {**os.environ, "PYTHONPATH": os.pathsep.join(safe_path())}
        search["TMPDIR"] = name  # what it leaves there goes with the folder
        try:
            done = subprocess.run(
                command, env=search, capture_output=True, timeout=timeout_s, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise IsolatedProcessError(None, "", timeout_s) from error
        if done.returncode != 0 or not (folder / RESULT_FILE).is_file():
            lines = done.stderr.decode(errors="replace").strip().splitlines()
            last_line = lines[-1][:MAX_LINE] if lines else ""
            raise IsolatedProcessError(done.returncode, last_line, timeout_s)
        kind, value = pickle.loads((folder / RESULT_FILE).read_bytes())
    if kind == "error":
        raise value
    result: T = value
    return result


def safe_path() -> list[str]:
    """Where Python looks for modules, without the current folder: what lies there is data.

    The folder that leuda itself lies in stays, also if it is the current one.
    """
    home = str(Path(__file__).resolve().parents[2])
    here = {"", "."}
    with suppress(OSError):  # the current folder was removed
        here.add(str(Path.cwd()))
    kept = [folder for folder in sys.path if folder == home or folder not in here]
    # it was found through the current folder
    return kept if home in kept or home not in here else [home, *kept]


def keep_children_safe() -> None:
    """Python processes that are started from now on do not look for modules in their folder.

    multiprocessing puts it first in the search path: a file `numpy.py` beside the scans would run.
    """
    os.environ["PYTHONSAFEPATH"] = "1"


def _answer(folder: Path) -> None:
    """In the child: make the call, write its result or its LeudaError."""
    end_with_parent()
    with (folder / CALL_FILE).open("rb") as file:
        function, args, kwargs = pickle.load(file)
    try:
        answer = ("result", function(*args, **kwargs))
    except LeudaError as error:
        answer = ("error", error)
    (folder / RESULT_FILE).write_bytes(pickle.dumps(answer))


if __name__ == "__main__":
    _answer(Path(sys.argv[1]))
