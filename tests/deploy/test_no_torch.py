"""The deployment half runs where torch is not installed, and never touches the training half."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from support.makers import MakeModel

PROGRAM = """
import sys
for name in ("torch", "onnxscript", "matplotlib", "tomli_w"):
    sys.modules[name] = None  # as if it were not installed: importing it raises ImportError
import importlib, pkgutil
from pathlib import Path
import leuda_deploy

names = {part.name for part in pkgutil.walk_packages(leuda_deploy.__path__, "leuda_deploy.")}
quarantined, starts = "leuda_deploy.export.to_onnx", "leuda_deploy.__main__"
assert {"leuda_deploy.scans.volume", "leuda_deploy.inference.segmenter", quarantined} <= names
for name in sorted(names - {quarantined, starts}):
    importlib.import_module(name)
assert "leuda_train" not in sys.modules

from leuda_deploy.inference.segmenter import Segmenter
from leuda_deploy.jobs.find_jobs import Job
from leuda_deploy.jobs.run_jobs import run_job
model, scan, labels = map(Path, sys.argv[1:])
run_job(Job(scan=scan, output=labels), Segmenter(model))
assert labels.is_file()
assert "leuda_train" not in sys.modules
try:
    import leuda_deploy.export.to_onnx
except ImportError:
    print("done")  # the one module that needs torch: the blockade above works
"""


def test_every_deploy_module_imports_and_infers_without_torch(
    tmp_path: Path, scan_file: Path, make_model: MakeModel
) -> None:
    model = make_model(tmp_path / "model")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, model, scan_file, tmp_path / "labels.nii.gz"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done\n"
