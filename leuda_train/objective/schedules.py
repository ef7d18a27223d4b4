"""epoch or step -> how much each term of L weighs, and the learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass

from leuda_train.config.objective import ObjectiveConfig
from leuda_train.config.schedule import ScheduleConfig


@dataclass(frozen=True, kw_only=True)
class Lambdas:
    """The weights of the terms of L in one epoch, ramp included."""

    intra: float
    inter: float
    adv_intra: float
    adv_inter: float
    pseudo: float = 0.0


def ramp(epoch: int, objective: ObjectiveConfig) -> float:
    """0 in the warm-up, then exp(-5 (1 - epoch/ramp_epochs)²), 1 from ramp_epochs on.

    Without L_seg there is nothing that has to be learnt before: 1.
    """
    if not objective.supervised_on:
        return 1.0
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
        pseudo=rise * objective.lambda_pseudo,
    )


def learning_rate(step: int, schedule: ScheduleConfig, warmup_epochs: int) -> float:
    """Linear over the warm-up epochs, then constant or along half a cosine to zero."""
    warmup = warmup_epochs * schedule.steps_per_epoch
    if step < warmup or schedule.decay == "constant":
        return schedule.learning_rate * min(1.0, (step + 1) / max(1, warmup))
    done = (step - warmup) / (schedule.epochs * schedule.steps_per_epoch - warmup)
    return schedule.learning_rate * 0.5 * (1.0 + math.cos(math.pi * done))
