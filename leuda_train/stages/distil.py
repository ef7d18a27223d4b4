"""stage 3: both teachers -> one network that reads the target directly, as narrow as wanted.

Pseudo-labels of the teachers' mean on x^t, confidence-filtered and class-balanced, and the source's
true labels on x^{s→t}. No generator is left in the product.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from leuda_train.config.schema import TrainConfig
from leuda_train.data.aligned_sets import AlignedSets
from leuda_train.data.batches import Batch, Draw, make_batch, seed_dropout
from leuda_train.loop.hardware import Hardware
from leuda_train.loop.loop import StageRun, run_steps
from leuda_train.loop.optimizer_step import optimizer_step
from leuda_train.loop.profile import phase
from leuda_train.networks.batchnorm import with_joint_batchnorm
from leuda_train.networks.product import DeployedNetwork
from leuda_train.networks.unet import UNet
from leuda_train.objective.losses import pseudo_labels, pseudo_loss, segmentation_loss


def distil(
    teachers: Mapping[str, DeployedNetwork],
    sets: AlignedSets,
    config: TrainConfig,
    run: StageRun,
) -> DeployedNetwork:
    """Train the small network from frozen teachers, each (B, 1, h, w) of x^t -> logits.

    Resumes from the run's folder. Returns what is deployed.
    """
    trainer = Distillation(teachers, sets, config, run.hardware, run.recomputed)
    run_steps(trainer, run, name="distillation", steps=trainer.steps)
    return DeployedNetwork(trainer.network, None).eval()


def draw_of(config: TrainConfig) -> Draw:
    """What a step of stage 3 draws: labelled x^{s→t}, and x^t plain and restyled."""
    return Draw(
        seed=config.seed,
        supervised=("source_as_target",),
        labelled_count=config.schedule.batch_labelled,
        unlabelled=("target",),
        unlabelled_count=config.schedule.batch_unlabelled,
        restyle_target=True,
        augment=config.augment,
        style=config.style,
    )


class Distillation:
    """One update of the small network at a time."""

    def __init__(
        self,
        teachers: Mapping[str, DeployedNetwork],
        sets: AlignedSets,
        config: TrainConfig,
        hardware: Hardware,
        recomputed: int = 0,
    ) -> None:
        assert config.distil is not None
        self.teachers = [hardware.place(t).eval().requires_grad_(False) for t in teachers.values()]
        self.sets, self.hardware = sets.on_device(hardware), hardware
        self.distil, self.steps = config.distil, config.distil_steps
        self.seed, self.confidence = config.seed, config.objective.pseudo_confidence
        self.draw = draw_of(config)
        self.images_per_step = self.draw.images_per_step
        torch.manual_seed(config.seed)
        widths = self.distil.widths(config.unet.widths)
        unet = UNet(sets.classes, widths, config.unet.dropout)
        unet.recomputed = recomputed
        network: nn.Module = unet
        if hardware.ranks.size > 1:
            network = with_joint_batchnorm(network, hardware.ranks)
        self.network = hardware.place(network)
        self.optimizer = hardware.adam(self.network.parameters(), self.distil.learning_rate)
        self.scaler = torch.amp.GradScaler(hardware.device.type, enabled=hardware.needs_scaler)

    def step(self, step: int) -> dict[str, Tensor]:
        """Pseudo-labels from the teachers, then one update on both kinds of label."""
        rate = 0.5 * (1.0 + math.cos(math.pi * step / self.steps))
        self.optimizer.param_groups[0]["lr"] = self.distil.learning_rate * rate
        seed_dropout(self.seed, "distil dropout", step, self.hardware)
        with phase("data"):
            batch = make_batch(self.sets, self.draw, self.hardware, step)
        return self.update(batch)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Train on a batch that was drawn."""
        assert batch.strong is not None
        (labels,) = batch.labels
        with self.hardware.autocast():
            with torch.no_grad():
                votes = [teacher(batch.unlabelled["target"]) for teacher in self.teachers]
            logits, _ = self.network(torch.cat([*batch.labelled, batch.strong]))
        labelled, target = logits.split([len(labels), len(batch.strong)])
        q_mean = torch.stack([vote.float().softmax(dim=1) for vote in votes]).mean(dim=0)
        ranks = self.hardware.ranks
        terms = {
            "L_seg": segmentation_loss(labelled, labels, ranks),
            "L_pseudo": pseudo_loss(target, *pseudo_labels(q_mean, self.confidence, ranks), ranks),
        }
        optimizer_step(self.optimizer, terms["L_seg"] + terms["L_pseudo"], self.scaler, ranks)
        self.scaler.update()
        return {name: term.detach() for name, term in terms.items()}

    def _stateful(self) -> dict[str, Any]:
        return {"network": self.network, "optimizer": self.optimizer, "scaler": self.scaler}

    def state(self) -> dict[str, Any]:
        """Network, optimiser and scaler; the teachers are another stage's."""
        return {name: part.state_dict() for name, part in self._stateful().items()}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        for name, part in self._stateful().items():
            part.load_state_dict(state[name])
