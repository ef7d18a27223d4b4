"""stage 2: aligned image sets -> student and two teachers, by the step in `step.py`."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from leuda_train.batches import AlignedSets, make_batch, step_generator
from leuda_train.config import ObjectiveConfig, ScheduleConfig, TrainConfig
from leuda_train.discriminators import FeatureDiscriminator
from leuda_train.ema import teacher_mode
from leuda_train.hardware import Hardware
from leuda_train.loop import Progress, Row, run_steps
from leuda_train.step import Lambdas, Networks, le_uda_step
from leuda_train.unet import UNet

LOG_EVERY = 10


@dataclass(frozen=True, kw_only=True)
class Adapted:
    """The trained networks, in evaluation mode, and the loss history."""

    networks: dict[str, nn.Module]
    history: list[Row]


def adapt(
    sets: AlignedSets,
    classes: int,
    config: TrainConfig,
    hardware: Hardware,
    folder: Path,
    progress: Progress,
) -> Adapted:
    """Train by the config's method; classes counts background. Resumes from folder."""
    trainer = _Trainer(sets, classes, config, hardware)
    schedule = config.schedule
    history = run_steps(
        trainer,
        name=config.method,
        steps=schedule.epochs * schedule.steps_per_epoch,
        folder=folder,
        log_every=LOG_EVERY,
        checkpoint_seconds=schedule.checkpoint_seconds,
        progress=progress,
    )
    networks = {
        name: getattr(trainer.nets, name).eval()
        for name, used in config.objective.networks_in_use.items()
        if used
    }
    return Adapted(networks=networks, history=history)


def ramp(epoch: int, objective: ObjectiveConfig) -> float:
    """0 in the warm-up, then exp(-5 (1 - epoch/ramp_epochs)²), 1 from ramp_epochs on."""
    if epoch < objective.warmup_epochs:
        return 0.0
    return math.exp(-5.0 * (1.0 - min(1.0, epoch / objective.ramp_epochs)) ** 2)


def lambdas(epoch: int, objective: ObjectiveConfig) -> Lambdas:
    """The weights of the terms of L in this epoch."""
    rise = ramp(epoch, objective)
    return Lambdas(
        intra=rise * objective.lambda_intra,
        inter=rise * objective.lambda_inter,
        adv_intra=rise * objective.lambda_adv_intra,
        adv_inter=rise * objective.lambda_adv_inter,
    )


def learning_rate(step: int, schedule: ScheduleConfig, warmup_epochs: int) -> float:
    """Linear over the warm-up epochs, then constant."""
    warmup = warmup_epochs * schedule.steps_per_epoch
    return schedule.learning_rate * min(1.0, (step + 1) / max(1, warmup))


class _Trainer:
    """One LE-UDA iteration at a time."""

    def __init__(
        self, sets: AlignedSets, classes: int, config: TrainConfig, hardware: Hardware
    ) -> None:
        self.sets, self.config, self.hardware = sets, config, hardware
        torch.manual_seed(config.seed)
        student = hardware.place(UNet(classes, config.unet.widths, config.unet.dropout))
        teachers = [copy.deepcopy(student).requires_grad_(False) for _ in range(2)]
        for teacher in teachers:
            teacher_mode(teacher, config.objective.teacher_batchnorm)
        levels = config.adversarial.levels
        widths = [config.unet.widths[level - 1] for level in levels]
        critics = [
            hardware.place(
                FeatureDiscriminator(widths, [-level for level in levels], config.adversarial.width)
            )
            for _ in range(2)
        ]
        self.nets = Networks(
            student=student,
            intra_teacher=teachers[0],
            inter_teacher=teachers[1],
            intra_critic=critics[0],
            inter_critic=critics[1],
            student_optimizer=torch.optim.Adam(
                student.parameters(), lr=config.schedule.learning_rate, fused=True
            ),
            critic_optimizer=torch.optim.Adam(
                [weight for critic in critics for weight in critic.parameters()],
                lr=config.adversarial.learning_rate,
                betas=(0.5, 0.999),
                fused=True,
            ),
            scaler=torch.amp.GradScaler(hardware.device.type, enabled=hardware.needs_scaler),
        )

    def step(self, step: int) -> dict[str, Tensor]:
        """Draw the batch of this step and train on it."""
        config, objective = self.config, self.config.objective
        epoch = step // config.schedule.steps_per_epoch
        rate = learning_rate(step, config.schedule, objective.warmup_epochs)
        self.nets.student_optimizer.param_groups[0]["lr"] = rate
        torch.manual_seed(step_generator(config.seed, "dropout", step).initial_seed())
        return le_uda_step(
            self.nets,
            make_batch(self.sets, config, self.hardware, step),
            lambdas(epoch, objective),
            objective,
            self.hardware,
            update=step,
            generator=step_generator(config.seed, "teacher noise", step),
        )

    def state(self) -> dict[str, Any]:
        """Every network, optimiser and the scaler."""
        return {name: part.state_dict() for name, part in vars(self.nets).items()}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        for name, part in vars(self.nets).items():
            part.load_state_dict(state[name])
