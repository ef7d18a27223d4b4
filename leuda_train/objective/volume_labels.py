"""teacher + slices by scan -> pseudo-labels of whole scans, without islands.

A slice alone does not tell a stray island from an organ; a scan does, because each structure is one
piece. So the teacher labels whole scans every few epochs, islands become background, and what the
teacher is unsure of stays unlabelled. Islands that are nearly as large as the largest piece are
unlabelled, too: either may be the organ.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn

from leuda_deploy.inference.refine.edges import follow_edges
from leuda_train.data.aligned_sets import take_rows
from leuda_train.data.slices import UNLABELLED
from leuda_train.loop.hardware import Hardware
from leuda_train.networks.batchnorm import reestimate
from leuda_train.objective.class_prior import class_weights

AT_ONCE = 32  # slices read by the teacher at a time
RIVAL = 0.5  # share of the largest piece from which on a piece may be the organ itself


@torch.no_grad()
def label_volumes(  # noqa: PLR0913  (three of them are keys of the config)
    teacher: nn.Module,
    images: NDArray[np.float32] | Tensor,
    scans: NDArray[np.int64],
    wanted: Tensor,
    *,
    strength: float,
    floor: float,
    refine: bool = False,
    hardware: Hardware,
) -> Tensor:
    """Pseudo-labels of every slice of some scans.

    Args:
        teacher: (B, 1, h, w) -> (scores (B, K, h, w), features). Its batch norms are re-estimated
            on the images; it is left in the mode that it came in.
        images: (N, h, w), slices of a scan in order.
        scans: (N,) which scan each slice is of.
        wanted: (K,) the share of pixels that each class has in the source's labels.
        strength: 0 to 1, how far classes are weighted to have it; see `class_weights`.
        refine: Whether the probabilities first follow the slices' edges; see
            `inference/refine/edges.py`.
        floor: Pixels of a lower confidence stay unlabelled; 0: each is labelled, islands that may
            be the organ too.
        hardware: Where the teacher runs.

    Returns:
        (N, h, w) uint8 on the CPU, UNLABELLED where unsure.
    """

    def batches(rows: NDArray[np.int64]) -> Iterator[Tensor]:
        for part in np.array_split(rows, max(1, round(len(rows) / AT_ONCE))):
            yield hardware.put(take_rows(images, part, hardware)[:, None])

    training = teacher.training
    rows = np.arange(len(images))
    with hardware.autocast():
        # mixed scans: the statistics of a batch are to be those of the domain
        reestimate(teacher, teacher, batches(np.random.default_rng(0).permutation(rows)))
        q = torch.cat([teacher(part)[0].float().softmax(1).cpu() for part in batches(rows)])
    teacher.train(training)
    if refine:
        for part in np.array_split(rows, max(1, round(len(rows) / AT_ONCE))):
            read = take_rows(images, part, hardware).float().cpu().numpy()
            for row, image in zip(part, read, strict=True):
                follow_edges(q[row].numpy(), image)  # in place
    q *= (class_weights(wanted.cpu(), q.mean((0, 2, 3))) ** strength)[:, None, None]
    confidence, best = (q / q.sum(dim=1, keepdim=True)).max(dim=1)
    found = best.numpy().astype(np.uint8)
    labels = np.where(confidence.numpy() < floor, np.uint8(UNLABELLED), found)
    for scan in np.unique(scans):
        own = scans == scan
        labels[own] = without_islands(labels[own], found[own], q.shape[1])
    if floor == 0:
        labels = np.where(labels == UNLABELLED, found, labels)
    return torch.from_numpy(labels)


def agreement(first: NDArray[np.uint8], second: NDArray[np.uint8], classes: int) -> float:
    """Mean Dice between two labellings of a scan, over the structures that either of them has.

    0 where neither has any: they agree on nothing that could be learned.
    """
    dice = []
    for number in range(1, classes):
        in_first, in_second = first == number, second == number
        pixels = int(in_first.sum() + in_second.sum())
        if pixels:
            dice.append(2.0 * int((in_first & in_second).sum()) / pixels)
    return float(np.mean(dice)) if dice else 0.0


def without_islands(
    labels: NDArray[np.uint8], found: NDArray[np.uint8], classes: int
) -> NDArray[np.uint8]:
    """Labels (D, h, w) of a scan where only the largest piece of each class in `found` is kept.

    Smaller pieces become background; those of at least RIVAL of the largest, unlabelled.
    """
    cleaned = labels.copy()
    for number in range(1, classes):
        pieces, count = ndimage.label(found == number, structure=np.ones((3, 3, 3)))
        if count < 2:
            continue
        sizes = np.bincount(pieces.ravel())
        sizes[0] = 0
        largest = int(sizes.argmax())
        rival = sizes >= RIVAL * sizes[largest]
        island = ~rival
        rival[largest] = island[0] = False
        cleaned[island[pieces]] = 0
        cleaned[rival[pieces]] = UNLABELLED
    return cleaned
