"""this project and its extras -> a folder of wheels with hashes, for a machine without internet.

    python tools/wheelhouse.py FOLDER [--extras dicom,openvino] [--platform PLATFORM --python 3.12]

The folder then holds leuda, all it needs, and a requirements.txt with the SHA-256 of each wheel.
With --platform (as pip names it, e.g. manylinux_2_28_aarch64) it is for another machine than this.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")
REQUIREMENTS = "requirements.txt"


def main() -> None:
    """Fill the folder and say how to install from it."""
    parser = argparse.ArgumentParser(description="A folder of wheels with hashes.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--extras", default="", help="of pyproject.toml, with commas")
    parser.add_argument("--platform", help="of another machine, e.g. manylinux_2_28_aarch64")
    parser.add_argument("--python", help="its version, e.g. 3.12")
    asked = parser.parse_args()
    folder: Path = asked.folder
    if folder.exists() and any(folder.iterdir()):
        sys.exit(f"error: {folder} is not empty; name another folder")
    gather(folder, asked.extras, asked.platform, asked.python)
    (folder / REQUIREMENTS).write_text(requirements(folder, asked.extras))
    sys.stdout.write(f"There, without internet:\n  {install_line(folder)}\n")


def gather(folder: Path, extras: str, platform: str | None, python: str | None) -> None:
    """Build the wheel of this project, and download those of all that it needs."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run([*PIP, "wheel", "--no-deps", "-w", str(folder), str(ROOT)], check=True)
    (own,) = folder.glob("leuda-*.whl")
    machine = ["--platform", platform] if platform else []
    machine += ["--python-version", python] if python else []
    wanted = f"{own}[{extras}]" if extras else str(own)
    constraints = ROOT / "constraints.txt"
    command = [*PIP, "download", "--only-binary", ":all:", "-d", str(folder)]
    subprocess.run([*command, "-c", str(constraints), *machine, wanted], check=True)


def requirements(folder: Path, extras: str) -> str:
    """A line for each wheel: name, version, hash."""
    lines = []
    for wheel in sorted(folder.glob("*.whl")):
        name, version = wheel.name.split("-")[:2]
        with wheel.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        chosen = f"[{extras}]" if name == "leuda" and extras else ""
        lines.append(f"{name}{chosen}=={version} --hash=sha256:{digest}\n")
    return "".join(lines)


def install_line(folder: Path) -> str:
    """The command that installs from the folder, and from nowhere else."""
    return (
        f"pip install --no-index --find-links {folder} --require-hashes -r {folder / REQUIREMENTS}"
    )


if __name__ == "__main__":
    main()
