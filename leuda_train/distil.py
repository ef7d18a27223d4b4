"""stage 3: both teachers -> one network that reads the target directly, as narrow as wanted.

Pseudo-labels of the teachers' mean on x^t, confidence-filtered and class-balanced, and the source's
true labels on x^{s→t}. No generator is left in what is shipped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from leuda_train.batches import AlignedSets, make_batch, seed_dropout
from leuda_train.batchnorm import with_joint_batchnorm
from leuda_train.config import TrainConfig
from leuda_train.descend import descend
from leuda_train.hardware import Hardware
from leuda_train.loop import Watch, run_steps
from leuda_train.losses import pseudo_labels, pseudo_loss, segmentation_loss
from leuda_train.phases import phase
from leuda_train.product import Product
from leuda_train.unet import UNet


def distil(
    teachers: Mapping[str, Product],
    sets: AlignedSets,
    classes: int,
    config: TrainConfig,
    hardware: Hardware,
    folder: Path,
    watch: Watch,
) -> Product:
    """Train the small network from frozen teachers, each (B, 1, h, w) of x^t -> logits.

    Resumes from folder. Returns what is shipped.
    """
    trainer = _Trainer(teachers, sets, classes, config, hardware)
    assert config.distil is not None
    run_steps(
        trainer,
        name="distillation",
        steps=config.distil.steps,
        folder=folder,
        checkpoint_seconds=config.schedule.checkpoint_seconds,
        watch=watch,
        ranks=hardware.ranks,
    )
    return Product(trainer.network, None).eval()


class _Trainer:
    """One update of the small network at a time."""

    def __init__(
        self,
        teachers: Mapping[str, Product],
        sets: AlignedSets,
        classes: int,
        config: TrainConfig,
        hardware: Hardware,
    ) -> None:
        assert config.distil is not None
        self.teachers = [hardware.place(t).eval().requires_grad_(False) for t in teachers.values()]
        self.sets, self.hardware = sets.on_device(hardware), hardware
        self.distil = config.distil
        # the batches of a run that is supervised on x^{s→t} and self-trains on x^t
        self.config = config.model_copy(
            update={
                "objective": config.objective.model_copy(
                    update={
                        "supervised_on": ("source_as_target",),
                        "lambda_intra": 0.0,
                        "lambda_inter": 0.0,
                        "lambda_adv_intra": 0.0,
                        "lambda_adv_inter": 0.0,
                        "lambda_pseudo": 1.0,
                        "copy_paste": 0.0,
                        "pseudo_from": ("inter_teacher",),  # it reads x^t: no other stream is drawn
                    }
                )
            }
        )
        self.images_per_step = self.config.images_per_step
        torch.manual_seed(config.seed)
        widths = self.distil.widths(config.unet.widths)
        network: nn.Module = UNet(classes, widths, config.unet.dropout)
        if hardware.ranks.size > 1:
            network = with_joint_batchnorm(network, hardware.ranks)
        self.network = hardware.place(network)
        self.optimizer = torch.optim.Adam(
            self.network.parameters(), lr=self.distil.learning_rate, fused=True
        )
        self.scaler = torch.amp.GradScaler(hardware.device.type, enabled=hardware.needs_scaler)

    def step(self, step: int) -> dict[str, Tensor]:
        """Pseudo-labels from the teachers, then one update on both kinds of label."""
        rate = 0.5 * (1.0 + math.cos(math.pi * step / self.distil.steps))
        self.optimizer.param_groups[0]["lr"] = self.distil.learning_rate * rate
        seed_dropout(self.config.seed, "distil dropout", step, self.hardware)
        with phase("data"):
            batch = make_batch(self.sets, self.config, self.hardware, step)
        assert batch.strong is not None
        with self.hardware.autocast():
            with torch.no_grad():
                votes = [teacher(batch.unlabelled["target"]) for teacher in self.teachers]
            logits, _ = self.network(torch.cat([*batch.labelled, batch.strong]))
        labelled, target = logits.split([len(batch.labels), len(batch.strong)])
        q_mean = torch.stack([vote.float().softmax(dim=1) for vote in votes]).mean(dim=0)
        confidence, ranks = self.config.objective.pseudo_confidence, self.hardware.ranks
        terms = {
            "L_seg": segmentation_loss(labelled, batch.labels, ranks),
            "L_pseudo": pseudo_loss(target, *pseudo_labels(q_mean, confidence, ranks), ranks),
        }
        descend(self.optimizer, terms["L_seg"] + terms["L_pseudo"], self.scaler, ranks)
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
