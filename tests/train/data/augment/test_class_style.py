"""Random appearance: anatomy stays, structures change brightness, everything follows the seed."""

from __future__ import annotations

import pytest
import torch
from support import tiny

from leuda_train.config.appearance import AppearanceConfig
from leuda_train.data.augment.class_style import (
    Draws,
    blurred,
    random_curves,
    randomise_appearance,
    scanned,
    unit_range,
)

OFF = AppearanceConfig(curve=0, patchwork=0, structures=0, convolution=0, plain=0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scene(count: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """Grey 0.5 throughout but for a dark and a bright corner, with two structures of 8 x 8."""
    images = torch.full((count, 1, 32, 32), 0.5)
    images[..., 0, 0], images[..., -1, -1] = 0.0, 1.0
    labels = torch.zeros(count, 32, 32, dtype=torch.long)
    labels[:, 4:12, 4:12], labels[:, 18:26, 18:26] = 1, 2
    return images, labels


def contrast(images: torch.Tensor, labels: torch.Tensor, number: int) -> torch.Tensor:
    """How far each image's structure differs in brightness from what is no structure."""
    level = lambda mask: (images[:, 0] * mask).sum((1, 2)) / mask.sum((1, 2))
    return (level(labels == number) - level(labels == 0)).abs()


def test_the_seed_decides():
    images, labels = scene()
    look = AppearanceConfig(structures=1.0)
    made = [
        randomise_appearance(
            images,
            labels,
            3,
            look,
            seeded(s),
        )
        for s in (1, 1, 2)
    ]
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_only_labels_tell_a_structure_from_tissue_as_bright():
    images, labels = scene(64)
    own = OFF.model_copy(update={"structures": 1.0})
    without = randomise_appearance(images, labels, 3, OFF, seeded(3))
    found = randomise_appearance(images, labels, 3, own, seeded(3))
    for number in (1, 2):
        # many structures stand out now; before, unevenness alone told them from the rest
        stands_out = [(contrast(image, labels, number) > 1.5).sum() for image in (without, found)]
        assert stands_out[1] > 2 * stands_out[0]
        assert stands_out[1] > 16


def test_structures_of_an_image_differ_among_themselves():
    images, labels = scene()
    found = randomise_appearance(
        images, labels, 3, OFF.model_copy(update={"structures": 1.0}), seeded(4)
    )
    assert (contrast(found, labels, 1) - contrast(found, labels, 2)).abs().median() > 0.1


def test_what_comes_back_is_about_z_scored():
    images = torch.randn(32, 1, 24, 24, generator=seeded(5)) * 40 + 300
    found = randomise_appearance(images, None, 3, AppearanceConfig(), seeded(6))
    assert found.isfinite().all()
    assert found.mean((1, 2, 3)).abs().max() < 0.6
    assert ((found.std((1, 2, 3)) > 0.35) & (found.std((1, 2, 3)) < 1.7)).all()


def test_monotone_curves_keep_or_reverse_the_order_of_grey_values():
    grey = torch.linspace(0, 1, 50).reshape(1, 1, 1, 50).expand(40, 1, 1, 50).contiguous()
    steps = random_curves(grey, 0.0, Draws(40, seeded(7))).diff(dim=-1)[..., 10:]  # past dark air
    rising, falling = (steps >= 0).all(-1).flatten(), (steps <= 0).all(-1).flatten()
    assert (rising | falling).all()
    assert rising.any()
    assert falling.any()


def test_free_curves_rise_and_fall():
    grey = torch.linspace(0, 1, 50).reshape(1, 1, 1, 50).expand(40, 1, 1, 50).contiguous()
    steps = random_curves(grey, 1.0, Draws(40, seeded(8))).diff(dim=-1)
    both = (steps > 0).any(-1) & (steps < 0).any(-1)
    assert both.float().mean() > 0.8


def test_images_without_any_contrast_stay_finite():
    flat = torch.zeros(4, 1, 16, 16)
    assert randomise_appearance(flat, None, 2, AppearanceConfig(), seeded()).isfinite().all()


def test_a_weaker_scanner_changes_less():
    grey = unit_range(torch.randn(64, 1, 24, 24, generator=seeded(9)))
    clean = scanned(grey, 0.0, Draws(64, seeded(1)))
    change = [
        (scanned(grey, strength, Draws(64, seeded(1))) - clean).abs().mean()
        for strength in (0.3, 1.0)
    ]
    assert 0 < change[0] < change[1]


def test_blurring_keeps_a_flat_image_and_spreads_a_point():
    assert torch.allclose(blurred(torch.ones(1, 2, 8, 8), 0.8), torch.ones(1, 2, 8, 8))
    point = torch.zeros(1, 1, 9, 9)
    point[..., 4, 4] = 1.0
    spread = blurred(point, 0.8)
    assert spread.sum() == pytest.approx(1.0, abs=1e-5)
    assert spread[..., 4, 4] < 0.5
    assert torch.allclose(spread, spread.transpose(2, 3))


def test_processes_draw_their_shares_of_the_joint_styles():
    from types import SimpleNamespace

    images, labels = scene(8)
    look = OFF.model_copy(update={"curve": 1.0, "structures": 1.0})
    joint = randomise_appearance(images, labels, 3, look, seeded(2))
    half = lambda rank: SimpleNamespace(
        size=2, share=lambda drawn, dim=0: drawn.chunk(2, dim)[rank]
    )
    parts = [
        randomise_appearance(images[:4], labels[:4], 3, look, seeded(2), half(rank))
        for rank in (0, 1)
    ]
    assert torch.allclose(torch.cat(parts), joint, atol=1e-5)


def test_a_share_above_one_is_refused():
    from leuda_deploy.errors import InputError

    with pytest.raises(InputError, match=r"appearance\.curve"):
        tiny.config(appearance={"curve": 1.5})


def test_low_frequencies_are_borrowed_only_where_there_are_references():
    images, labels = scene(8)
    look = OFF.model_copy(update={"fourier": 1.0})
    references = torch.randn(3, 1, 32, 32, generator=seeded(5)) + torch.linspace(0, 9, 32)
    without = randomise_appearance(images, labels, 3, look, seeded(6))
    found = randomise_appearance(images, labels, 3, look, seeded(6), references=references)
    ramp = lambda image: (image[:, 0, :, 24:].mean((1, 2)) - image[:, 0, :, :8].mean((1, 2))).abs()
    assert ramp(found).mean() > 2 * ramp(without).mean()


def test_a_structure_is_not_as_bright_everywhere():
    images, labels = scene(64)
    own = OFF.model_copy(update={"structures": 1.0})
    made = randomise_appearance(images, labels, 3, own, seeded())
    inside = made[:, 0, 4:12, 4:12].flatten(1)  # one grey value before
    # more than the noise and the field over the whole image leave
    plain = randomise_appearance(images, labels, 3, OFF, seeded())[:, 0, 4:12, 4:12].flatten(1)
    assert inside.std(dim=1).median() > 1.5 * plain.std(dim=1).median()
