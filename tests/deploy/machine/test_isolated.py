"""A call in a process of its own: its result, its errors, and what happens when it dies."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support.makers import MakeVolume

import leuda_deploy
from leuda_deploy.errors import GridMismatchError
from leuda_deploy.machine.gpu import Gpu
from leuda_deploy.machine.isolated import IsolatedProcessError, run_isolated, safe_path
from leuda_deploy.scans.label_map import check_same_grid


def test_arguments_and_results_are_python_objects() -> None:
    assert run_isolated(60, os.getpid) != os.getpid()
    assert run_isolated(60, Gpu, name="a", capability="8.6") == Gpu(name="a", capability="8.6")
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(run_isolated(60, np.transpose, array), array.T)


def test_an_error_of_ours_comes_back_with_its_facts(make_volume: MakeVolume) -> None:
    one, other = (make_volume(np.zeros((2, 2, n), np.uint8)) for n in (3, 4))
    with pytest.raises(GridMismatchError) as caught:
        run_isolated(60, check_same_grid, one, other)
    assert caught.value.shapes == ((2, 2, 3), (2, 2, 4))
    assert str((2, 2, 4)) in str(caught.value)


def test_any_other_end_is_said() -> None:
    with pytest.raises(IsolatedProcessError) as raised:
        run_isolated(60, math.sqrt, -1.0)
    assert raised.value.exit_code == 1
    assert raised.value.last_line.startswith("ValueError")
    with pytest.raises(IsolatedProcessError) as killed:
        run_isolated(60, signal.raise_signal, signal.SIGKILL)
    assert killed.value.exit_code == -signal.SIGKILL
    with pytest.raises(IsolatedProcessError) as left:
        run_isolated(60, os._exit, 0)  # a good code, but no result
    assert left.value.exit_code == 0
    with pytest.raises(IsolatedProcessError) as late:
        run_isolated(0.2, time.sleep, 60)
    assert late.value.exit_code is None


def test_what_lies_in_the_current_folder_is_data(tmp_path: Path) -> None:
    """Neither a process of its own nor multiprocessing imports a module that lies there."""
    trap = "from pathlib import Path\nPath('sprung').touch()\n"
    for name in ("numpy", "multiprocessing", "pickle", "tempfile", "leuda_deploy"):
        (tmp_path / f"{name}.py").write_text(trap)
    script = tmp_path / "bin" / "leuda"  # as the installed command lies: not where one stands
    script.parent.mkdir()
    script.write_text(
        "import multiprocessing\n"
        "from leuda_deploy.machine.isolated import keep_children_safe, run_isolated\n"
        "from leuda_deploy.machine.memory import parse_bytes\n"
        "if __name__ == '__main__':\n"
        "    assert run_isolated(60, parse_bytes, '1K') == 1000\n"
        "    keep_children_safe()\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        assert pool.apply(parse_bytes, ('2K',)) == 2000\n"
    )
    root = str(Path(leuda_deploy.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root}
    environment.pop("PYTHONSAFEPATH", None)
    subprocess.run([sys.executable, script], cwd=tmp_path, env=environment, check=True, timeout=120)
    assert not (tmp_path / "sprung").exists()


def test_the_current_folder_is_left_out_of_the_search_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = str(Path(leuda_deploy.__file__).parents[1])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), "/elsewhere", home])
    assert safe_path() == ["/elsewhere", home]
    monkeypatch.chdir(home)  # as from a checkout
    monkeypatch.setattr(sys, "path", ["", "/elsewhere"])
    assert safe_path() == [home, "/elsewhere"]
