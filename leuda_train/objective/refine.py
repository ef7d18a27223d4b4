"""class probabilities + the slices they are of -> the same, drawn towards the slices' edges.

What a teacher finds of an organ in a new modality often stops in the middle of it. The organ goes
on where its grey values do: each pixel takes a weighted mean of its neighbours' probabilities, and
a neighbour weighs the more the more alike the two are, in units of the local spread of grey values.

After PAMR, pixel-adaptive mask refinement (Araslanov and Roth, CVPR 2020).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812  (the field's habit)
from torch import Tensor

REACHES = (1, 2, 4)  # pixels to the eight neighbours that are looked at
ALIKE = 0.4  # grey values this many local deviations apart are e times less alike
ROUNDS = 15


def follow_edges(q: Tensor, images: Tensor) -> Tensor:
    """(B, K, H, W) probabilities and their images (B, H, W) -> (B, K, H, W), sums over K kept."""
    height, width = images.shape[-2:]
    far = max(REACHES)
    offsets = [
        (far + row * reach, far + column * reach)
        for reach in REACHES
        for row in (-1, 0, 1)
        for column in (-1, 0, 1)
        if row or column
    ]

    def neighbours(padded: Tensor) -> list[Tensor]:
        return [padded[:, :, y : y + height, x : x + width] for y, x in offsets]

    around = torch.cat(neighbours(F.pad(images[:, None], (far,) * 4, mode="replicate")), dim=1)
    spread = torch.cat([around, images[:, None]], dim=1).std(dim=1, keepdim=True) + 1e-3
    weights = (-((around - images[:, None]) / (ALIKE * spread)).square()).softmax(dim=1)
    for _ in range(ROUNDS):
        padded = F.pad(q, (far,) * 4, mode="replicate")
        found = torch.zeros_like(q)
        for weight, neighbour in zip(weights.split(1, dim=1), neighbours(padded), strict=True):
            found += weight * neighbour
        q = found
    return q
