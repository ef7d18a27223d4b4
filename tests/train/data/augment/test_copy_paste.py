"""Pasted regions carry source pixels and source labels; elsewhere the target stays untouched."""

from __future__ import annotations

import torch

from leuda_train.data.augment.copy_paste import paste
from leuda_train.data.slices import UNLABELLED

TARGET = torch.zeros(32, 1, 24, 20)
SOURCE = torch.arange(1.0, 9.0).view(8, 1, 1, 1).expand(8, 1, 24, 20)
LABELS = torch.arange(1, 9).view(8, 1, 1).expand(8, 24, 20)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_pixels_and_labels_come_from_the_same_source_image():
    images, labels = paste(TARGET, SOURCE, LABELS, 1.0, seeded())
    pasted = labels != UNLABELLED
    assert torch.equal(images[:, 0][pasted], labels[pasted].float())
    assert (images[:, 0][~pasted] == 0).all()
    for i, (image, part) in enumerate(zip(labels, pasted, strict=True)):
        assert set(image[part].tolist()) == {i % 8 + 1}


def test_a_region_is_a_box_or_all_but_a_box_and_never_everything():
    _, labels = paste(TARGET, SOURCE, LABELS, 1.0, seeded(1))
    boxes = 0
    for region in labels != UNLABELLED:
        assert 0 < region.sum() < region.numel()
        inside = region if not region[0, 0] or not region[-1, -1] else ~region
        rows, columns = inside.any(1), inside.any(0)
        if torch.equal(inside, rows[:, None] & columns[None]):
            boxes += 1
            assert 0.25 < rows.sum() / 24 < 0.75
            assert 0.25 < columns.sum() / 20 < 0.75
    assert boxes > 24  # the others' boxes touch a corner and are told apart less simply


def test_the_probability_is_that_of_images():
    for probability in (0.0, 0.5, 1.0):
        _, labels = paste(TARGET.repeat(8, 1, 1, 1), SOURCE, LABELS, probability, seeded(2))
        share = (labels != UNLABELLED).any(2).any(1).float().mean()
        assert abs(share - probability) < 0.1


def test_the_seed_decides():
    one, same, other = (paste(TARGET, SOURCE, LABELS, 1.0, seeded(s))[1] for s in (3, 3, 4))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
