"""stage 2: aligned image sets -> student and two teachers, by the step in `step.py`."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from leuda_train.batches import AlignedSets, make_batch, seed_dropout, step_generator, take_rows
from leuda_train.batchnorm import reestimate, with_joint_batchnorm
from leuda_train.class_prior import ClassPrior
from leuda_train.config import ObjectiveConfig, ScheduleConfig, TrainConfig
from leuda_train.cyclegan import Generator
from leuda_train.discriminators import FeatureDiscriminator
from leuda_train.ema import teacher_mode
from leuda_train.hardware import Hardware, compile_networks
from leuda_train.loop import Row, Watch, run_steps
from leuda_train.phases import phase
from leuda_train.product import Product
from leuda_train.select import label_free_score, make_probe
from leuda_train.step import Lambdas, Networks, le_uda_step
from leuda_train.unet import UNet
from leuda_train.volume_labels import label_volumes

FEED_BATCHES = 8  # batches read at once when batch norms are re-estimated: steadier statistics


@dataclass(frozen=True, kw_only=True)
class Adapted:
    """The trained networks, in evaluation mode, after the last step, and which one is the product.

    products  network name -> what would be shipped of it: the network, behind the generator if it
              reads x^{t→s}
    chosen    the product of the run, and its network, epoch and label-free score; None of the two
              where it was distilled
    scores    label-free scores by epoch, a row each
    """

    products: dict[str, Product]
    chosen: Product
    network: str
    epoch: int | None
    score: float | None
    scores: list[Row]
    history: list[Row]


def adapt(
    sets: AlignedSets,
    classes: int,
    config: TrainConfig,
    hardware: Hardware,
    folder: Path,
    watch: Watch,
    to_source: Generator | None = None,
) -> Adapted:
    """Train by the config's method; classes counts background. Resumes from folder.

    to_source  the generator of stage 1, where a network is tested on x^{t→s}
    """
    trainer = _Trainer(sets, classes, config, hardware, to_source)
    schedule = config.schedule
    history = run_steps(
        trainer,
        name=config.method,
        steps=schedule.epochs * schedule.steps_per_epoch,
        folder=folder,
        checkpoint_seconds=schedule.checkpoint_seconds,
        watch=watch,
        ranks=hardware.ranks,
    )
    best = trainer.best
    used = config.objective.networks_in_use
    products = {name: trainer.product(name).eval() for name, asked in used.items() if asked}
    chosen = copy.deepcopy(products[best["network"]])
    chosen.network.load_state_dict(best["weights"])
    if config.test.batchnorm == "feed":
        for product in (*products.values(), chosen):
            _fit_to_feed(product, sets, config, hardware)
    return Adapted(
        products=products,
        chosen=chosen,
        network=best["network"],
        epoch=best["epoch"],
        score=best["score"],
        scores=trainer.scores,
        history=history,
    )


def _fit_to_feed(
    product: Product, sets: AlignedSets, config: TrainConfig, hardware: Hardware
) -> None:
    """Re-estimate a product's batch norms on its unlabelled feed, in a fixed order of slices."""
    images, size = sets.images["target"], config.schedule.batch_unlabelled * FEED_BATCHES
    rows = np.random.default_rng(config.seed).permutation(len(images))
    # whole batches alone: each counts the same
    parts = np.array_split(rows, max(1, round(len(rows) / size)))
    batches = (hardware.put(take_rows(images, part, hardware)[:, None]) for part in parts)
    with hardware.autocast():
        reestimate(product.network, hardware.place(product), batches)


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
        pseudo=rise * objective.lambda_pseudo,
    )


def learning_rate(step: int, schedule: ScheduleConfig, warmup_epochs: int) -> float:
    """Linear over the warm-up epochs, then constant or along half a cosine to zero."""
    warmup = warmup_epochs * schedule.steps_per_epoch
    if step < warmup or schedule.decay == "constant":
        return schedule.learning_rate * min(1.0, (step + 1) / max(1, warmup))
    done = (step - warmup) / (schedule.epochs * schedule.steps_per_epoch - warmup)
    return schedule.learning_rate * 0.5 * (1.0 + math.cos(math.pi * done))


