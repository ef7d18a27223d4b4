"""aligned image sets -> the batch of step n: drawn, warped, on the device.

Nothing is remembered between steps: what step n draws follows from the seed and n alone, so a
resumed run sees exactly what an uninterrupted one would have seen. Of several processes, each keeps
its share of what is drawn for all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leuda_train.config.schema import AugmentConfig, StyleConfig
from leuda_train.config.streams import SOURCE_STREAMS, TARGET_STREAMS, Stream
from leuda_train.data.augment.affine import random_affine, warp, warp_labelled
from leuda_train.data.augment.style import randomise_style
from leuda_train.loop.hardware import Hardware
from leuda_train.loop.ranks import Ranks

RESIDENT_SHARE = 0.25  # of the GPU's free memory, that image sets may take


@dataclass(frozen=True, kw_only=True)
class AlignedSets:
    """Six image sets, (N, h, w) float32 each; rows of one family show the same slice.

    Memory-mapped, or, after `on_device`, tensors on the GPU.

    labels         (N, h, w) uint8, of the rows of the family that is supervised
    labelled_rows  the rows whose labels are trained on
    held_out_rows  rows that have labels, too, but are chosen by; none: nothing is chosen
    """

    images: Mapping[Stream, NDArray[np.float32] | Tensor]
    labels: NDArray[np.uint8] | Tensor
    labelled_rows: NDArray[np.int64]
    held_out_rows: NDArray[np.int64] | None = None

    def on_device(self, hardware: Hardware) -> AlignedSets:
        """The same sets on the GPU where they fit `RESIDENT_SHARE` of its free memory."""
        *images, labels = on_device([*self.images.values(), self.labels], hardware)
        return replace(self, images=dict(zip(self.images, images, strict=True)), labels=labels)


@dataclass(frozen=True, kw_only=True)
class Draw:
    """What a step's batch is made of: which streams, how many images of each, how they are varied.

    seed                of every random choice, together with the step's number
    supervised          the streams with labels, each drawn independently of the others
    labelled_count      images of each of them
    unlabelled          the streams without labels; those of one family show the same slices
    unlabelled_count    images of each of them
    restyle_target      also draw `Batch.strong`; "target" is then among `unlabelled`
    augment, style      the random affine of every image; the random style of what is trained on
    """

    seed: int
    supervised: tuple[Stream, ...]
    labelled_count: int
    unlabelled: tuple[Stream, ...]
    unlabelled_count: int
    restyle_target: bool
    augment: AugmentConfig
    style: StyleConfig

    @property
    def images_per_step(self) -> int:
        """How many images all processes together draw for a step."""
        unlabelled = len(self.unlabelled) + self.restyle_target
        return self.labelled_count * len(self.supervised) + self.unlabelled_count * unlabelled


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one iteration sees; every image is (B, 1, H, W), channels last, on the device.

    labelled    the supervised images, one tensor a stream
    labels      (B, H, W) int64, one tensor for each of `labelled`
    unlabelled  those of the six streams that the method reads
    strong      x^t restyled, pixel for pixel on unlabelled["target"]; for methods that self-train
    """

    labelled: list[Tensor]
    labels: list[Tensor]
    unlabelled: dict[Stream, Tensor] = field(default_factory=dict)
    strong: Tensor | None = None


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


@lru_cache(maxsize=16)
def _order(size: int, seed: int, purpose: str, turn: int) -> NDArray[np.int64]:
    generator = step_generator(seed, f"order/{purpose}", turn)
    return torch.randperm(size, generator=generator).numpy()


def make_batch(sets: AlignedSets, draw: Draw, hardware: Hardware, step: int) -> Batch:
    """Draw and augment the batch of a step.

    An image and its label share one warp, and so do the unlabelled images of a family. B is this
    process's share of the draw's counts.
    """
    ranks = hardware.ranks
    restyle = step_generator(draw.seed, "style", step)
    labelled: list[Tensor] = []
    labels: list[Tensor] = []
    for number, stream in enumerate(draw.supervised):
        purpose = f"labelled {number}" if number else "labelled"
        rows = draw_rows(sets.labelled_rows, draw.labelled_count, step, draw.seed, purpose)
        images = _take_family(sets, (stream,), rows, hardware)
        label = take_rows(sets.labels, ranks.share(rows), hardware).long()
        affine = _draw_affine(draw, images[0], len(rows), step, purpose)
        images, label = warp_labelled(images, label, ranks.share(affine))
        labelled.append(_restyled(hardware.put(images[0]), draw.style, restyle, ranks))
        labels.append(label)

    unlabelled: dict[Stream, Tensor] = {}
    for family in (SOURCE_STREAMS, TARGET_STREAMS):
        streams = tuple(stream for stream in family if stream in draw.unlabelled)
        if not streams:
            continue
        every = np.arange(len(sets.images[family[0]]))
        rows = draw_rows(every, draw.unlabelled_count, step, draw.seed, family[0])
        images = _take_family(sets, streams, rows, hardware)
        affine = _draw_affine(draw, images[0], len(rows), step, family[0])
        images = warp(images, ranks.share(affine))
        unlabelled |= {s: hardware.put(image) for s, image in zip(streams, images, strict=True)}
    strong = None
    if draw.restyle_target:
        strong = _restyled(unlabelled["target"], draw.style, restyle, ranks)
    return Batch(labelled=labelled, labels=labels, unlabelled=unlabelled, strong=strong)


def _take_family(
    sets: AlignedSets, streams: tuple[Stream, ...], rows: NDArray[np.int64], hardware: Hardware
) -> list[Tensor]:
    """This process's share of the same rows of several aligned sets, (B, 1, h, w) each."""
    own = hardware.ranks.share(rows)
    return [take_rows(sets.images[stream], own, hardware)[:, None] for stream in streams]


def _draw_affine(draw: Draw, images: Tensor, count: int, step: int, purpose: str) -> Tensor:
    """The warp of each image of the joint batch, (count, 2, 3)."""
    height, width = images.shape[-2:]
    return random_affine(
        count,
        scale=draw.augment.scale,
        rotation_degrees=draw.augment.rotation_degrees,
        aspect=height / width,
        generator=step_generator(draw.seed, f"warp/{purpose}", step),
    )


def _restyled(
    images: Tensor, style: StyleConfig, generator: torch.Generator, ranks: Ranks
) -> Tensor:
    return randomise_style(
        images,
        generator,
        ranks,
        curve=style.curve,
        convolution=style.convolution,
        noise=style.noise,
    )
