"""aligned image sets -> the batch of step n: drawn, warped, on the device.

Nothing is remembered between steps: what step n draws follows from the seed and n alone, so a
resumed run sees exactly what an uninterrupted one would have seen. Of several processes, each keeps
its share of what is drawn for all.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leuda_train.config.appearance import AppearanceConfig, StyleConfig
from leuda_train.config.schema import AugmentConfig
from leuda_train.config.streams import SOURCE_STREAMS, TARGET_LIKE, TARGET_STREAMS, Stream
from leuda_train.data.aligned_sets import AlignedSets, take_rows
from leuda_train.data.augment.affine import random_affine, warp, warp_labelled
from leuda_train.data.augment.class_style import randomise_appearance
from leuda_train.data.augment.copy_paste import paste
from leuda_train.data.augment.style import randomise_style
from leuda_train.data.slices import UNLABELLED
from leuda_train.loop.hardware import Hardware


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
    appearance          in place of the style: by structure for the supervised streams, and one for
                        the restyled target
    source_pseudo_share  of the supervised images, those of source scans that a teacher labelled
    structure_share     of the supervised images, those that show a structure; None: as they come
    copy_paste          how often a supervised region is pasted into the restyled target
    size                (h, w) of every image; None: as in the sets
    """

    seed: int
    supervised: tuple[Stream, ...]
    labelled_count: int
    unlabelled: tuple[Stream, ...]
    unlabelled_count: int
    restyle_target: bool
    augment: AugmentConfig
    style: StyleConfig
    appearance: tuple[AppearanceConfig, AppearanceConfig] | None = None
    structure_share: float | None = None
    source_pseudo_share: float = 0.0
    copy_paste: float = 0.0
    size: tuple[int, int] | None = None

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
    known       (B, H, W) labels of strong that are settled beforehand, UNLABELLED elsewhere: of
                pasted source regions, or pseudo-labels of whole scans
    """

    labelled: list[Tensor]
    labels: list[Tensor]
    unlabelled: dict[Stream, Tensor] = field(default_factory=dict)
    strong: Tensor | None = None
    known: Tensor | None = None


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


def draw_labelled(sets: AlignedSets, draw: Draw, step: int, purpose: str) -> NDArray[np.int64]:
    """Rows with labels for step n, in fixed shares: by whom they are labelled, what they show."""
    own, showing = sets.labelled_rows, sets.structure_rows
    count = draw.labelled_count
    taught = sets.self_labelled_rows
    if taught is None or not len(taught) or not draw.source_pseudo_share:
        return _draw_showing(own, showing, count, draw, step, purpose)
    by_teacher = min(count - 1, round(draw.source_pseudo_share * count))
    rows = [
        _draw_showing(own, showing, count - by_teacher, draw, step, purpose),
        _draw_showing(
            taught,
            sets.self_labelled_structure_rows,
            by_teacher,
            draw,
            step,
            f"{purpose}/by a teacher",
        ),
    ]
    return np.concatenate(rows)


def _draw_showing(
    rows: NDArray[np.int64],
    structures: NDArray[np.int64],
    count: int,
    draw: Draw,
    step: int,
    purpose: str,
) -> NDArray[np.int64]:
    """count rows, in fixed shares of rows that show a structure and of any others."""
    share, others = draw.structure_share, np.setdiff1d(rows, structures)
    if share is None or not len(structures) or not len(others):
        return draw_rows(rows, count, step, draw.seed, purpose)
    showing = min(count, max(1, round(share * count)))
    parts = ((structures, showing, "structures"), (others, count - showing, "others"))
    return np.concatenate(
        [
            draw_rows(of, part, step, draw.seed, f"{purpose}/{name}")
            for of, part, name in parts
            if part
        ]
    )


@lru_cache(maxsize=16)
def _order(size: int, seed: int, purpose: str, turn: int) -> NDArray[np.int64]:
    generator = step_generator(seed, f"order/{purpose}", turn)
    return torch.randperm(size, generator=generator).numpy()


def make_batch(
    sets: AlignedSets, draw: Draw, hardware: Hardware, step: int, pseudo: Tensor | None = None
) -> Batch:
    """Draw and augment the batch of a step.

    An image and its label share one warp, and so do the unlabelled images of a family. B is this
    process's share of the draw's counts.

    pseudo  (N, h, w) pseudo-labels of every target slice, UNLABELLED where unsure
    """
    ranks = hardware.ranks
    labelled: list[Tensor] = []
    labels: list[Tensor] = []
    for number, stream in enumerate(draw.supervised):
        purpose = f"labelled {number}" if number else "labelled"
        rows = draw_labelled(sets, draw, step, purpose)
        images = _take_family(sets, (stream,), rows, hardware)
        label = take_rows(sets.labels, ranks.share(rows), hardware).long()
        affine = _draw_affine(draw, images[0], len(rows), step, purpose)
        images, label = warp_labelled(images, label, ranks.share(affine), draw.size)
        labelled.append(hardware.put(images[0]))
        labels.append(label)

    unlabelled: dict[Stream, Tensor] = {}
    known: Tensor | None = None
    for family in (SOURCE_STREAMS, TARGET_STREAMS):
        streams = tuple(stream for stream in family if stream in draw.unlabelled)
        if not streams:
            continue
        every = np.arange(len(sets.images[family[0]]))
        rows = draw_rows(every, draw.unlabelled_count, step, draw.seed, family[0])
        images = _take_family(sets, streams, rows, hardware)
        affine = ranks.share(_draw_affine(draw, images[0], len(rows), step, family[0]))
        if pseudo is not None and family is TARGET_STREAMS:
            known = take_rows(pseudo, ranks.share(rows), hardware).to(hardware.device, torch.int64)
            images, known = warp_labelled(images, known, affine, draw.size)
        else:
            images = warp(images, affine, draw.size)
        unlabelled |= {s: hardware.put(image) for s, image in zip(streams, images, strict=True)}

    generator = step_generator(draw.seed, "style", step)

    def restyled(
        stream: Stream, images: Tensor, label: Tensor | None, references: Tensor | None
    ) -> Tensor:
        """In random styles; by structure where there are labels and the draw asks for it."""
        if draw.appearance is None:
            return randomise_style(images, generator, ranks, **draw.style.model_dump())
        look = draw.appearance[stream in TARGET_LIKE]
        return randomise_appearance(images, label, sets.classes, look, generator, ranks, references)

    labelled = [
        restyled(stream, images, label, unlabelled.get("target"))
        for stream, images, label in zip(draw.supervised, labelled, labels, strict=True)
    ]
    strong = None
    if draw.restyle_target:
        strong = restyled("target", unlabelled["target"], None, None)
        if draw.copy_paste > 0:
            of_paste = step_generator(draw.seed, "copy-paste", step)
            strong, pasted = paste(strong, labelled[0], labels[0], draw.copy_paste, of_paste, ranks)
            known = pasted if known is None else torch.where(pasted != UNLABELLED, pasted, known)
    return Batch(
        labelled=labelled, labels=labels, unlabelled=unlabelled, strong=strong, known=known
    )


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
        draw.augment,
        aspect=height / width,
        generator=step_generator(draw.seed, f"warp/{purpose}", step),
    )
