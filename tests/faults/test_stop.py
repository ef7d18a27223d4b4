"""Commands that are asked to stop leave nothing, and end as their signal says.

`python -m faults.stop` does it to every command, at more moments, and measures the time.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from faults.commands import Command
from faults.stop import stopped
from support.makers import MakeModel

# a process that loads Python yet is ended by the signal itself
ENDS = {signal.SIGINT: (-2, 130), signal.SIGTERM: (-15, 143)}


@pytest.mark.parametrize("number", ENDS)
def test_a_command_that_is_stopped(
    make_model: MakeModel, tmp_path: Path, number: signal.Signals
) -> None:
    model = make_model(tmp_path)
    bench = Command(
        lambda out: ["bench", "--model", model, "--shape", "64x64x20", "--save", out / "b.json"]
    )
    stop = stopped(bench, 3.0, number)
    assert stop is not None
    assert stop["findings"] == []
    assert stop["status"] in ENDS[number]


def test_ctrl_c_while_python_loads_leuda_shows_no_traceback() -> None:
    """Within an import of the command, before anything of leuda handles signals."""
    code = (
        "import os, runpy, signal, sys\n"
        "def interrupt(event, arguments):\n"
        "    if event == 'import' and arguments[0] == 'typer':\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.addaudithook(interrupt)\n"
        "sys.argv = ['leuda', '--help']\n"
        "runpy.run_module('leuda_train', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")
