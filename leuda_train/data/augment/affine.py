"""aligned images and their label -> the same, warped alike; batched, seeded, on the device."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812  (the field's habit)
from torch import Tensor


def random_affine(
    count: int,
    *,
    scale: tuple[float, float],
    rotation_degrees: float,
    aspect: float,
    generator: torch.Generator,
) -> Tensor:
    """count random zooms and rotations about the centre: (B, 2, 3), output -> input coordinates.

    scale, rotation_degrees  drawn uniformly from [scale[0], scale[1]] and ±rotation_degrees
    aspect                   height / width of the images, so that rotation does not shear
    """
    zoom = torch.empty(count).uniform_(*scale, generator=generator)
    angle = torch.empty(count).uniform_(-1.0, 1.0, generator=generator)
    angle = angle * math.radians(rotation_degrees)
    cos, sin, zero = torch.cos(angle) / zoom, torch.sin(angle) / zoom, torch.zeros(count)
    rows = [
        torch.stack([cos, -sin * aspect, zero], dim=1),
        torch.stack([sin / aspect, cos, zero], dim=1),
    ]
    return torch.stack(rows, dim=1)


def warp(images: Sequence[Tensor], affine: Tensor) -> list[Tensor]:
    """Warp every image (B, 1, H, W) of a family by one affine (B, 2, 3).

    Interpolates linearly and continues the border.
    """
    family = torch.cat(list(images), dim=1)  # (B, n, H, W): one sampling for all
    return list(_sample(family, affine, "bilinear").split(1, dim=1))


def warp_labelled(
    images: Sequence[Tensor], labels: Tensor, affine: Tensor
) -> tuple[list[Tensor], Tensor]:
    """`warp`, and the family's label (B, H, W) by the same affine, by nearest neighbour."""
    plane = labels[:, None].to(images[0].dtype)
    return warp(images, affine), _sample(plane, affine, "nearest")[:, 0].to(labels.dtype)


def _sample(images: Tensor, affine: Tensor, mode: str) -> Tensor:
    grid = F.affine_grid(affine.to(images), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode=mode, padding_mode="border", align_corners=False)
