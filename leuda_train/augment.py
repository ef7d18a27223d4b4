"""aligned images and their label -> the same, warped alike; batched, seeded, on the device."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812  (the field's habit)
from torch import Tensor

from leuda_train.ranks import ALONE, Ranks


def random_affine(
    count: int,
    *,
    scale: tuple[float, float],
    rotation_degrees: float,
    aspect: float,
    generator: torch.Generator,
    stretch: float = 1.0,
    translation: float = 0.0,
) -> Tensor:
    """count random zooms, rotations and shifts: (B, 2, 3), output -> input coordinates.

    scale, rotation_degrees  drawn uniformly from [scale[0], scale[1]] and ±rotation_degrees
    aspect                   height / width of the images, so that rotation does not shear
    stretch                  the two axes' zooms differ by a factor of up to this; 1 keeps shapes
    translation              largest shift along either axis, as a share of the image
    """
    zoom = torch.empty(count).uniform_(*scale, generator=generator)
    angle = torch.empty(count).uniform_(-1.0, 1.0, generator=generator)
    angle = angle * math.radians(rotation_degrees)
    cos, sin, zero = torch.cos(angle) / zoom, torch.sin(angle) / zoom, torch.zeros(count)
    rows = [
        torch.stack([cos, -sin * aspect, zero], dim=1),
        torch.stack([sin / aspect, cos, zero], dim=1),
    ]
    affine = torch.stack(rows, dim=1)
    if stretch > 1.0:  # drawn only where asked for: without, the draws are those of before
        exponent = torch.empty(count).uniform_(-0.5, 0.5, generator=generator)
        longer = stretch**exponent
        affine[:, :, 0] *= longer[:, None]
        affine[:, :, 1] /= longer[:, None]
    if translation > 0.0:  # the image is 2 wide in these coordinates
        shift = torch.empty(count, 2).uniform_(-2.0, 2.0, generator=generator)
        affine[:, :, 2] = shift * translation
    return affine


def warp(
    images: Sequence[Tensor],
    labels: Tensor | None,
    affine: Tensor,
    size: tuple[int, int] | None = None,
) -> tuple[list[Tensor], Tensor | None]:
    """Warp every image (B, 1, H, W) of a family, and its label (B, H, W), by one affine (B, 2, 3).

    Images are interpolated linearly, labels by nearest neighbour; the border is continued.

    size  (h, w) of what comes back, the same field of view on coarser pixels; else the images' own
    """
    family = torch.cat(list(images), dim=1)  # (B, n, H, W): one sampling for all
    shape = [*family.shape[:2], *(size or family.shape[2:])]
    grid = F.affine_grid(affine.to(family), shape, align_corners=False)
    family = F.grid_sample(family, grid, padding_mode="border", align_corners=False)
    warped = list(family.split(1, dim=1))
    if labels is None:
        return warped, None
    plane = labels[:, None].to(family.dtype)
    plane = F.grid_sample(plane, grid, mode="nearest", padding_mode="border", align_corners=False)
    return warped, plane[:, 0].to(labels.dtype)


def teacher_noise(
    streams: Sequence[Tensor],
    std: float,
    limit: float,
    generator: torch.Generator,
    ranks: Ranks = ALONE,
) -> Tensor:
    """N(0, std²) clipped to ±limit, (n, B, 1, H, W) for n streams: for the intra-domain teacher."""
    count, *image = streams[0].shape
    shape = (len(streams), count * ranks.size, *image)
    noise = torch.randn(shape, generator=generator, device=generator.device)
    return (ranks.share(noise, dim=1) * std).clamp_(-limit, limit).to(streams[0])
