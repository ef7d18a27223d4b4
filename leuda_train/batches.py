"""aligned image sets -> the batch of step n: drawn, warped, on the device.

Nothing is remembered between steps: what step n draws follows from the seed and n alone, so a
resumed run sees exactly what an uninterrupted one would have seen. Of several processes, each keeps
its share of what is drawn for all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leuda_train.augment import random_affine, warp
from leuda_train.class_style import randomise_appearance
from leuda_train.config import SOURCE_STREAMS, TARGET_STREAMS, Stream, TrainConfig
from leuda_train.copy_paste import paste
from leuda_train.hardware import Hardware
from leuda_train.ranks import Ranks
from leuda_train.slices import UNLABELLED
from leuda_train.style import randomise_style

RESIDENT_SHARE = 0.25  # of the GPU's free memory, that image sets may take


@dataclass(frozen=True, kw_only=True)
class AlignedSets:
    """Six image sets, (N, h, w) float32 each; rows of one family show the same slice.

    Memory-mapped, or, after `on_device`, tensors on the GPU.

    labels         (N, h, w) uint8, of the rows of the family that is supervised
    labelled_rows  the rows that have labels
    target_scans   (N,) which scan each target slice is of; slices of a scan follow one another
    """

    images: Mapping[Stream, NDArray[np.float32] | Tensor]
    labels: NDArray[np.uint8] | Tensor
    labelled_rows: NDArray[np.int64]
    target_scans: NDArray[np.int64] | None = None

    @cached_property
    def structure_rows(self) -> NDArray[np.int64]:
        """The labelled rows that show any structure."""
        shown = [bool((self.labels[int(row)] > 0).any()) for row in self.labelled_rows]
        return self.labelled_rows[np.array(shown, dtype=bool)]

    @cached_property
    def classes(self) -> int:
        """K: one more than the highest class number in the labels."""
        return 1 + max((int(self.labels[int(row)].max()) for row in self.labelled_rows), default=0)

    @cached_property
    def class_shares(self) -> Tensor:
        """(K,) float32: the share of the labelled rows' pixels that each class has."""
        counts = torch.zeros(self.classes)
        for row in self.labelled_rows:
            label = self.labels[int(row)]
            label = label.cpu().numpy() if isinstance(label, Tensor) else label
            counts += torch.from_numpy(np.bincount(label.ravel(), minlength=self.classes))
        return counts / counts.sum()

    def on_device(self, hardware: Hardware) -> AlignedSets:
        """The same sets on the GPU where they fit `RESIDENT_SHARE` of its free memory."""
        *images, labels = on_device([*self.images.values(), self.labels], hardware)
        return replace(self, images=dict(zip(self.images, images, strict=True)), labels=labels)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one iteration sees; every image is (B, 1, H, W), channels last, on the device.

    labelled    the supervised images, one tensor a stream, all with the same `labels` (B, H, W)
    unlabelled  those of the six streams that the method reads
    strong      x^t restyled, pixel for pixel on unlabelled["target"]; for methods that self-train
    known       (B, H, W) labels of strong that are settled beforehand, UNLABELLED elsewhere: of
                pasted source regions, or pseudo-labels of whole scans
    """

    labelled: list[Tensor]
    labels: Tensor
    unlabelled: dict[Stream, Tensor] = field(default_factory=dict)
    strong: Tensor | None = None
    known: Tensor | None = None


def on_device(
    sets: Sequence[NDArray[Any] | Tensor], hardware: Hardware
) -> list[NDArray[Any] | Tensor]:
    """The sets as tensors on the GPU if all of them fit there; else, and on CPUs, as they are."""
    if hardware.device.type != "cuda":
        return list(sets)
    free, _ = torch.cuda.mem_get_info(hardware.device)
    if sum(images.nbytes for images in sets) > RESIDENT_SHARE * free:
        return list(sets)
    return [torch.from_numpy(np.array(images)).to(hardware.device) for images in sets]


def take_rows(images: NDArray[Any] | Tensor, rows: NDArray[np.int64], hardware: Hardware) -> Tensor:
    """Some rows of a set (N, h, w), on the device.

    From host memory they go through pinned memory, so that the next batch is drawn and copied while
    the device is still busy with this one.
    """
    if isinstance(images, Tensor):
        return images[torch.from_numpy(rows).to(images.device)]
    chosen = torch.from_numpy(images[rows])
    if hardware.device.type == "cuda":
        chosen = chosen.pin_memory()
    return chosen.to(hardware.device, non_blocking=True)


def step_generator(seed: int, purpose: str, step: int) -> torch.Generator:
    """The random numbers of one step."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{step}".encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


def seed_dropout(seed: int, purpose: str, step: int, hardware: Hardware) -> None:
    """Seed torch's own generators, which dropout draws from: other masks in every process."""
    own = "" if hardware.ranks.first else f"/{hardware.ranks.rank}"
    torch.manual_seed(step_generator(seed, purpose + own, step).initial_seed())


