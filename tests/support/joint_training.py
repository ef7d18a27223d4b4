"""What test_ranks.py runs in processes of their own: torchrun ... joint_training.py STAGE OUT.

Trains a stage for a number of steps on this process's share, and leaves what it ended with.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch
from support import tiny

from leuda_train.loop.loop import run_steps
from leuda_train.loop.ranks import Ranks, process_group
from leuda_train.networks.product import DeployedNetwork
from leuda_train.networks.unet import UNet
from leuda_train.stages import adapt, distil, translate

NO_DROPOUT = {"unet": {"widths": [4, 8], "dropout": [0.0, 0.0]}}
# slow enough that rounding, which differs with the order of sums, does not grow
SLOW = {"schedule": {"learning_rate": 3e-4, "batch_unlabelled": 4, "checkpoint_seconds": 60.0}}
SELF_TRAINING = {
    "lambda_pseudo": 1.0,
    "pseudo_from": ["intra_teacher", "inter_teacher"],
    "pseudo_confidence": 0.4,
}
STYLE = {"curve": 0.5, "convolution": 0.5, "noise": 0.2}


def trainer_of(stage: str, ranks: Ranks):
    """The trainer of a stage for one process of several."""
    hardware = replace(tiny.CPU, ranks=ranks)
    sets = tiny.aligned_sets()
    if stage == "translation":
        config = tiny.config().translation
        return translate.Translation(tiny.make_slices(), config, hardware, seed=0)
    if stage == "distillation":
        config = tiny.config(
            **NO_DROPOUT, **SLOW, distil={"width": 1.0, "share": 5 / 3, "learning_rate": 3e-4}
        )
        torch.manual_seed(3)
        teachers = {name: DeployedNetwork(UNet(3, (4, 8), (0.0, 0.0)), None) for name in ("a", "b")}
        return distil.Distillation(teachers, sets, config, hardware)
    more: dict[str, dict] = {"objective": {}, "style": {}}
    if stage == "self-training":
        more = {"objective": SELF_TRAINING, "style": STYLE}
    if stage == "by stream":
        more["objective"] = {"batchnorm_over": "stream"}
    config = tiny.config(**NO_DROPOUT, **SLOW, **more)
    return adapt.Adaptation(sets, config, hardware, tiny.generator())


def end(stage: str, steps: int, folder: Path, ranks: Ranks) -> tuple[dict, list]:
    """State and history after so many steps, resumed from folder if there is anything."""
    trainer = trainer_of(stage, ranks)
    run = tiny.stage_run(folder, seconds=0.0, hardware=replace(tiny.CPU, ranks=ranks))
    history = run_steps(trainer, run, name=stage, steps=steps, log_every=1)
    return trainer.state(), history


if __name__ == "__main__":
    out = Path(sys.argv[1])
    with process_group("cpu") as ranks:
        if sys.argv[2:] == ["the first fails"]:
            if ranks.first:
                sys.exit("as the test wants it")
            ranks.broadcast()  # which never comes
        for job in sys.argv[2:]:
            stage, steps = job.split(":")
            found = end(stage, int(steps), out / "checkpoints" / stage, ranks)
            torch.save(found, out / f"{stage}-{ranks.rank}.pt")
