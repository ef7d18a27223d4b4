"""the Dockerfile -> its steps done in a folder, where there is no docker.

    python tools/container.py FOLDER [--extras dicom,openvino] [--user 10001]

What it copies lies in FOLDER/src, what it installs in FOLDER/opt/leuda, /tmp is FOLDER/tmp. Its RUN
lines run as they are written but for these paths; the environment holds no other Python's paths.
Then the entry point labels a made scan: without a network, if `unshare` may be used here, and as
another user, if one is named. Not done: the base image, for which `python` of the PATH stands,
useradd, layers.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np

ROOT = Path(__file__).parents[1]
PLACES = ("/opt/leuda", "/src", "/tmp")  # of the image, which lie in the folder here
NOT_DONE = ("FROM", "USER", "CMD")
KEPT = ("PATH", "LANG", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")  # besides PIP_*, of our environment


@dataclass
class Image:
    """A folder in which the steps were done.

    Attributes:
        folder: Holds what the image's places hold.
        environment: What ENV says, and what a process needs besides.
        entry: The words of ENTRYPOINT.
    """

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    entry: list[str] = field(default_factory=list)

    def inside(self, text: str) -> str:
        """The same with the image's places in the folder."""
        places = "|".join(PLACES)
        return re.sub(rf"(?<![\w./])({places})\b", lambda found: f"{self.folder}{found[0]}", text)

    def run(self, *arguments: str, user: int | None = None) -> subprocess.CompletedProcess[str]:
        """The entry point, as `docker run --network=none IMAGE arguments` has it."""
        cut = ["unshare", "--net"]
        probe = subprocess.run([*cut, "true"], capture_output=True, check=False)
        alone = cut if probe.returncode == 0 else []
        other = ["setpriv", f"--reuid={user}", "--clear-groups"] if user else []
        return subprocess.run(
            [*alone, *other, *self.entry, *arguments],
            cwd=self.folder / "tmp",
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )


def steps(text: str) -> list[tuple[str, str]]:
    """Instructions of a Dockerfile, each with its words; lines that go on are joined."""
    lines = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    return [(name, words) for name, _, words in (line.partition(" ") for line in lines) if name]


def build(folder: Path, extras: str | None = None, **environment: str) -> Image:
    """Do the steps. environment: more of it for RUN, e.g. PIP_NO_DEPS="1"."""
    own = {key: value for key, value in os.environ.items() if key in KEPT or key[:4] == "PIP_"}
    image = Image(folder.resolve(), own)
    said: dict[str, str] = {}
    where = image.folder
    (image.folder / "tmp").mkdir(parents=True)
    for name, words in steps((ROOT / "Dockerfile").read_text()):
        match name:
            case "WORKDIR":
                where = Path(image.inside(words))
                where.mkdir(parents=True, exist_ok=True)
            case "ARG":
                key, _, value = words.partition("=")
                said[key] = extras if extras is not None and key == "EXTRAS" else value
            case "COPY" if not words.startswith("--from"):
                *sources, to = words.split()
                for source in sources:
                    _copy(ROOT / source, where / to / (source if to == "./" else ""))
            case "COPY":  # from the stage before: it lies there already
                assert words.split()[1] == words.split()[2]
            case "ENV":
                for key, value in re.findall(r"(\w+)=(\S+)", image.inside(words)):
                    before = image.environment.get(key, "")
                    image.environment[key] = value.replace(f"${key}", before)
            case "RUN" if words.startswith("useradd"):
                pass
            case "RUN":
                more = {**own, **said, **environment}
                subprocess.run(["sh", "-ec", image.inside(words)], cwd=where, env=more, check=True)
            case "ENTRYPOINT":
                image.entry = json.loads(words)
            case _ if name not in NOT_DONE:
                raise SystemExit(f"error: the Dockerfile has {name}, which is not done here")
    return image


def _copy(source: Path, to: Path) -> None:
    """As docker does: links stay links."""
    if source.is_dir():
        shutil.copytree(source, to, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, to)


def main() -> None:
    """Build, label a made scan, and say what came of it."""
    parser = argparse.ArgumentParser(description="The Dockerfile's steps, without docker.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--extras", help="as --build-arg EXTRAS=")
    parser.add_argument("--user", type=int, help="who runs it, e.g. 10001; needs root")
    asked = parser.parse_args()
    folder: Path = asked.folder
    if folder.exists() and any(folder.iterdir()):
        sys.exit(f"error: {folder} is not empty; name another folder")
    image = build(folder, asked.extras)
    scans, out = folder / "in", folder / "out"
    for place in (scans, out, folder / "tmp"):
        place.mkdir(exist_ok=True)
        if asked.user:
            os.chown(place, 0 if place == scans else asked.user, -1)
    noise = np.random.default_rng(0).normal(100, 50, (64, 64, 8)).astype(np.int16)
    nib.save(nib.Nifti1Image(noise, np.diag([1.5, 1.5, 3.0, 1.0])), scans / "scan.nii.gz")
    done = image.run("infer", str(scans.resolve()), "-o", str(out.resolve()), user=asked.user)
    sys.stdout.write(f"{done.stdout}{done.stderr}")
    size = sum(path.lstat().st_size for path in (folder / "opt").rglob("*"))
    sys.stdout.write(f"{size / 1e6:.0f} MB installed; leuda infer ended with {done.returncode}\n")
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
