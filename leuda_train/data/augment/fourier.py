"""images + references of the other domain -> the images with the references' low frequencies.

FDA (Yang and Soatto, CVPR 2020): the amplitude of the low frequencies carries the style, the phase
the anatomy. A translator that needs no training.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BLOCK = 64  # images transformed at a time


def swap_amplitude(
    images: NDArray[np.float32], references: NDArray[np.float32], radius: float
) -> NDArray[np.float32]:
    """Give each image (N, h, w) the low-frequency amplitude of its reference (N, h, w).

    radius  half the side of the swapped square, as a share of the spectrum's smaller side
    """
    swapped = np.empty(images.shape, np.float32)
    for start in range(0, len(images), BLOCK):  # spectra take many times what the images do
        part = slice(start, start + BLOCK)
        swapped[part] = _swapped(images[part], references[part], radius)
    return swapped


def _swapped(
    images: NDArray[np.float32], references: NDArray[np.float32], radius: float
) -> NDArray[np.float32]:
    height, width = images.shape[-2:]
    reach = int(radius * min(height, width))
    spectrum = np.fft.fftshift(np.fft.fft2(images), axes=(-2, -1))
    reference = np.fft.fftshift(np.fft.fft2(references), axes=(-2, -1))
    amplitude, phase = np.abs(spectrum), np.angle(spectrum)
    rows = slice(height // 2 - reach, height // 2 + reach + 1)
    columns = slice(width // 2 - reach, width // 2 + reach + 1)
    amplitude[..., rows, columns] = np.abs(reference)[..., rows, columns]
    swapped = np.fft.ifftshift(amplitude * np.exp(1j * phase), axes=(-2, -1))
    return np.fft.ifft2(swapped).real.astype(np.float32)


def swap_low_frequencies(images: Tensor, references: Tensor, radius: Tensor) -> Tensor:
    """`swap_amplitude` within a batch (B, 1, H, W), each image with a radius (B,) of its own."""
    height, width = images.shape[-2:]
    reach = (radius.to(images.device) * min(height, width)).floor()[:, None, None, None]
    rows = torch.fft.fftfreq(height, 1.0 / height, device=images.device).abs()
    columns = torch.fft.fftfreq(width, 1.0 / width, device=images.device).abs()
    low = torch.maximum(rows[:, None], columns) <= reach  # (B, 1, H, W)
    own, theirs = torch.fft.fft2(images), torch.fft.fft2(references)
    amplitude = torch.where(low, theirs.abs(), own.abs())
    swapped: Tensor = torch.fft.ifft2(torch.polar(amplitude, own.angle())).real
    return swapped
