"""config -> how much memory each stage's step takes, without computing one.

The stage's own step runs on tensors that have a shape and a type but no values (torch's
"meta" device), and the bytes that are alive are counted as they come and go. So what is counted is
what is trained: a term that is added to the step is in the figure.

Not in it: image sets that are kept on a GPU, what convolutions take to work in, and what lies
unused between live tensors, which on CPUs is much. The reserve is for these: a share of the peak,
as benchmarks/promises/training_memory.py measured it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn

from leuda_train.config.schema import TrainConfig
from leuda_train.data.aligned_sets import AlignedSets
from leuda_train.data.batches import Batch, Draw, step_generator
from leuda_train.data.slices import Slices
from leuda_train.loop.hardware import Hardware
from leuda_train.networks.product import DeployedNetwork
from leuda_train.networks.unet import UNet
from leuda_train.objective.schedules import lambdas
from leuda_train.objective.step import le_uda_step
from leuda_train.stages.adapt import draw_of
from leuda_train.stages.build import build_networks
from leuda_train.stages.distil import Distillation
from leuda_train.stages.distil import draw_of as draw_of_distillation
from leuda_train.stages.translate import STAGE, Translation
from leuda_train.stages.without_values import META, LiveBytes, Pretended

GPU_RESERVE, CPU_RESERVE = 0.1, 0.2
CPU_RESERVE_AGAIN = 0.25  # more where all is computed again: what comes and goes leaves holes
# images with and without their padding: no hole that the one leaves is large enough for the other
CPU_RESERVE_OF_TRANSLATION = 0.6


@dataclass(frozen=True, kw_only=True)
class Need:
    """Bytes that a process takes for one stage at the peak of a step: all of these together.

    networks        the weights that are trained
    teachers        the teachers' copies
    discriminators  their weights
    optimizer       moments and gradients
    activations     of the joint batch, with the batch itself and all that passes
    reserve         an allowance beside the tensors
    recomputed      levels that keep no activations
    """

    stage: str
    networks: int
    teachers: int
    discriminators: int
    optimizer: int
    activations: int
    reserve: int
    recomputed: int

    @property
    def peak(self) -> int:
        """In all."""
        kept = self.networks + self.teachers + self.discriminators + self.optimizer
        return kept + self.activations + self.reserve


def stages_of(config: TrainConfig) -> dict[str, int]:
    """The stages that train, by the names that metrics have -> the most that can be recomputed."""
    found = {}
    if config.uses_translation and config.translation.kind == "cyclegan":
        found[STAGE] = 1
    found[config.method] = len(config.unet.widths)
    if config.distil is not None:
        found["distillation"] = len(config.unet.widths)
    return found


def need_of(
    stage: str, config: TrainConfig, classes: int, hardware: Hardware, recomputed: int = 0
) -> Need:
    """What one process takes for a stage of `stages_of`, on this hardware."""
    config = _share_of_one(config, hardware)
    make = {STAGE: _translation, "distillation": _distillation}.get(stage, _adaptation)
    pretended = Pretended(META, hardware.precision)
    with META, LiveBytes() as live:
        parts = make(config, classes, pretended, recomputed)
        _begin(parts.optimizers)
        live.forget_peak()
        parts.step()
    trained = [*parts.trained, *parts.discriminators]
    gradients = sum(p.nbytes for net in trained for p in net.parameters())
    moments = sum(
        value.nbytes
        for optimizer in parts.optimizers
        for state in optimizer.state.values()
        for value in state.values()
    )
    state = {
        "networks": _bytes(parts.trained),
        "teachers": _bytes(parts.teachers),
        "discriminators": _bytes(parts.discriminators),
        "optimizer": gradients + moments,
    }
    return Need(
        stage=stage,
        **state,
        activations=max(0, live.peak - sum(state.values())),
        reserve=round(_reserve(stage, config, hardware, recomputed) * live.peak),
        recomputed=recomputed,
    )


def _reserve(stage: str, config: TrainConfig, hardware: Hardware, recomputed: int) -> float:
    """As a share of the peak."""
    if hardware.device.type != "cpu":
        return GPU_RESERVE
    if stage == STAGE:
        return CPU_RESERVE_OF_TRANSLATION
    return CPU_RESERVE + CPU_RESERVE_AGAIN * recomputed / stages_of(config)[stage]


def _share_of_one(config: TrainConfig, hardware: Hardware) -> TrainConfig:
    """The config with the batches of one process."""
    size, schedule = hardware.ranks.size, config.schedule
    if size == 1:
        return config
    own = {
        "batch_labelled": schedule.batch_labelled // size,
        "batch_unlabelled": schedule.batch_unlabelled // size,
    }
    translation = config.translation
    shared = translation.batch % size == 0  # else one process trains it alone
    batch = translation.batch // size if shared else translation.batch
    return config.model_copy(
        update={
            "schedule": schedule.model_copy(update=own),
            "translation": translation.model_copy(update={"batch": batch}),
        }
    )


# --- the stages, as they are trained


@dataclass(frozen=True, kw_only=True)
class _Stage:
    """A stage's networks and optimisers, and a function that does a step."""

    trained: Sequence[nn.Module]
    teachers: Sequence[nn.Module] = ()
    discriminators: Sequence[nn.Module] = ()
    optimizers: Sequence[torch.optim.Optimizer]
    step: Callable[[], object]


