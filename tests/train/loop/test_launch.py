"""The launcher of --gpus ends, with its processes, when it is told to."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
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


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_launcher_takes_its_processes_with_it(tmp_path: Path, number: int) -> None:
    scan = tmp_path / "a.nii"
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4)), scan)
    said = tmp_path / "said"
    with said.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, scan],
            stdout=file,
            stderr=file,
            env={**os.environ, "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"},
        )
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
