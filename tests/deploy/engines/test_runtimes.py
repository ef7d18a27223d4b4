"""No engine calls home: nothing is looked up, and nothing is kept in the user's home."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

OPENED = """
import sys
import numpy as np
from leuda_deploy.engines.open_engine import open_engine
from leuda_deploy.model.export_folder import default_model
from leuda_deploy.model.model_file import ModelFile

model = ModelFile.open(default_model())
scores = open_engine(model, sys.argv[1])(np.zeros((1, 1, *model.card.window), np.float32))
print(scores.shape[1])
"""


@pytest.mark.parametrize("engine", ["ort-cpu", "openvino"])
def test_an_engine_calls_nobody(tmp_path: Path, engine: str) -> None:
    if engine == "openvino" and find_spec("openvino") is None:
        pytest.skip("OpenVINO is not installed")
    home = tmp_path / "home"
    home.mkdir()
    command = [sys.executable, "-c", OPENED, engine]
    traced = shutil.which("strace")
    if traced is not None:  # without it, only what is kept in the home shows that it ran
        # a socket that is opened and asks nobody, to see if there is IPv6, is no call
        calls = ["-e", "trace=connect,sendto,sendmsg,sendmmsg"]
        command = [traced, "-f", "-qq", *calls, "-o", str(tmp_path / "calls"), *command]
    unset = ("CI", "ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")  # OpenVINO's is silent in CI
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    done = subprocess.run(
        command,
        env=environment | {"HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 1
    assert list(home.iterdir()) == []
    if traced is not None:
        assert "AF_INET" not in (tmp_path / "calls").read_text()


def test_a_users_own_telemetry_module_is_left_alone() -> None:
    if find_spec("openvino") is None:
        pytest.skip("OpenVINO is not installed")
    code = (
        "import sys, types\n"
        "own = sys.modules['openvino_telemetry'] = types.ModuleType('openvino_telemetry')\n"
        "from leuda_deploy.engines.runtimes import import_openvino\n"
        "assert import_openvino().__name__ == 'openvino'\n"
        "assert sys.modules['openvino_telemetry'] is own\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
