"""What a step takes, counted without values, is what is alive when it is computed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support import tiny

from leuda_train.config.schema import TrainConfig
from leuda_train.loop.hardware import Hardware
from leuda_train.loop.ranks import Ranks
from leuda_train.networks.product import DeployedNetwork
from leuda_train.networks.unet import UNet
from leuda_train.stages.adapt import Adaptation
from leuda_train.stages.distil import Distillation
from leuda_train.stages.memory import largest_epoch, need_of, stages_of
from leuda_train.stages.translate import STAGE, Translation
from leuda_train.stages.without_values import LiveBytes

CLASSES, SIZE = 3, 32
SELF_TRAINING = {"lambda_pseudo": 1.0, "pseudo_from": ["intra_teacher"], "copy_paste": 0.5}
# numbers that lie about (seeds, noise on its way) and copies that autocast keeps
TOLERANCE = {"fp32": 0.05, "bf16": 0.15}


def config(**sections: object) -> TrainConfig:
    return tiny.config(
        recipe={"window": [SIZE, SIZE]},
        unet={"widths": [8, 16], "dropout": [0.1, 0.1]},
        schedule={"shares_every": 2},
        distil={"width": 1.0, "share": 1.0, "learning_rate": 1e-3},
        **sections,
    )


def trainer_of(stage: str, config: TrainConfig, hardware: Hardware, recomputed: int):
    sets = tiny.aligned_sets(size=SIZE)
    if stage == STAGE:
        images = sets.images
        slices = replace(tiny.make_slices(), source=images["source"], target=images["target"])
        return Translation(slices, config.translation, hardware, 0, recomputed)
    if stage == "distillation":
        net = UNet(CLASSES, config.unet.widths, config.unet.dropout)
        teachers = {name: DeployedNetwork(net, None) for name in config.teachers}
        return Distillation(teachers, sets, config, hardware, recomputed)
    return Adaptation(sets, config, hardware, tiny.generator(), recomputed=recomputed)


def alive(stage: str, config: TrainConfig, hardware: Hardware, recomputed: int) -> int:
    """The peak of the second step, of tensors with values."""
    with LiveBytes() as live:
        trainer = trainer_of(stage, config, hardware, recomputed)
        trainer.step(0)
        live.forget_peak()
        trainer.step(1)
    return live.peak


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("recomputed", [0, 1])
@pytest.mark.parametrize("stage", [STAGE, "le-uda", "distillation"])
def test_the_count(stage: str, recomputed: int, precision: str) -> None:
    hardware = replace(tiny.CPU, precision=precision)
    need = need_of(stage, config(), CLASSES, hardware, recomputed)
    found = alive(stage, config(), hardware, recomputed)
    assert need.peak - need.reserve == pytest.approx(found, rel=TOLERANCE[precision])


def test_the_count_of_self_training() -> None:
    self_trained = config(objective={**tiny.NO_TERMS, **SELF_TRAINING})
    need = need_of("le-uda", self_trained, CLASSES, tiny.CPU)
    found = alive("le-uda", self_trained, tiny.CPU, 0)
    assert need.peak - need.reserve == pytest.approx(found, rel=TOLERANCE["fp32"])


def test_its_parts() -> None:
    asked = config()
    assert stages_of(asked) == {STAGE: 1, "le-uda": 2, "distillation": 2}
    need = need_of("le-uda", asked, CLASSES, tiny.CPU)
    net = UNet(CLASSES, asked.unet.widths, asked.unet.dropout)
    weights = sum(t.nbytes for t in net.parameters())
    assert need.networks == weights + sum(t.nbytes for t in net.buffers())
    assert need.teachers == 2 * need.networks
    # a gradient and two moments, and a count of steps, of what is trained
    assert need.optimizer == pytest.approx(3 * (weights + need.discriminators), rel=0.05)


def test_computed_again_it_is_less_and_so_it_is_shared_by_processes() -> None:
    every = [need_of("le-uda", config(), CLASSES, tiny.CPU, levels) for levels in range(3)]
    assert every[0].activations > every[1].activations > every[2].activations
    two = replace(tiny.CPU, ranks=Ranks(0, 2))
    shared = need_of("le-uda", config(), CLASSES, two)
    assert shared.activations == pytest.approx(every[0].activations / 2, rel=0.1)
    assert shared.networks == every[0].networks


def test_the_largest_step_is_one_at_full_resolution_that_reads_most() -> None:
    coarse = {"coarse_window": [8, 8], "coarse_share": 0.5}
    plain = tiny.config(schedule=coarse)
    assert plain.window_at(largest_epoch(plain) * 3) == (16, 16)
    later = tiny.config(objective={**SELF_TRAINING, "pseudo_from_epoch": 2, "copy_paste": 0.0})
    assert largest_epoch(later) >= 2
