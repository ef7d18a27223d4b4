"""Closed, full or narrow streams stop no work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.makers import MakeModel

from leuda_deploy.cli.log import plain


@pytest.mark.parametrize("how", ["2>&-", "2>/dev/full", ">&- 2>&-", "PYTHONIOENCODING=ascii"])
def test_the_work_is_done_whatever_becomes_of_what_is_said(
    tmp_path: Path, scan_file: Path, make_model: MakeModel, how: str
) -> None:
    if "full" in how and not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    model, out = make_model(tmp_path / "model", name="Δ ± ×"), tmp_path / "l.nii.gz"
    named = scan_file.rename(tmp_path / "Δ.nii.gz")
    redirect, environment = (how, {}) if "=" not in how else ("", dict([how.split("=")]))
    command = (
        f"exec {sys.executable} -m leuda_deploy infer {named} --model {model} -o {out} "
        f"--threads 1 --no-overlay {redirect}"
    )
    done = subprocess.run(
        ["sh", "-c", command],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    assert out.is_file()
    assert (tmp_path / "l.json").is_file()
    assert done.returncode == 0 or ">&- 2" in how


def test_letters_that_cannot_be_written_become_plain_ones() -> None:
    error = UnicodeEncodeError("ascii", "Δ = 3 ± 1 é 日", 0, 14, "no")
    assert plain(error) == ("d = 3 +- 1 e ?", 14)
