"""A copy of the source with one forbidden import -> `lint-imports` names the contract it breaks."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

VIOLATIONS = {  # what is wrong -> (contract, lines to append to each file, module it must name)
    "leuda_deploy imports upwards": (
        "deploy-layers",
        {"leuda_deploy/scans/volume.py": "import leuda_deploy.jobs.overlay"},
        "leuda_deploy.jobs.overlay",
    ),
    "leuda_train imports upwards": (
        "train-layers",
        {"leuda_train/networks/unet.py": "def late():\n    import leuda_train.stages.adapt"},
        "leuda_train.stages.adapt",
    ),
    "a folder has no place": (
        "deploy-layers",
        {"leuda_deploy/attic/__init__.py": ""},
        "leuda_deploy.attic",
    ),
    "a circle": (
        "no-circles",
        {
            "leuda_deploy/machine/files.py": "import leuda_deploy.machine.memory",
            "leuda_deploy/machine/memory.py": "import leuda_deploy.machine.files",
        },
        "leuda_deploy.machine",
    ),
    "torch in leuda_deploy": (
        "deploy-without-torch",
        {"leuda_deploy/scans/recipe.py": "def late():\n    import torch"},
        "leuda_deploy.scans.recipe",
    ),
    "leuda_train in leuda_deploy": (
        "deploy-without-torch",
        {"leuda_deploy/cli/infer.py": "def late():\n    from leuda_train.runs import run"},
        "leuda_train.runs.run",
    ),
}


def _lint(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Check the packages of a folder."""
    linter = Path(sys.executable).with_name("lint-imports")
    command = [linter, "--no-logo", "--no-cache", *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two packages and their contracts, which hold."""
    folder = tmp_path_factory.mktemp("source")
    for package in ("leuda_deploy", "leuda_train"):
        for file in (ROOT / package).rglob("*.py"):
            copy = folder / file.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
    shutil.copy(ROOT / "pyproject.toml", folder)
    kept = _lint(folder)
    assert kept.returncode == 0, kept.stdout + kept.stderr
    return folder


@pytest.mark.parametrize("wrong", VIOLATIONS)
def test_a_planted_violation_breaks_its_contract(wrong: str, source: Path, tmp_path: Path) -> None:
    contract, lines_by_file, named = VIOLATIONS[wrong]
    folder = shutil.copytree(source, tmp_path / "source")
    for name, lines in lines_by_file.items():
        file = folder / name
        file.parent.mkdir(exist_ok=True)
        with file.open("a") as text:
            text.write(f"\n{lines}\n")
    broken = _lint(folder, "--contract", contract)
    assert broken.returncode == 1
    assert named in broken.stdout + broken.stderr
