"""teachers + scans without labels -> labels of whole scans, made anew every few epochs.

The inter-domain teacher labels the target's scans, the intra-domain one those of the source that
nobody labelled; of these only the scans count whose labels survive another appearance. How a scan
is labelled stands in objective/volume_labels.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from leuda_train.config.objective import ObjectiveConfig
from leuda_train.config.schema import TrainConfig
from leuda_train.data.aligned_sets import AlignedSets, take_rows
from leuda_train.data.augment.class_style import randomise_appearance
from leuda_train.data.batches import step_generator
from leuda_train.data.slices import UNLABELLED
from leuda_train.loop.hardware import Hardware
from leuda_train.objective.step import Networks
from leuda_train.objective.volume_labels import AT_ONCE, agreement, label_volumes


class SelfLabels:
    """The labels as they are now.

    sets    the image sets, with the teacher's labels of source scans beside the true ones
    target  (N, h, w) of every target slice, UNLABELLED where unsure; None before the first are made
    source  (n, h, w) of the unlabelled source slices, UNLABELLED throughout where a scan's labels
            do not survive another appearance; None before the first are made
    to_edges  whether `pseudo_refine` may be followed: not where a first model says that thin
              structures do not survive it
    """

    def __init__(self, sets: AlignedSets, hardware: Hardware, *, to_edges: bool = True) -> None:
        self.sets, self.hardware, self.to_edges = sets, hardware, to_edges
        self.target: Tensor | None = None
        self.source: Tensor | None = None
        self.unlabelled = _unlabelled_rows(sets)

    def renew(self, step: int, config: TrainConfig, nets: Networks) -> None:
        """Make the labels that this step is due; config is that of its epoch."""
        objective, epoch_steps = config.objective, config.schedule.steps_per_epoch
        turn = not step % (objective.pseudo_every_epochs * epoch_steps)
        renewed_from = objective.pseudo_renewed_from_epoch
        renewed = renewed_from != "never" and step >= renewed_from * epoch_steps
        by_volume = objective.lambda_pseudo > 0 and objective.pseudo_by == "volume"
        if by_volume and (self.target is None or (turn and renewed)):
            self.target = self.of_target(nets.inter_teacher, objective)
        shown = objective.source_pseudo_share > 0 and len(self.unlabelled)
        if shown and (self.source is None or turn):
            self._use(self._of_source(nets, config))

    def of_target(self, teacher: nn.Module, objective: ObjectiveConfig) -> Tensor:
        """What a teacher makes of the target's scans: (N, h, w) uint8, UNLABELLED where unsure."""
        assert self.sets.target_scans is not None
        return label_volumes(
            teacher,
            self.sets.images["target"],
            self.sets.target_scans,
            self.sets.class_shares,
            strength=objective.pseudo_prior,
            floor=objective.pseudo_confidence,
            refine=objective.pseudo_refine and self.to_edges,
            hardware=self.hardware,
        )

    def _of_source(self, nets: Networks, config: TrainConfig) -> Tensor:
        """What the intra-domain teacher makes of the unlabelled source scans: (n, h, w) uint8."""
        rows, scans = self.unlabelled, self.sets.source_scans
        assert scans is not None
        images = take_rows(self.sets.images["source"], rows, self.hardware)

        def labelled(images: Tensor) -> Tensor:
            return label_volumes(
                nets.intra_teacher,
                images,
                scans[rows],
                self.sets.class_shares,
                strength=0.0,
                floor=0.0,
                hardware=self.hardware,
            )

        made = labelled(images)
        least = config.objective.source_pseudo_agreement
        if least > 0:
            other = labelled(self._restyled(images, config)).numpy()
            for scan in np.unique(scans[rows]):
                own = scans[rows] == scan
                if agreement(made[own].numpy(), other[own], self.sets.classes) < least:
                    made[own] = UNLABELLED
        return made

    def _restyled(self, images: Tensor, config: TrainConfig) -> Tensor:
        """Images (n, h, w), each in a random style of the target's; the same in every epoch."""
        generator = step_generator(config.seed, "agreement", 0)
        look, classes = config.target_appearance, self.sets.classes
        parts = [
            randomise_appearance(part[:, None], None, classes, look, generator)[:, 0]
            for part in images.split(AT_ONCE)
        ]
        return torch.cat(parts)

    @property
    def source_scans(self) -> tuple[int, int] | None:
        """Of the unlabelled source scans, those learned from at last, and all; None: not asked."""
        scans, kept = self.sets.source_scans, self.sets.self_labelled_rows
        if scans is None or kept is None:
            return None
        return len(np.unique(scans[kept])), len(np.unique(scans[self.unlabelled]))

    def _use(self, made: Tensor) -> None:
        """Put a teacher's labels beside the true ones."""
        self.source = made
        labels, rows = self.sets.labels, self.unlabelled
        kept = rows[made[:, 0, 0].numpy() != UNLABELLED]
        if isinstance(labels, Tensor):
            labels = labels.clone()
            labels[torch.from_numpy(rows).to(labels.device)] = made.to(labels.device)
        else:
            labels = np.array(labels)
            labels[rows] = made.numpy()
        self.sets = replace(self.sets, labels=labels, self_labelled_rows=kept)

    def state(self) -> dict[str, Any]:
        """Both."""
        return {"pseudo": self.target, "source_pseudo": self.source}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`; a run from before a part was there begins without it."""
        self.target = state.get("pseudo")
        if state.get("source_pseudo") is not None:
            self._use(state["source_pseudo"])


def _unlabelled_rows(sets: AlignedSets) -> NDArray[np.int64]:
    """The rows of the supervised family that have no labels."""
    first = sets.labels[:, 0, 0]
    first = first.cpu().numpy() if isinstance(first, Tensor) else np.asarray(first)
    return np.flatnonzero(first == UNLABELLED)
