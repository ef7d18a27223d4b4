"""Random styles keep anatomy and moments; the Fourier swap takes amplitude and leaves phase."""

from __future__ import annotations

import numpy as np
import torch

from leuda_train.data.augment.fourier import swap_amplitude, swap_low_frequencies
from leuda_train.data.augment.style import random_convolution, random_curve, randomise_style
from leuda_train.stages.translated_sets import fourier_sets


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


IMAGES = torch.randn(6, 1, 24, 20, generator=seeded(7)) * 3 + 5
OFF = {"curve": 0.0, "convolution": 0.0, "noise": 0.0}


def test_everything_off_changes_nothing():
    assert randomise_style(IMAGES, seeded(), **OFF) is IMAGES


def test_the_same_seed_gives_the_same_style_and_another_another():
    on = {"curve": 0.5, "convolution": 0.5, "noise": 0.1}
    first = randomise_style(IMAGES, seeded(1), **on)
    assert torch.equal(first, randomise_style(IMAGES, seeded(1), **on))
    assert not torch.equal(first, randomise_style(IMAGES, seeded(2), **on))


def test_curves_and_convolutions_keep_mean_and_deviation_of_each_image():
    for change in (random_curve, random_convolution):
        found = change(IMAGES, seeded(3))
        assert not torch.allclose(found, IMAGES, atol=0.1)
        over = (1, 2, 3)
        torch.testing.assert_close(found.mean(over), IMAGES.mean(over), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(found.std(over), IMAGES.std(over), rtol=1e-3, atol=1e-3)


def test_a_curve_looks_at_intensity_alone():
    image = torch.tensor([0.0, 1.0, 0.5, 0.5, 0.25, 1.0]).reshape(1, 1, 2, 3)
    found = random_curve(image, seeded(5)).flatten()
    assert found[2] == found[3]
    assert found[1] == found[5]
    assert found[0] != found[1]


def test_images_are_styled_on_their_own():
    alone = random_convolution(IMAGES[:1].repeat(4, 1, 1, 1), seeded(2))
    assert not torch.allclose(alone[0], alone[1], atol=1e-2)


def test_noise_has_at_most_the_stated_deviation():
    found = randomise_style(IMAGES, seeded(), **{**OFF, "noise": 0.5}) - IMAGES
    deviation = found.std((1, 2, 3))
    assert 0.01 < deviation.max() < 0.6
    assert deviation.min() < deviation.max()


def test_swapping_with_itself_gives_the_image_back():
    images = IMAGES[:, 0].numpy()
    np.testing.assert_allclose(swap_amplitude(images, images, 0.2), images, atol=1e-4)


def test_the_swap_takes_low_amplitudes_and_leaves_phase_and_high_frequencies():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, 16, 16)).astype(np.float32)
    references = rng.normal(size=(2, 16, 16)).astype(np.float32) + 4
    found = np.fft.fft2(swap_amplitude(images, references, 0.1))  # reach 1: -1, 0, 1
    own, theirs = np.fft.fft2(images), np.fft.fft2(references)
    np.testing.assert_allclose(np.abs(found[:, :2, :2]), np.abs(theirs[:, :2, :2]), rtol=1e-3)
    np.testing.assert_allclose(found[:, 4:12, 4:12], own[:, 4:12, 4:12], rtol=1e-2, atol=1e-3)
    np.testing.assert_allclose(np.angle(found[:, 1, 1]), np.angle(own[:, 1, 1]), atol=1e-3)


def test_fourier_sets_follow_the_seed_and_are_aligned_with_their_slices():
    from support import tiny

    slices, config = tiny.make_slices(), tiny.config().translation
    first = fourier_sets(slices, config, seed=0)
    assert {name: images.shape for name, images in first.items()} == {
        "source_as_target": slices.source.shape,
        "source_cycled": slices.source.shape,
        "target_as_source": slices.target.shape,
        "target_cycled": slices.target.shape,
    }
    for name, images in fourier_sets(slices, config, seed=0).items():
        np.testing.assert_array_equal(images, first[name])


def test_the_swap_within_a_batch_is_the_swap_of_arrays():
    images, references = torch.randn(2, 3, 1, 24, 20, generator=seeded(1)).unbind()
    found = swap_low_frequencies(images, references, torch.tensor([0.05, 0.1, 0.3]))
    for i, radius in enumerate((0.05, 0.1, 0.3)):
        expected = swap_amplitude(images[i].numpy(), references[i].numpy(), radius)
        np.testing.assert_allclose(found[i].numpy(), expected, atol=1e-4)
