"""config -> the networks and optimisers of stage 2, untrained."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from leuda_train.config.schema import TrainConfig
from leuda_train.export.first_model import FirstModel
from leuda_train.loop.hardware import Hardware, compile_networks
from leuda_train.networks.batchnorm import with_joint_batchnorm
from leuda_train.networks.discriminators import FeatureDiscriminator
from leuda_train.networks.unet import UNet
from leuda_train.objective.class_prior import ClassPrior
from leuda_train.objective.ema import teacher_mode
from leuda_train.objective.step import Networks


def build_networks(
    config: TrainConfig,
    classes: int,
    class_shares: Tensor,
    hardware: Hardware,
    first: FirstModel | None = None,
    recomputed: int = 0,
) -> Networks:
    """Student, its two teachers, two discriminators; initial weights by torch's own generator.

    Args:
        config: Their widths, and the rates of the optimisers.
        classes: K, background included.
        class_shares: (K,) of the labelled pixels.
        hardware: Where they go.
        first: What a source-free run goes on from.
        recomputed: Levels of the student that keep no activations; see networks/recompute.py.
    """
    unet = UNet(classes, config.unet.widths, config.unet.dropout)
    unet.recomputed = recomputed
    student: nn.Module = unet
    if first is not None:
        student.load_state_dict(first.network.state_dict())
    if hardware.ranks.size > 1 or config.objective.batchnorm_over == "stream":
        student = with_joint_batchnorm(student, hardware.ranks)
    student = hardware.place(student)
    teachers = [copy.deepcopy(student).requires_grad_(False) for _ in range(2)]
    for teacher in teachers:
        teacher_mode(teacher, config.objective.teacher_batchnorm)
    if config.compile:
        compile_networks([student, *teachers])
    levels = config.adversarial.levels
    widths = [config.unet.widths[level - 1] for level in levels]
    discriminators = [
        hardware.place(
            FeatureDiscriminator(widths, [-level for level in levels], config.adversarial.width)
        )
        for _ in range(2)
    ]
    return Networks(
        student=student,
        intra_teacher=teachers[0],
        inter_teacher=teachers[1],
        intra_discriminator=discriminators[0],
        inter_discriminator=discriminators[1],
        class_prior=ClassPrior(class_shares, config.objective.pseudo_prior).to(hardware.device),
        student_optimizer=hardware.adam(student.parameters(), config.schedule.learning_rate),
        discriminator_optimizer=hardware.adam(
            nn.ModuleList(discriminators).parameters(),
            config.adversarial.learning_rate,
            betas=(0.5, 0.999),
        ),
        scaler=torch.amp.GradScaler(hardware.device.type, enabled=hardware.needs_scaler),
    )
