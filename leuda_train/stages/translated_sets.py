"""slices + what translates them -> the aligned image sets, on disk and back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from leuda_train.config.schema import TranslationConfig
from leuda_train.config.streams import Stream
from leuda_train.data.augment.fourier import swap_amplitude
from leuda_train.data.slices import Slices
from leuda_train.loop import checkpoint
from leuda_train.loop.hardware import Hardware
from leuda_train.loop.metrics_log import Row
from leuda_train.networks.cyclegan import Generator
from leuda_train.stages.cyclegan import CycleGAN

GENERATORS, HISTORY = "generators.pt", "history.json"


@dataclass(frozen=True, kw_only=True)
class TranslatedSets:
    """The image sets that there are, (N, h, w) float32 memory-mapped, and what made them.

    images       six, or those of `untranslated`
    to_source    the generator that made x^{t→s}; None where none was trained
    history      its training
    fingerprint  which translator made them: other weights, another fingerprint
    """

    images: dict[Stream, NDArray[np.float32]]
    to_source: Generator | None
    history: list[Row]
    fingerprint: str = "none"


def untranslated(slices: Slices) -> TranslatedSets:
    """The two sets of a method that needs no translation; one, where no source scan is read."""
    images: dict[Stream, NDArray[np.float32]] = {"source": slices.source, "target": slices.target}
    there = {stream: found for stream, found in images.items() if len(found)}
    return TranslatedSets(images=there, to_source=None, history=[])


def fourier_sets(
    slices: Slices, config: TranslationConfig, seed: int
) -> dict[Stream, NDArray[np.float32]]:
    """The four translated sets; every slice borrows from a slice of the other domain at random."""
    rng = np.random.default_rng(seed)
    source, target = np.asarray(slices.source), np.asarray(slices.target)

    def there_and_back(
        own: NDArray[np.float32], other: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        there = other[rng.integers(len(other), size=len(own))]
        back = own[rng.integers(len(own), size=len(own))]
        over = swap_amplitude(own, there, config.fourier_radius)
        return over, swap_amplitude(over, back, config.fourier_radius)

    source_as_target, source_cycled = there_and_back(source, target)
    target_as_source, target_cycled = there_and_back(target, source)
    return {
        "source_as_target": source_as_target,
        "source_cycled": source_cycled,
        "target_as_source": target_as_source,
        "target_cycled": target_cycled,
    }


def write_fourier_sets(slices: Slices, config: TranslationConfig, seed: int, folder: Path) -> None:
    """Swap amplitudes and write the sets; no generator, no history."""
    for name, images in fourier_sets(slices, config, seed).items():
        np.save(folder / f"{name}.npy", images)
    (folder / HISTORY).write_text("[]")


def open_sets(folder: Path, slices: Slices, config: TranslationConfig) -> TranslatedSets:
    """Read what `write_fourier_sets` or `write_cyclegan_sets` wrote."""
    to_source, fingerprint = None, folder.name
    if config.kind == "cyclegan":
        to_source = Generator(config.width, config.blocks)
        weights = checkpoint.load(folder / GENERATORS)
        to_source.load_state_dict(weights["to_source"])
        fingerprint = _fingerprint(weights)
    translated: tuple[Stream, ...] = (
        "source_as_target",
        "source_cycled",
        "target_as_source",
        "target_cycled",
    )
    sets = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in translated}
    return TranslatedSets(
        images={"source": slices.source, "target": slices.target, **sets},
        to_source=to_source,
        history=checkpoint.with_new_names(json.loads((folder / HISTORY).read_text())),
        fingerprint=fingerprint,
    )


def _fingerprint(weights: Mapping[str, Mapping[str, torch.Tensor]]) -> str:
    """A short name for the weights of both generators."""
    digest = hashlib.sha256()
    for name, state in weights.items():
        for key, value in state.items():
            digest.update(f"{name}/{key}".encode())
            digest.update(value.contiguous().numpy().data)
    return digest.hexdigest()[:16]


@torch.no_grad()
def write_cyclegan_sets(
    slices: Slices, nets: CycleGAN, history: list[Row], folder: Path, hardware: Hardware
) -> None:
    """Run both generators over every slice: x -> x^{a→b} -> x^{a→b→a}."""
    for domain, other, there, back in (
        ("source", "target", nets.to_target, nets.to_source),
        ("target", "source", nets.to_source, nets.to_target),
    ):
        images = getattr(slices, domain)
        translated, cycled = (
            np.lib.format.open_memmap(
                folder / f"{name}.npy", mode="w+", dtype=np.float32, shape=images.shape
            )
            for name in (f"{domain}_as_{other}", f"{domain}_cycled")
        )
        for start in range(0, len(images), 16):
            rows = slice(start, start + 16)
            with hardware.autocast():
                over = there(hardware.put(torch.from_numpy(images[rows].copy())[:, None]))
                again = back(over)
            translated[rows] = over[:, 0].float().cpu().numpy()
            cycled[rows] = again[:, 0].float().cpu().numpy()
        translated.flush()
        cycled.flush()
    states = {"to_target": nets.to_target.state_dict(), "to_source": nets.to_source.state_dict()}
    checkpoint.save(folder / GENERATORS, states)
    (folder / HISTORY).write_text(json.dumps(history))
