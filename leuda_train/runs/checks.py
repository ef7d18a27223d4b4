"""what a run is about to do -> said or refused before hours of training."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leuda_deploy.errors import InputError
from leuda_deploy.machine.memory import available_bytes, in_megabytes, parse_bytes
from leuda_train.config.schema import TrainConfig
from leuda_train.data.aligned_sets import RESIDENT_SHARE
from leuda_train.loop.hardware import Hardware
from leuda_train.networks.cyclegan import Generator
from leuda_train.networks.unet import UNet
from leuda_train.stages.memory import Need, need_of, stages_of

SMALLER = "choose a smaller config, or smaller batches in [schedule]"
LONG_HOURS = 24.0
# of CycleGAN's step in passes of one generator over an image and back: six a pair of images, and
# the discriminators, which are cheaper
GENERATOR_PASSES = 7.0
TEACHER_SHARE = 1 / 3  # of a pass forth and back, the way forth, which is all a teacher does

_log = logging.getLogger(__name__)


def check_classes(
    labels: NDArray[np.uint8], rows: NDArray[np.int64], structures: Mapping[str, int]
) -> None:
    """Say which classes have no labelled pixel in what is trained on.

    Args:
        labels: (N, H, W) classes of the slices as the network sees them.
        rows: Which of the slices are labelled.
        structures: Name -> class.

    Raises:
        InputError: No class has one.
    """
    counts = np.zeros(256, dtype=np.int64)
    for row in rows.tolist():
        counts += np.bincount(labels[row].ravel(), minlength=256)
    empty = [name for name, number in structures.items() if counts[number] == 0]
    if len(empty) == len(structures):
        raise InputError(
            f"none of the {len(rows)} labelled slices has a labelled pixel inside the window; "
            "look at [classes] and the labels of the cohort"
        )
    if empty:
        _log.warning(
            "no labelled slice has a pixel of %s: the network cannot learn it", ", ".join(empty)
        )


def plan_memory(
    config: TrainConfig, classes: int, hardware: Hardware, *, done: Collection[str] = ()
) -> dict[str, Need]:
    """Say how much memory each stage takes, and choose what it computes again to fit max_memory.

    Without max_memory nothing is computed again. All processes of a machine share its memory; each
    has a GPU of its own. Stages that are done take none.

    Raises:
        InputError: It does not fit max_memory, or, without, this machine.
    """
    processes = 1 if hardware.device.type == "cuda" else hardware.ranks.size
    there = _memory_there(hardware)
    limit = None if config.max_memory is None else parse_bytes(config.max_memory)
    needs = {}
    for stage in stages_of(config):
        if stage in done:
            continue
        need = _fitted(stage, config, classes, hardware, limit and limit // processes)
        all_processes = need.peak * processes
        if limit is not None and all_processes > limit:
            raise InputError(
                f"max_memory = {config.max_memory}: stage {stage} takes about "
                f"{in_megabytes(all_processes)} at least; {SMALLER}"
            )
        if there is not None and all_processes > there:
            words = f"stage {stage} takes about {in_megabytes(all_processes)} of memory, and "
            words += f"{in_megabytes(there)} are free"
            if limit is None:
                fits = _fitted(stage, config, classes, hardware, there // processes)
                room = f"--max-memory {there // 1_000_000}M (max_memory in the config) fits it in "
                room += f"{in_megabytes(fits.peak * processes)}, but trains slower"
                raise InputError(f"{words}: {room if fits.peak * processes <= there else SMALLER}")
            _log.warning("%s: max_memory = %s was given", words, config.max_memory)
        _log.info("%s", _said(need, processes))
        needs[stage] = need
    if config.compile and any(need.recomputed for need in needs.values()):
        raise InputError(
            f"max_memory = {config.max_memory} is too little for compile = true, which computes "
            "nothing again: raise the one, or set the other to false"
        )
    return needs


def _fitted(
    stage: str, config: TrainConfig, classes: int, hardware: Hardware, limit: int | None
) -> Need:
    """The need that computes least again and is within the limit; if none is, the least need."""
    needs = []
    for levels in range(stages_of(config)[stage] + 1):
        needs.append(need_of(stage, config, classes, hardware, levels))
        if limit is None or needs[-1].peak <= limit:
            return needs[-1]
    return min(needs, key=lambda need: need.peak)


def _memory_there(hardware: Hardware) -> int | None:
    """Bytes that training may take here: of a GPU what image sets leave."""
    if hardware.device.type != "cuda":
        return available_bytes()
    free, _ = torch.cuda.mem_get_info(hardware.device)
    return int((1 - RESIDENT_SHARE) * free)


def _said(need: Need, processes: int) -> str:
    parts = {
        "networks": need.networks,
        "teachers": need.teachers,
        "discriminators": need.discriminators,
        "optimizer": need.optimizer,
        "activations": need.activations,
        "reserve": need.reserve,
    }
    words = ", ".join(f"{name} {in_megabytes(size)}" for name, size in parts.items() if size)
    again = ", some activations are computed again" if need.recomputed else ""
    each = f" in each of {processes} processes" if processes > 1 else ""
    return f"{need.stage} takes about {in_megabytes(need.peak)} of memory{each}: {words}{again}"


def warn_if_long(config: TrainConfig, classes: int, hardware: Hardware) -> None:
    """Say roughly how long a run takes on a processor, where that is more than a day."""
    if hardware.device.type != "cpu":
        return
    hours = cpu_hours(config, classes, hardware)
    if hours > LONG_HOURS:
        took = f"{hours / 24:,.0f} days" if hours < 60 * 24 else f"{hours / 730:,.0f} months"
        _log.warning(
            "this run takes roughly %s on this processor; --config small is made for one, and "
            "paper-* for a GPU",
            took,
        )


def cpu_hours(config: TrainConfig, classes: int, hardware: Hardware) -> float:
    """Stages 1 and 2, from the time that one image takes its networks here; a rough figure."""
    image = hardware.put(torch.zeros(1, 1, *config.recipe.window))
    schedule, objective = config.schedule, config.objective
    student = hardware.place(UNet(classes, config.unet.widths, config.unet.dropout))
    read = len(objective.supervised_on) * schedule.batch_labelled + schedule.batch_unlabelled * (
        len(objective.student_streams) + (objective.lambda_pseudo > 0)
    )
    taught = len(objective.intra_streams) + len(objective.inter_streams)
    images = read + TEACHER_SHARE * taught * schedule.batch_unlabelled
    steps = schedule.epochs * schedule.steps_per_epoch
    seconds = images * steps * _seconds(lambda: student(image)[0], hardware)
    if config.uses_translation and config.translation.kind == "cyclegan":
        made = config.translation
        generator = hardware.place(Generator(made.width, made.blocks))
        pairs = made.batch * made.steps
        seconds += GENERATOR_PASSES * pairs * _seconds(lambda: generator(image), hardware)
    return seconds / 3600.0


def _seconds(forward: Callable[[], Tensor], hardware: Hardware) -> float:
    """Of one pass forth and back, once warm."""
    for _ in range(2):
        began = time.perf_counter()
        with hardware.autocast():
            scores = forward()
        scores.float().mean().backward()
    return time.perf_counter() - began
