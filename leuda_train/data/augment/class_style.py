"""images and their labels -> the same anatomy, every labelled structure in a style of its own.

A network that has seen one modality takes an organ by its grey value. Here no grey value means
anything: the grey scale is bent at random, in one part of the picture otherwise than in another,
and each labelled structure gets a brightness and a contrast of its own, uneven within it. What is
left to learn is shape, place and texture, which the other modality shares.

The idea is SLAug's (Su et al., AAAI 2023: location-scale augmentation by class, fused with a
globally restyled image). Ours differs: a structure's brightness is drawn over the whole range,
images fuse by chance and by smooth random masks instead of by saliency, and random shallow
networks (`style.random_convolution`) are among the styles.

Images are (B, 1, H, W), labels (B, H, W), values of any range; what comes back has about mean 0 and
a deviation between 0.4 and 1.5, as the slices of a z-scored scan have.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812  (the field's habit)
from torch import Tensor

from leuda_train.config.appearance import AppearanceConfig
from leuda_train.data.augment.fourier import swap_low_frequencies
from leuda_train.data.augment.style import random_convolution
from leuda_train.loop.ranks import ALONE, Ranks

KNOTS = 7  # of a random intensity curve
DARK_AIR = 0.75  # how often the darkest value stays the darkest: scanners see air as black
INVERTED = 0.35  # share of the monotone curves that fall
OWN_STYLE = 0.75  # share of an image's structures that get a style of their own
CONTRAST = (-1.2, 1.3)  # logarithm of the factor by which its texture fades or stands out
OWN_FIELD = 0.5  # strength of the unevenness within it: coils light up one lobe more than another
OWN_CELLS = 4  # of that field
SOFT_EDGE = 0.6  # pixels by which a structure's style fades into its surroundings
REACH = (0.02, 0.1)  # of the borrowed low frequencies, as a share of the spectrum's smaller side
STAYS_SWAPPED = 0.6  # share of the images with borrowed frequencies that are not restyled further
FIELD_CELLS = 3  # of the random field that stands for uneven coils
PATCH_CELLS = 4  # of the random mask that says which curve holds where


class Draws:
    """Random numbers for the joint batch of all processes, of which each gets its images' share."""

    def __init__(
        self,
        count: int,
        generator: torch.Generator,
        ranks: Ranks = ALONE,
        device: torch.device | None = None,
    ) -> None:
        self.count, self.generator, self.ranks, self.device = count, generator, ranks, device

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """(B, *shape) in [low, high)."""
        drawn = torch.rand(self.count * self.ranks.size, *shape, generator=self.generator)
        return (low + (high - low) * self.ranks.share(drawn)).to(self.device)

    def normal(self, *shape: int) -> Tensor:
        """(B, *shape) of mean 0 and deviation 1."""
        drawn = torch.randn(self.count * self.ranks.size, *shape, generator=self.generator)
        return self.ranks.share(drawn).to(self.device)

    def smooth(self, cells: int, height: int, width: int, maps: int = 1) -> Tensor:
        """(B, maps, H, W): random values at cells x cells places, interpolated between."""
        return F.interpolate(
            self.normal(maps, cells, cells), (height, width), mode="bicubic", align_corners=True
        )

    def happens(self, probability: float) -> Tensor:
        """(B, 1, 1, 1) of bool."""
        return self.uniform(0.0, 1.0, 1, 1, 1) < probability


def randomise_appearance(  # noqa: PLR0913  (images, and what styles are drawn from)
    images: Tensor,
    labels: Tensor | None,
    classes: int,
    config: AppearanceConfig,
    generator: torch.Generator,
    ranks: Ranks = ALONE,
    references: Tensor | None = None,
) -> Tensor:
    """Restyle each image on its own.

    Args:
        images: (B, 1, H, W).
        labels: (B, H, W) class numbers; None for images without, which get no style by structure.
        classes: K, with the background.
        config: How often each kind of change is made.
        generator: The random numbers, drawn for the joint batch.
        ranks: Of which process these images are the share.
        references: (n, 1, H, W) images of the other domain, to borrow low frequencies from; without
            them `config.fourier` does nothing.

    Returns:
        (B, 1, H, W), mean about 0, deviation 0.4 to 1.5.
    """
    draws = Draws(len(images), generator, ranks, images.device)
    plain = draws.happens(config.plain)
    if references is not None and config.fourier > 0:
        partner = torch.arange(len(images), device=images.device) % len(references)
        swapped = swap_low_frequencies(images, references[partner], draws.uniform(*REACH))
        chosen = draws.happens(config.fourier)
        images = torch.where(chosen, swapped, images)
        plain = plain | (chosen & draws.happens(STAYS_SWAPPED))
    grey = unit_range(images)
    styled = torch.where(draws.happens(config.curve), _patchwork(grey, config, draws), grey)
    if labels is not None and config.structures > 0:
        styled = _by_structure(styled, grey, labels, classes, config.structures, draws)
    if config.convolution > 0:
        convolved = random_convolution(styled, generator, ranks)
        styled = torch.where(
            draws.happens(config.convolution), unit_range(_clipped(convolved)), styled
        )
    return scanned(torch.where(plain, grey, styled), torch.where(plain, 0.4, 1.0), draws)


def unit_range(images: Tensor) -> Tensor:
    """Each image's own range -> 0 to 1."""
    over = (1, 2, 3)
    low, high = images.amin(over, keepdim=True), images.amax(over, keepdim=True)
    return (images - low) / (high - low).clamp_min(1e-6)


