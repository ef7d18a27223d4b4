"""real slices -> the windows that engines are compared on: real ones, their borders, hard cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from leuda_deploy.engines.engine import Float32
from leuda_deploy.errors import ModelError
from leuda_deploy.model.card import ModelCard
from leuda_deploy.scans.channels import read_channels, sibling_channels
from leuda_deploy.scans.stack import stack_of
from leuda_deploy.scans.volume import Volume, read_volume

REAL_WINDOWS = 64  # at least; border windows are added until there are as many
BORDER_WINDOWS = 8  # at least
NOISE_WINDOWS = 4
# Real and border windows hold so many voxels at most, and so do their scores in each class: 64
# windows of 512 x 512. Larger ones, as of 3D graphs, are fewer, but no fewer than FEWEST_WINDOWS.
MOST_VOXELS = 64 * 512 * 512
FEWEST_WINDOWS = 8
FLAT = 1e-4  # standard deviation up to which a normalised window counts as one single value
# where the scan's content lies in a border window: rows and columns moved by half the window
SHIFTS = {"top left": (-1, -1), "bottom right": (1, 1), "top": (-1, 0), "right": (0, 1)} | {
    "bottom left": (1, -1),
    "top right": (-1, 1),
    "bottom": (1, 0),
    "left": (0, -1),
}


@dataclass(frozen=True, kw_only=True)
class Probes:
    """Windows to compare engines on.

    windows  (N, C, *window) float32; names[i] says where window i is from
    real     how many of them, the first ones, hold real slices; the rest is made up
    flat     where the windows of one single value begin, among them slices of air. Instance
             normalisation divides their rounding noise by the root of its epsilon, so engines that
             are right differ on them (OpenVINO in float32 by twice the logits' spread): they need
             only give finite scores.
    """

    windows: Float32
    names: tuple[str, ...]
    real: int
    flat: int


def make_probes(
    families: Mapping[str, Float32], *, several_channels: bool = False, seed: int = 0
) -> Probes:
    """Slices (n, h, w) by image family -> windows: real, at the border, noise, constants, extremes.

    Of a 3D graph, blocks (n, d, h, w) in place of slices; of several channels (n, C, h, w). Where
    there are more than MOST_VOXELS allows, those that are taken are spread over all.

    Raises ModelError if there is no slice at all: nothing can be proven on noise alone.
    """
    slices = [
        (f"{family} slice {i}", image)
        for family, images in families.items()
        for i, image in enumerate(images)
    ]
    if not slices:
        raise ModelError("there is no real slice to compare the engines on")
    real = [(name, image) for name, image in slices if image.std() > FLAT]
    flat = [(name, image) for name, image in slices if image.std() <= FLAT]
    if not real:
        raise ModelError("every slice to compare the engines on is of one single value")
    floor = min(float(image.min()) for _, image in slices)
    room = max(FEWEST_WINDOWS, MOST_VOXELS // slices[0][1].size)
    wanted = max(min(BORDER_WINDOWS, room // 2), min(REAL_WINDOWS, room) - len(real))
    real = _spread(real, room - wanted)
    moved = [
        (f"{name} at the border, moved to the {where}", _moved(image, shift, floor))
        for where, shift in SHIFTS.items()
        for name, image in real
    ]
    real += _spread([(name, image) for name, image in moved if image.std() > FLAT], wanted)
    values = np.stack([image for _, image in slices])
    noises = min(NOISE_WINDOWS, room // FEWEST_WINDOWS)
    made_up = _made_up(values, noises, np.random.default_rng(seed))
    every = real + made_up + flat + _flat(values)
    windows = np.stack([image for _, image in every]).astype(np.float32)
    return Probes(
        windows=windows if several_channels else windows[:, None],
        names=tuple(name for name, _ in every),
        real=len(real),
        flat=len(real) + len(made_up),
    )


def windows_of_scans(card: ModelCard, scans: Sequence[Path]) -> dict[str, Float32]:
    """Windows of scans, prepared as a model's card says: by scan, (n, h, w) or (n, d, h, w).

    Of several channels (n, C, h, w) or (n, C, d, h, w).
    """
    windows: dict[str, Float32] = {}
    for path in scans:
        stack = stack_of(_read(card, path), card.recipe, card.depth)
        # of a 3D graph, windows that lie beside each other
        starts = range(0, stack.depth, stack.window_slices)
        windows[str(path)] = np.stack([stack.window_at(start) for start in starts])
    return windows


def _read(card: ModelCard, path: Path) -> Volume:
    if card.scan_count == 1:
        return read_volume(path)
    return read_channels(path, sibling_channels(path), card.channels)


def probes_of_scans(card: ModelCard, scans: Sequence[Path]) -> Probes:
    """These windows as probes, to prove engines of that model on."""
    return make_probes(windows_of_scans(card, scans), several_channels=card.scan_count > 1)


def _spread(windows: list[tuple[str, Float32]], most: int) -> list[tuple[str, Float32]]:
    """At most so many of them, from first to last."""
    places = np.linspace(0, len(windows) - 1, min(most, len(windows)))
    return [windows[round(place)] for place in places]


def _moved(image: Float32, shift: tuple[int, int], fill: float) -> Float32:
    """The image moved by half its size, the rest filled: what lies beyond the border of a scan."""
    height, width = image.shape[-2:]
    down, right = shift[0] * (height // 2), shift[1] * (width // 2)
    moved = np.full_like(image, fill)
    rows = slice(max(down, 0), height + min(down, 0))
    columns = slice(max(right, 0), width + min(right, 0))
    rows_from = slice(max(-down, 0), height + min(-down, 0))
    columns_from = slice(max(-right, 0), width + min(-right, 0))
    moved[..., rows, columns] = image[..., rows_from, columns_from]
    return moved


def _made_up(values: Float32, noises: int, rng: np.random.Generator) -> list[tuple[str, Float32]]:
    shape = values.shape[1:]
    low, high = float(values.min()), float(values.max())
    noise = rng.normal(values.mean(), values.std(), size=(noises, *shape))
    spike = np.full(shape, low)
    spike[tuple(size // 2 for size in shape)] = high
    extremes = {
        "a checkerboard of floor and ceiling": np.where(np.indices(shape).sum(0) % 2, low, high),
        "floor and ceiling at random": rng.choice([low, high], size=shape),
        "one bright pixel": spike,
        "three times a real slice": 3.0 * values[len(values) // 2],
    }
    return [(f"noise {i}", image) for i, image in enumerate(noise)] + list(extremes.items())


def _flat(values: Float32) -> list[tuple[str, Float32]]:
    places = {"the floor": values.min(), "the ceiling": values.max(), "0": 0.0}
    return [
        (f"every pixel at {name}", np.full(values.shape[1:], value, dtype=np.float32))
        for name, value in places.items()
    ]