class _Trainer:
    """One LE-UDA iteration at a time."""

    def __init__(
        self,
        sets: AlignedSets,
        classes: int,
        config: TrainConfig,
        hardware: Hardware,
        to_source: Generator | None = None,
    ) -> None:
        self.sets, self.config, self.hardware = sets.on_device(hardware), config, hardware
        self.images_per_step = config.images_per_step
        self.to_source = hardware.place(to_source) if to_source is not None else None
        self.probe = None if config.uses_target_labels else make_probe(sets, hardware, config.seed)
        self.pseudo: Tensor | None = None  # (N, h, w) labels of the target scans, if made by scan
        self.scores: list[Row] = []
        self.best: dict[str, Any] = {}
        torch.manual_seed(config.seed)
        student: nn.Module = UNet(classes, config.unet.widths, config.unet.dropout)
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
            class_prior=ClassPrior(sets.class_shares, config.objective.pseudo_prior).to(
                hardware.device
            ),
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
        epoch = step // self.config.schedule.steps_per_epoch
        config = self.config.at(epoch)
        objective = config.objective
        rate = learning_rate(step, config.schedule, objective.warmup_epochs)
        self.nets.student_optimizer.param_groups[0]["lr"] = rate
        with phase("pseudo-labels"):
            self._label_target(step, config)
        with phase("data"):
            batch = make_batch(self.sets, config, self.hardware, step, self.pseudo)
        seed_dropout(config.seed, "dropout", step, self.hardware)
        terms = le_uda_step(
            self.nets,
            batch,
            lambdas(epoch, objective),
            objective,
            self.hardware,
            update=step,
            generator=step_generator(config.seed, "teacher noise", step),
        )
        with phase("selection"):
            self._select(step + 1)
        return terms

    def _label_target(self, step: int, config: TrainConfig) -> None:
        """Every few epochs of self-training by scan: the target's pseudo-labels, made anew."""
        objective = config.objective
        if objective.lambda_pseudo == 0 or objective.pseudo_by == "slice":
            return
        if self.pseudo is None or not step % (
            objective.pseudo_every_epochs * config.schedule.steps_per_epoch
        ):
            assert self.sets.target_scans is not None
            self.pseudo = label_volumes(
                self.nets.inter_teacher,
                self.sets.images["target"],
                self.sets.target_scans,
                self.sets.class_shares,
                strength=objective.pseudo_prior,
                floor=objective.pseudo_confidence,
                hardware=self.hardware,
            )

    def product(self, network: str) -> Product:
        """What would be shipped of a network as it is now."""
        through = self.config.test.feed_of(network) == "target_as_source"
        assert self.to_source is not None or not through
        return Product(getattr(self.nets, network), self.to_source if through else None)

    def _select(self, done: int) -> None:
        """Score the candidates every few epochs and at the end; keep the best that may be kept."""
        schedule, test = self.config.schedule, self.config.test
        last = done == schedule.epochs * schedule.steps_per_epoch
        if not last and (
            test.select == "last" or done % (test.select_epochs * schedule.steps_per_epoch)
        ):
            return
        row: Row = {"epoch": done / schedule.steps_per_epoch}
        for name in self.config.candidates:
            row[name] = 0.0
            if self.probe is not None:
                row[name] = label_free_score(self.product(name), self.probe, self.hardware)
            if not self.best or row[name] > self.best["score"]:
                weights = getattr(self.nets, name).state_dict()
                self.best = {
                    "score": row[name],
                    "network": name,
                    "epoch": round(row["epoch"]),
                    "weights": {key: value.detach().clone() for key, value in weights.items()},
                }
        self.scores.append(row)

    def state(self) -> dict[str, Any]:
        """Every network, optimiser and the scaler, and what was selected so far."""
        parts = {name: part.state_dict() for name, part in vars(self.nets).items()}
        return parts | {"scores": self.scores, "best": self.best, "pseudo": self.pseudo}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        for name, part in vars(self.nets).items():
            part.load_state_dict(state[name])
        self.scores, self.best = list(state["scores"]), state["best"]
        self.pseudo = state["pseudo"]