def random_curves(grey: Tensor, free: float, draws: Draws) -> Tensor:
    """Bend each image's grey scale, 0 to 1, by a piecewise linear curve through random knots.

    free  share of the curves that may rise and fall; the others are monotone
    """
    steps = draws.uniform(0.0, 1.0, KNOTS).square().cumsum(dim=1)
    rising = (steps - steps[:, :1]) / (steps[:, -1:] - steps[:, :1]).clamp_min(1e-6)
    low, high = draws.uniform(0.0, 0.3, 1), draws.uniform(0.6, 1.0, 1)
    rising = low + rising * (high - low)
    monotone = torch.where(draws.uniform(0.0, 1.0, 1) < INVERTED, 1.0 - rising, rising)
    anyhow = draws.uniform(0.0, 1.0, KNOTS)
    low, high = anyhow.amin(dim=1, keepdim=True), anyhow.amax(dim=1, keepdim=True)
    anyhow = (anyhow - low) / (high - low).clamp_min(1e-6)
    knots = torch.where(draws.uniform(0.0, 1.0, 1) < free, anyhow, monotone)
    dark_air = draws.uniform(0.0, 1.0, 1) < DARK_AIR
    first = torch.where(dark_air, torch.zeros_like(knots[:, :1]), knots[:, :1])
    knots = torch.cat([first, knots[:, 1:]], dim=1)
    place = grey.clamp(0.0, 1.0) * (KNOTS - 1)
    below = place.floor().clamp(max=KNOTS - 2)
    at = below.long().flatten(1)
    left, right = (knots.gather(1, index).view_as(grey) for index in (at, at + 1))
    return left + (right - left) * (place - below)


def _patchwork(grey: Tensor, config: AppearanceConfig, draws: Draws) -> Tensor:
    """One random curve for the whole image or, now and then, two that hold in different places."""
    one, other = (random_curves(grey, config.free_curves, draws) for _ in range(2))
    share = torch.sigmoid(4.0 * draws.smooth(PATCH_CELLS, *grey.shape[2:]))
    mixed = share * one + (1.0 - share) * other
    return torch.where(draws.happens(config.patchwork), mixed, one)


def _by_structure(
    styled: Tensor, grey: Tensor, labels: Tensor, classes: int, probability: float, draws: Draws
) -> Tensor:
    """Give most structures a brightness and a contrast of their own, in some of the images."""
    masks = F.one_hot(labels, classes).movedim(-1, 1)[:, 1:].to(grey)  # (B, K - 1, H, W)
    pixels = masks.sum((2, 3), keepdim=True).clamp_min(1.0)
    mean = (grey * masks).sum((2, 3), keepdim=True) / pixels
    shape = (classes - 1, 1, 1)
    brightness, contrast = draws.uniform(0.0, 1.0, *shape), draws.uniform(*CONTRAST, *shape).exp()
    contrast = torch.where(draws.uniform(0.0, 1.0, *shape) < 0.3, -contrast, contrast)
    chosen = draws.uniform(0.0, 1.0, *shape) < OWN_STYLE
    chosen = (chosen & draws.happens(probability)).to(grey)
    share = blurred(masks, SOFT_EDGE) * chosen
    height, width = grey.shape[2:]
    field = draws.smooth(OWN_CELLS, height, width, maps=classes - 1)
    brightness = brightness * (field * draws.uniform(0.0, OWN_FIELD, *shape)).exp()
    own = (grey - mean) * contrast + brightness
    return styled * (1.0 - share.sum(1, keepdim=True)) + (own * share).sum(1, keepdim=True)


def scanned(grey: Tensor, strength: Tensor | float, draws: Draws) -> Tensor:
    """What scanners add: an uneven field, blur, noise; and what normalisation leaves: gain, shift.

    strength  0 to 1, of all of them; a number or (B, 1, 1, 1)
    """

    def part(low: float, high: float) -> Tensor:
        return draws.uniform(low, high, 1, 1, 1) * strength

    field = draws.smooth(FIELD_CELLS, *grey.shape[2:]) * part(0.0, 0.3)
    image = unit_range(grey) * field.exp()
    image = torch.where(part(0.0, 1.0) > 0.75, blurred(image, 0.8), image)
    deviation, mean = torch.std_mean(image, (1, 2, 3), keepdim=True)
    image = (image - mean) / deviation.clamp_min(1e-3)
    image = image * part(-0.9, 0.4).exp() + part(-0.4, 0.4)
    return image + draws.normal(*grey.shape[1:]) * part(0.0, 0.12)


def blurred(images: Tensor, deviation: float) -> Tensor:
    """Gaussian blur of (B, C, H, W), within two pixels; the border is continued."""
    offsets = torch.arange(-2.0, 3.0, device=images.device)
    kernel = torch.exp(-offsets.square() / (2.0 * deviation**2)).to(images)
    kernel = (kernel / kernel.sum()).view(1, 1, 1, 5).expand(images.shape[1], 1, 1, 5)
    groups = images.shape[1]
    across = F.conv2d(F.pad(images, (2, 2, 0, 0), mode="replicate"), kernel, groups=groups)
    down = F.pad(across, (0, 0, 2, 2), mode="replicate")
    return F.conv2d(down, kernel.transpose(2, 3), groups=groups)


def _clipped(images: Tensor) -> Tensor:
    """Each image z-scored, without the few extreme pixels that a convolution makes at borders."""
    deviation, mean = torch.std_mean(images, (1, 2, 3), keepdim=True)
    return ((images - mean) / deviation.clamp_min(1e-4)).clamp(-2.2, 3.0)