def _translation(config: TrainConfig, _: int, hardware: Hardware, recomputed: int) -> _Stage:
    made, window = config.translation, config.recipe.window
    empty = np.zeros((1, *window), np.float32)
    slices = Slices(
        key="",
        source=empty,
        source_labels=empty.astype(np.uint8),
        labelled_rows=np.arange(1),
        target=empty,
        target_labels=None,
        target_scans=np.zeros(1, np.int64),
        target_intensities=(),
    )
    # a pool that is full draws numbers, which meta tensors have not
    trainer = Translation(slices, made.model_copy(update={"pool": 0}), hardware, 0, recomputed)
    pools = torch.empty(2, made.pool, *window)
    source, target = (_images(made.batch, window) for _ in range(2))
    nets = trainer.nets

    def step() -> object:
        return trainer.update(source, target, 0), pools

    return _Stage(
        trained=[nets.to_target, nets.to_source],
        discriminators=[nets.target_discriminator, nets.source_discriminator],
        optimizers=[trainer.generators, trainer.discriminators],
        step=step,
    )


def _adaptation(config: TrainConfig, classes: int, hardware: Hardware, recomputed: int) -> _Stage:
    config = config.model_copy(update={"compile": False})
    epoch = largest_epoch(config)
    at = config.at(epoch)
    nets = build_networks(
        config, classes, torch.full((classes,), 1 / classes), hardware, recomputed=recomputed
    )
    batch = _batch(draw_of(config, epoch * config.schedule.steps_per_epoch), config)
    shares = config.schedule.shares_every > 0 and not config.source_free

    def step() -> object:
        return le_uda_step(
            nets,
            batch,
            lambdas(epoch, at.objective),
            at.objective,
            hardware,
            update=1,
            generator=step_generator(0, "teacher noise", 0),
            shares=shares,
        )

    return _Stage(
        trained=[nets.student],
        teachers=[nets.intra_teacher, nets.inter_teacher],
        discriminators=[nets.intra_discriminator, nets.inter_discriminator],
        optimizers=[nets.student_optimizer, nets.discriminator_optimizer],
        step=step,
    )


def _distillation(config: TrainConfig, classes: int, hardware: Hardware, recomputed: int) -> _Stage:
    rows, window = np.arange(1), config.recipe.window
    sets = AlignedSets(
        images={}, classes=classes, labels=np.zeros((1, *window), np.uint8), labelled_rows=rows
    )
    teachers = {
        name: DeployedNetwork(UNet(classes, config.unet.widths, config.unet.dropout), None)
        for name in config.teachers
    }
    trainer = Distillation(teachers, sets, config, hardware, recomputed)
    batch = _batch(draw_of_distillation(config), config)
    return _Stage(
        trained=[trainer.network],
        teachers=trainer.teachers,
        optimizers=[trainer.optimizer],
        step=lambda: trainer.update(batch),
    )


def largest_epoch(config: TrainConfig) -> int:
    """The epoch whose steps take most: the student reads most images in it, then the teachers."""
    objective, last = config.objective, config.schedule.epochs - 1
    turns = (0, objective.pseudo_from_epoch, objective.pseudo_volumes_from_epoch)
    coarse = int(config.schedule.coarse_share * config.schedule.epochs) + 1

    def size(epoch: int) -> tuple[int, int, int]:
        at = config.at(epoch).objective
        h, w = config.window_at(epoch * config.schedule.steps_per_epoch)
        read = len(at.supervised_on) + len(at.student_streams) + (at.lambda_pseudo > 0)
        return h * w, read, len(at.intra_streams) + len(at.inter_streams)

    return max((min(epoch, last) for epoch in (*turns, coarse, last)), key=size)


def _begin(optimizers: Iterable[torch.optim.Optimizer]) -> None:
    """Make moments and gradients, as a first step does."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for weight in group["params"]:
                weight.grad = torch.empty_like(weight)
        optimizer.step()


def _batch(draw: Draw, config: TrainConfig) -> Batch:
    """What a draw makes, without values."""
    size = draw.size or config.recipe.window
    labelled, unlabelled = draw.labelled_count, draw.unlabelled_count
    return Batch(
        labelled=[_images(labelled, size) for _ in draw.supervised],
        labels=[_labels(labelled, size) for _ in draw.supervised],
        unlabelled={stream: _images(unlabelled, size) for stream in draw.unlabelled},
        strong=_images(unlabelled, size) if draw.restyle_target else None,
        known=_labels(unlabelled, size) if draw.restyle_target else None,
    )


def _images(count: int, size: tuple[int, int]) -> Tensor:
    return torch.empty(count, 1, *size).contiguous(memory_format=torch.channels_last)


def _labels(count: int, size: tuple[int, int]) -> Tensor:
    return torch.empty(count, *size, dtype=torch.int64)


def _bytes(nets: Iterable[nn.Module]) -> int:
    return sum(t.nbytes for net in nets for t in chain(net.parameters(), net.buffers()))
