"""Warps: alike for all that belongs together, rigid up to zoom, exact for labels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from leuda_train.config.schema import AugmentConfig
from leuda_train.data.augment.affine import random_affine, warp_labelled

IDENTITY = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def affine(count: int = 4, *, scale=(0.9, 1.1), degrees: float = 10.0, aspect: float = 1.0):
    augment = AugmentConfig(scale=scale, rotation_degrees=degrees)
    return random_affine(count, augment, aspect=aspect, generator=generator())


def test_identity_leaves_images_and_labels_as_they_are():
    images = torch.randn(1, 1, 7, 12)
    labels = torch.randint(5, (1, 7, 12))
    (warped,), warped_labels = warp_labelled([images], labels, IDENTITY)
    torch.testing.assert_close(warped, images, atol=1e-5, rtol=0)
    assert torch.equal(warped_labels, labels)


def test_no_zoom_and_no_rotation_is_the_identity():
    torch.testing.assert_close(affine(1, scale=(1.0, 1.0), degrees=0.0), IDENTITY)


def test_all_images_of_a_family_and_the_label_are_warped_alike():
    labels = torch.zeros(4, 16, 16, dtype=torch.int64)
    labels[:, 3:9, 5:12] = 1
    image = labels[:, None].float()
    (first, second), warped_labels = warp_labelled([image, 2.0 * image + 1.0], labels, affine())
    torch.testing.assert_close(second, 2.0 * first + 1.0)
    # where linear interpolation is not in doubt, the label says the same
    sure = (first[:, 0] - 0.5).abs() > 0.49
    assert sure.float().mean() > 0.7
    assert torch.equal(first[:, 0][sure].round().long(), warped_labels[sure])
    assert not torch.equal(warped_labels, labels)


def test_rows_of_a_batch_are_warped_differently():
    drawn = affine(4)
    assert not torch.allclose(drawn[0], drawn[1])


def test_labels_keep_to_their_values():
    labels = torch.tensor([0, 3, 200])[torch.randint(3, (4, 16, 16), generator=generator())]
    _, warped = warp_labelled([torch.zeros(4, 1, 16, 16)], labels, affine(degrees=45.0))
    assert set(warped.unique().tolist()) <= {0, 3, 200}
    assert warped.dtype == labels.dtype


@pytest.mark.parametrize("shape", [(32, 32), (24, 60), (60, 24)])
def test_rotation_keeps_distances_in_pixels_on_images_of_any_shape(shape):
    height, width = shape
    drawn = affine(16, scale=(1.0, 1.0), degrees=180.0, aspect=height / width).double()
    to_pixels = torch.tensor([width / 2, height / 2], dtype=torch.float64)
    linear = drawn[:, :, :2] * to_pixels[:, None] / to_pixels[None, :]  # pixels -> pixels
    product = linear @ linear.transpose(1, 2)
    torch.testing.assert_close(product, torch.eye(2).double().expand(16, 2, 2), atol=1e-5, rtol=0)
    assert torch.allclose(torch.linalg.det(linear), torch.ones(16).double(), atol=1e-5)


def test_a_rotated_square_on_a_wide_image_keeps_its_area_and_sides():
    labels = torch.zeros(1, 64, 160, dtype=torch.int64)
    labels[:, 22:42, 70:90] = 1
    (cos, sin), aspect = (math.cos(0.6), math.sin(0.6)), 64 / 160
    turn = torch.tensor([[[cos, -sin * aspect, 0.0], [sin / aspect, cos, 0.0]]])
    _, turned = warp_labelled([torch.zeros(1, 1, 64, 160)], labels, turn)
    points = np.argwhere(turned[0].numpy())
    assert len(points) == pytest.approx(400, rel=0.03)
    spread = np.linalg.eigvalsh(np.cov(points.T))  # of a square: the same along every direction
    assert spread[1] / spread[0] == pytest.approx(1.0, rel=0.05)


def test_a_zoom_of_two_enlarges_twofold():
    labels = torch.zeros(1, 64, 64, dtype=torch.int64)
    labels[:, 28:36, 28:36] = 1
    twice = affine(1, scale=(2.0, 2.0), degrees=0.0)
    _, zoomed = warp_labelled([torch.zeros(1, 1, 64, 64)], labels, twice)
    assert zoomed.sum().item() == 16 * 16


def test_zoom_and_rotation_stay_within_their_ranges():
    drawn = affine(500)
    zoom = 1.0 / torch.linalg.det(drawn[:, :, :2]).sqrt()
    angle = torch.rad2deg(torch.atan2(drawn[:, 1, 0], drawn[:, 0, 0]))
    assert 0.9 <= zoom.min() < 0.92
    assert 1.08 < zoom.max() <= 1.1 + 1e-6
    assert -10.001 <= angle.min() < -9
    assert 9 < angle.max() <= 10.001


def test_the_same_seed_draws_the_same_warp():
    assert torch.equal(affine(), affine())


def test_a_stretch_changes_the_shape_and_a_translation_the_place():
    draw = lambda **more: random_affine(
        64,
        AugmentConfig(scale=(1.0, 1.0), rotation_degrees=0.0, **more),
        aspect=1.0,
        generator=torch.Generator().manual_seed(0),
    )
    plain, stretched, moved = draw(), draw(stretch=1.44), draw(translation=0.1)
    assert torch.allclose(plain[:, :, :2], torch.eye(2).expand(64, 2, 2))
    ratio = stretched[:, 0, 0] / stretched[:, 1, 1]
    assert ratio.max() < 1.44
    assert ratio.min() > 1 / 1.44
    assert ratio.std() > 0.05
    torch.testing.assert_close(stretched[:, 0, 0] * stretched[:, 1, 1], torch.ones(64))
    assert (plain[:, :, 2] == 0).all()
    assert 0.1 < moved[:, :, 2].abs().max() <= 0.2
