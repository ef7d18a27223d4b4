"""aligned images and their label -> the same, warped alike; batched, seeded, on the device."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812  (the field's habit)
from torch import Tensor

from leuda_train.config.schema import AugmentConfig


def random_affine(
    count: int, augment: AugmentConfig, *, aspect: float, generator: torch.Generator
) -> Tensor:
    """count random zooms, rotations and shifts: (B, 2, 3), output -> input coordinates.

    augment  how large they are at most; each is drawn uniformly, to either side
    aspect   height / width of the images, so that rotation does not shear
    """
    zoom = torch.empty(count).uniform_(*augment.scale, generator=generator)
    angle = torch.empty(count).uniform_(-1.0, 1.0, generator=generator)
    angle = angle * math.radians(augment.rotation_degrees)
    cos, sin, zero = torch.cos(angle) / zoom, torch.sin(angle) / zoom, torch.zeros(count)
    rows = [
        torch.stack([cos, -sin * aspect, zero], dim=1),
        torch.stack([sin / aspect, cos, zero], dim=1),
    ]
    affine = torch.stack(rows, dim=1)
    if augment.stretch > 1.0:  # drawn only where asked for: without, the draws are those of before
        exponent = torch.empty(count).uniform_(-0.5, 0.5, generator=generator)
        longer = augment.stretch**exponent
        affine[:, :, 0] *= longer[:, None]
        affine[:, :, 1] /= longer[:, None]
    if augment.translation > 0.0:  # the image is 2 wide in these coordinates
        shift = torch.empty(count, 2).uniform_(-2.0, 2.0, generator=generator)
        affine[:, :, 2] = shift * augment.translation
    return affine


def warp(
    images: Sequence[Tensor], affine: Tensor, size: tuple[int, int] | None = None
) -> list[Tensor]:
    """Warp every image (B, 1, H, W) of a family by one affine (B, 2, 3).

    Interpolates linearly and continues the border.

    size  (h, w) of what comes back, the same field of view on coarser pixels; else the images' own
    """
    family = torch.cat(list(images), dim=1)  # (B, n, H, W): one sampling for all
    return list(_sample(family, affine, "bilinear", size).split(1, dim=1))


def warp_labelled(
    images: Sequence[Tensor],
    labels: Tensor,
    affine: Tensor,
    size: tuple[int, int] | None = None,
) -> tuple[list[Tensor], Tensor]:
    """`warp`, and the family's label (B, H, W) by the same affine, by nearest neighbour."""
    plane = labels[:, None].to(images[0].dtype)
    warped = _sample(plane, affine, "nearest", size)[:, 0].to(labels.dtype)
    return warp(images, affine, size), warped


def _sample(images: Tensor, affine: Tensor, mode: str, size: tuple[int, int] | None) -> Tensor:
    shape = [*images.shape[:2], *(size or images.shape[2:])]
    grid = F.affine_grid(affine.to(images), shape, align_corners=False)
    return F.grid_sample(images, grid, mode=mode, padding_mode="border", align_corners=False)
