"""The launcher of --gpus ends, with its processes, when it is told to, or killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from faults.stop import family, running

# as `leuda train --gpus 2` runs, of a command that goes on until it is stopped
LAUNCH = """
import sys
import torch
torch.cuda.device_count = lambda: 2
from leuda_deploy.cli.app import run
from leuda_train.loop.launch import launch
run(lambda: sys.exit(launch(2, ["view", sys.argv[1], "--no-browser"])))
"""


BY_HAND = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def launched(folder: Path, *, by_hand: bool = False) -> tuple[subprocess.Popen[bytes], Path]:
    """The launcher at work, ours or torchrun itself, and the file with what it says."""
    scan, said = folder / "a.nii", folder / "said"
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4)), scan)
    command = ("-c", LAUNCH, scan)
    if by_hand:
        command = (*BY_HAND, "-m", "leuda_train", "view", scan, "--no-browser")
    with said.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, *command],
            stdout=file,
            stderr=file,
            env={**os.environ, "TMPDIR": str(folder), "OMP_NUM_THREADS": "1"},
        )
    return process, said


def workers(launcher: int) -> set[int]:
    """Those of its processes that run the command."""
    found = set()
    for pid in family(launcher) - {launcher}:
        with suppress(OSError):
            if b"-m\0leuda_train\0" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.add(pid)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_launcher_takes_its_processes_with_it(tmp_path: Path, number: int) -> None:
    process, said = launched(tmp_path)
    try:
        while len(re.findall("http://", said.read_text())) < 2:
            assert process.poll() is None, said.read_text()
        every = family(process.pid)
        assert len(every) >= 3
        process.send_signal(number)
        assert process.wait(timeout=60) == 128 + number
    finally:
        process.kill()
    assert not every & running()
    assert "unexpected" not in said.read_text()
    assert "Traceback" not in said.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("wait_s", [0.0, 0.5])
@pytest.mark.parametrize("by_hand", [False, True], ids=["--gpus", "torchrun"])
def test_a_launcher_that_is_killed_leaves_no_process_that_still_starts(
    tmp_path: Path, wait_s: float, by_hand: bool
) -> None:
    """0.0: as soon as a process is there; 0.5: while it imports what it needs."""
    process, _ = launched(tmp_path, by_hand=by_hand)
    try:
        while not workers(process.pid):
            assert process.poll() is None
        time.sleep(wait_s)
        every = workers(process.pid)
        assert every
    finally:
        process.kill()
        process.wait()
    end = time.monotonic() + 2
    while every & running() and time.monotonic() < end:
        time.sleep(0.01)
    left = every & running()
    for each in left:
        os.kill(each, signal.SIGKILL)
    assert not left
