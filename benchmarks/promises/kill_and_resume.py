"""Kill `leuda train` with SIGKILL at ten random moments; it must end as if nothing had happened.

    python benchmarks/promises/kill_and_resume.py

Trains a small LE-UDA run on phantoms once undisturbed, then once more killed ten times and started
again each time. Compares the two products bit by bit, reads every file that was left behind, and
writes benchmarks/results/kill_and_resume.json. Exit code 1 if anything differs or is broken.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

CONFIG = """
[recipe]
window = [32, 32]
clip_percentiles = [0.5, 99.5]
normalisation = "minmax"
[translation]
width = 8
blocks = 2
discriminator_width = 8
discriminator_layers = 2
steps = 300
batch = 4
learning_rate = 1e-3
lambda_cycle = 10.0
lambda_identity = 0.1
pool = 20
[unet]
widths = [8, 16, 32]
dropout = [0.05, 0.1, 0.2]
[objective]
supervised_on = ["source", "source_cycled"]
lambda_intra = 1.0
lambda_inter = 0.1
lambda_adv_intra = 0.002
lambda_adv_inter = 0.002
warmup_epochs = 2
ramp_epochs = 20
ema_decay = 0.99
teacher_batchnorm = "own"
teacher_noise = 0.1
teacher_noise_limit = 0.2
[adversarial]
levels = [2, 1]
width = 8
learning_rate = 2e-4
[schedule]
epochs = 20
steps_per_epoch = 20
batch_labelled = 4
batch_unlabelled = 2
learning_rate = 0.003
checkpoint_seconds = 0.0
[augment]
scale = [0.9, 1.1]
rotation_degrees = 10.0
[test]
network = "intra_teacher"
feed = "target_as_source"
"""


def start(cohort: Path, config: Path, run: Path) -> subprocess.Popen[bytes]:
    """`leuda train` in a process of its own, with a cache of its own."""
    command = [sys.executable, "-m", "leuda_train", "train", str(cohort), "--out", str(run)]
    command += ["--config", str(config), "--cache", str(run.parent / f"{run.name}-cache")]
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, stdout=quiet, stderr=quiet, start_new_session=True)


def broken_files(folder: Path) -> list[str]:
    """Files under folder that cannot be read as what their name says."""
    broken = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        try:
            if path.name.endswith(".pt"):
                torch.load(path, weights_only=True)
            elif path.suffix == ".npy":
                np.load(path, mmap_mode="r")
            elif path.suffix == ".json":
                json.loads(path.read_text())
            elif path.name.endswith(".nii.gz"):
                np.asanyarray(nib.load(path).dataobj)
        except Exception as error:  # noqa: BLE001  (any failure to read is the finding)
            broken.append(f"{path.relative_to(folder)}: {error}")
    return broken


def same_product(a: Path, b: Path) -> bool:
    """Whether two runs made bit-equal weights."""
    first, second = (torch.load(run / "model.pt", weights_only=True) for run in (a, b))
    return all(
        torch.equal(first["weights"][name], value) for name, value in second["weights"].items()
    )


def main() -> int:
    """Run, kill, compare, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    results = Path(__file__).parents[1] / "results" / "kill_and_resume.json"
    parser.add_argument("--results", type=Path, default=results)
    options = parser.parse_args()
    moments = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "small.toml").write_text(CONFIG)
        subprocess.run(
            [sys.executable, "-m", "leuda_train", "phantom", str(folder / "cohort")], check=True
        )
        cohort, config = folder / "cohort" / "cohort.toml", folder / "small.toml"
        began = time.monotonic()
        if start(cohort, config, folder / "undisturbed").wait() != 0:
            raise SystemExit("the undisturbed run failed")
        alone = time.monotonic() - began

        killed_at = []
        for _ in range(options.kills):
            process = start(cohort, config, folder / "killed")
            seconds = moments.uniform(0.02, 0.25) * alone
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                killed_at.append(round(seconds, 2))
        finished = start(cohort, config, folder / "killed").wait() == 0
        report = {
            "kills": len(killed_at),
            "killed_after_s": killed_at,
            "undisturbed_s": round(alone, 1),
            "finished": finished,
            "same_weights": finished and same_product(folder / "undisturbed", folder / "killed"),
            "broken_files": broken_files(folder),
            "leftovers": [p.name for p in folder.rglob(".tmp-*")],
            "torch": torch.__version__,
        }
    options.results.parent.mkdir(parents=True, exist_ok=True)
    options.results.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))
    good = (
        report["same_weights"] and not report["broken_files"] and report["kills"] == options.kills
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