def draw_rows(
    rows: NDArray[np.int64], count: int, step: int, seed: int, purpose: str
) -> NDArray[np.int64]:
    """count rows for step n: every row once before any row again, in a new order each time."""
    places = np.arange(step * count, (step + 1) * count)
    return np.array(
        [rows[_order(len(rows), seed, purpose, int(k) // len(rows))[k % len(rows)]] for k in places]
    )


def draw_labelled(sets: AlignedSets, config: TrainConfig, step: int) -> NDArray[np.int64]:
    """Labelled rows for step n, in fixed shares of rows that show a structure and of any others."""
    count, share = config.schedule.batch_labelled, config.schedule.structure_share
    others = np.setdiff1d(sets.labelled_rows, sets.structure_rows)
    if share is None or not len(sets.structure_rows) or not len(others):
        return draw_rows(sets.labelled_rows, count, step, config.seed, "labelled")
    showing = min(count, max(1, round(share * count)))
    parts = ((sets.structure_rows, showing, "structures"), (others, count - showing, "others"))
    return np.concatenate(
        [draw_rows(rows, part, step, config.seed, name) for rows, part, name in parts if part]
    )


@lru_cache(maxsize=16)
def _order(size: int, seed: int, purpose: str, turn: int) -> NDArray[np.int64]:
    generator = step_generator(seed, f"order/{purpose}", turn)
    return torch.randperm(size, generator=generator).numpy()


def make_batch(
    sets: AlignedSets,
    config: TrainConfig,
    hardware: Hardware,
    step: int,
    pseudo: Tensor | None = None,
) -> Batch:
    """Draw and augment the batch of a step. Each family (and its label) shares one warp.

    B is this process's share of the config's batch sizes.

    pseudo  (N, h, w) pseudo-labels of every target slice, UNLABELLED where unsure
    """
    supervised, ranks = config.objective.supervised_on, hardware.ranks
    rows = draw_labelled(sets, config, step)
    labels = take_rows(sets.labels, ranks.share(rows), hardware).long()
    labelled, warped = _family(sets, supervised, rows, config, hardware, step, "labelled", labels)
    assert warped is not None
    unlabelled: dict[Stream, Tensor] = {}
    known: Tensor | None = None
    for family in (SOURCE_STREAMS, TARGET_STREAMS):
        streams = tuple(s for s in family if s in config.objective.unlabelled_streams)
        if streams:
            every = np.arange(len(sets.images[family[0]]))
            count = config.schedule.batch_unlabelled
            rows = draw_rows(every, count, step, config.seed, family[0])
            own = None
            if pseudo is not None and family is TARGET_STREAMS:
                own = take_rows(pseudo, ranks.share(rows), hardware).long()
            images, own = _family(sets, streams, rows, config, hardware, step, family[0], own)
            known = own if own is not None else known
            unlabelled.update(zip(streams, images, strict=True))
    restyle = step_generator(config.seed, "style", step)
    classes = sets.classes
    labelled = [
        _restyled(images, warped, classes, config, restyle, ranks, unlabelled.get("target"))
        for images in labelled
    ]
    strong = None
    if config.objective.lambda_pseudo > 0:
        strong = _restyled(unlabelled["target"], None, classes, config, restyle, ranks)
        if config.objective.copy_paste > 0:
            probability = config.objective.copy_paste
            generator = step_generator(config.seed, "copy-paste", step)
            strong, pasted = paste(strong, labelled[0], warped, probability, generator, ranks)
            known = pasted if known is None else torch.where(pasted != UNLABELLED, pasted, known)
    return Batch(
        labelled=labelled, labels=warped, unlabelled=unlabelled, strong=strong, known=known
    )


def _restyled(
    images: Tensor,
    labels: Tensor | None,
    classes: int,
    config: TrainConfig,
    generator: torch.Generator,
    ranks: Ranks,
    references: Tensor | None = None,
) -> Tensor:
    if config.appearance is not None:
        look = config.appearance if labels is not None else config.target_appearance
        return randomise_appearance(images, labels, classes, look, generator, ranks, references)
    style = config.style
    return randomise_style(
        images,
        generator,
        ranks,
        curve=style.curve,
        convolution=style.convolution,
        noise=style.noise,
    )


def _family(
    sets: AlignedSets,
    streams: tuple[Stream, ...],
    rows: NDArray[np.int64],
    config: TrainConfig,
    hardware: Hardware,
    step: int,
    purpose: str,
    labels: Tensor | None,
) -> tuple[list[Tensor], Tensor | None]:
    """The same rows of several aligned sets, under one warp a row."""
    own = hardware.ranks.share(rows)
    images = [take_rows(sets.images[stream], own, hardware)[:, None] for stream in streams]
    height, width = images[0].shape[-2:]
    affine = random_affine(
        len(rows),
        scale=config.augment.scale,
        rotation_degrees=config.augment.rotation_degrees,
        stretch=config.augment.stretch,
        translation=config.augment.translation,
        aspect=height / width,
        generator=step_generator(config.seed, f"warp/{purpose}", step),
    )
    warped, labels = warp(images, labels, hardware.ranks.share(affine), config.window_at(step))
    return [hardware.put(image) for image in warped], labels
