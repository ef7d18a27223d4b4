"""stage 1: slices of two domains -> generators -> the six aligned image sets.

CycleGAN is trained once on the preprocessed slices, then run once over every slice. The result is
kept under a key made of the slices and the settings, and reused by every run that has the same.
"""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from leuda_deploy.machine.files import write_json
from leuda_train.config.schema import TranslationConfig
from leuda_train.config.streams import Stream
from leuda_train.data.augment.fourier import swap_amplitude
from leuda_train.data.batches import draw_rows, on_device, step_generator, take_rows
from leuda_train.data.cache import content_key, made_once
from leuda_train.data.slices import Slices
from leuda_train.loop import checkpoint
from leuda_train.loop.hardware import Hardware
from leuda_train.loop.loop import StageRun, run_steps
from leuda_train.loop.metrics_log import Row
from leuda_train.loop.optimizer_step import optimizer_step
from leuda_train.loop.profile import phase
from leuda_train.loop.ranks import ALONE
from leuda_train.networks.cyclegan import Generator
from leuda_train.networks.discriminators import patch_discriminator
from leuda_train.stages.cyclegan import (
    CycleGAN,
    ImagePool,
    discriminator_losses,
    generator_losses,
)

STAGE = "translation"
log = logging.getLogger("leuda")


@dataclass(frozen=True, kw_only=True)
class TranslatedSets:
    """The image sets that there are, (N, h, w) float32 memory-mapped, and what made them.

    images     six, or those of `untranslated`
    to_source  the generator that made x^{t→s}; None where none was trained
    history    its training
    """

    images: dict[Stream, NDArray[np.float32]]
    to_source: Generator | None
    history: list[Row]


def untranslated(slices: Slices) -> TranslatedSets:
    """The two sets of a method that needs no translation."""
    images: dict[Stream, NDArray[np.float32]] = {"source": slices.source, "target": slices.target}
    return TranslatedSets(images=images, to_source=None, history=[])


def load_translation(
    slices: Slices, config: TranslationConfig, seed: int, run: StageRun
) -> TranslatedSets:
    """Open the six aligned sets in the cache, training the translator first if they are not there.

    The run's folder is the cache; what is being trained has its checkpoints there, too.
    """
    key = content_key(slices.key, config.model_dump(mode="json"), seed, run.hardware.precision)
    training = _training(config, replace(run, folder=run.folder / f"training-{key}"))
    ranks = run.hardware.ranks

    def make(folder: Path) -> None:
        if config.kind == "fourier":
            _write_fourier_sets(slices, config, seed, folder)
        else:
            _write_cyclegan_sets(slices, config, seed, folder, training)

    def assist() -> None:
        if config.kind == "cyclegan" and training.hardware.ranks == ranks:
            train_cyclegan(slices, config, seed, training)

    folder = made_once(run.folder / f"translation-{key}", make, ranks=ranks, assist=assist)
    shutil.rmtree(training.folder, ignore_errors=True)
    translated = _open(folder, slices, config)
    if run.watch.metrics is not None:  # a translation that was there already has rows, too
        run.watch.metrics.begin(STAGE, translated.history)
    return translated


def train_cyclegan(
    slices: Slices, config: TranslationConfig, seed: int, run: StageRun
) -> tuple[Translation, list[Row]]:
    """Train to the last step, resumed from the run's folder; the trainer and its history."""
    trainer = Translation(slices, config, run.hardware, seed)
    return trainer, run_steps(trainer, run, name=STAGE, steps=config.steps)


def _training(config: TranslationConfig, run: StageRun) -> StageRun:
    """The run in which the translator is trained: of one process if its batch cannot be shared."""
    ranks = run.hardware.ranks
    if config.kind != "cyclegan" or config.batch % ranks.size == 0:
        return run
    if ranks.first:
        log.warning(
            "translation.batch = %d cannot be shared by %d processes: one trains, the others wait",
            config.batch,
            ranks.size,
        )
    return replace(run, hardware=replace(run.hardware, ranks=ALONE))


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


def _write_fourier_sets(slices: Slices, config: TranslationConfig, seed: int, folder: Path) -> None:
    for name, images in fourier_sets(slices, config, seed).items():
        np.save(folder / f"{name}.npy", images)
    (folder / "history.json").write_text("[]")


def _write_cyclegan_sets(
    slices: Slices, config: TranslationConfig, seed: int, folder: Path, run: StageRun
) -> None:
    trainer, history = train_cyclegan(slices, config, seed, run)
    _write_sets(slices, trainer.nets, folder, run.hardware)
    names = ("to_target", "to_source")
    generators = {name: getattr(trainer.nets, name).state_dict() for name in names}
    checkpoint.save(folder / "generators.pt", generators)
    write_json(folder / "history.json", history)


def _open(folder: Path, slices: Slices, config: TranslationConfig) -> TranslatedSets:
    to_source = None
    if config.kind == "cyclegan":
        to_source = Generator(config.width, config.blocks)
        to_source.load_state_dict(checkpoint.load(folder / "generators.pt")["to_source"])
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
        history=checkpoint.with_new_names(json.loads((folder / "history.json").read_text())),
    )


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Constant for the first half, then linear to zero (CycleGAN's schedule)."""
    return peak * min(1.0, 2.0 * (1.0 - step / steps))


class Translation:
    """Both generators, then both discriminators, one iteration at a time."""

    def __init__(
        self, slices: Slices, config: TranslationConfig, hardware: Hardware, seed: int
    ) -> None:
        self.config, self.hardware, self.seed = config, hardware, seed
        self.source, self.target = on_device([slices.source, slices.target], hardware)
        self.images_per_step = 2 * config.batch
        torch.manual_seed(seed)
        self.nets = CycleGAN(
            to_target=hardware.place(_initialised(Generator(config.width, config.blocks))),
            to_source=hardware.place(_initialised(Generator(config.width, config.blocks))),
            target_discriminator=hardware.place(self._discriminator()),
            source_discriminator=hardware.place(self._discriminator()),
            target_pool=ImagePool(config.pool),
            source_pool=ImagePool(config.pool),
        )
        self.generators = self._adam(self.nets.to_target, self.nets.to_source)
        self.discriminators = self._adam(
            self.nets.target_discriminator, self.nets.source_discriminator
        )
        self.scaler = torch.amp.GradScaler(hardware.device.type, enabled=hardware.needs_scaler)

    def _discriminator(self) -> nn.Module:
        config = self.config
        return _initialised(
            patch_discriminator(config.discriminator_width, config.discriminator_layers)
        )

    def _adam(self, *nets: nn.Module) -> torch.optim.Adam:
        weights = chain(*(net.parameters() for net in nets))
        return torch.optim.Adam(
            weights, lr=self.config.learning_rate, betas=(0.5, 0.999), fused=True
        )

    def _draw(self, images: NDArray[np.float32] | Tensor, domain: str, step: int) -> Tensor:
        every = np.arange(len(images))
        rows = draw_rows(every, self.config.batch, step, self.seed, f"translation {domain}")
        own = self.hardware.ranks.share(rows)
        return self.hardware.put(take_rows(images, own, self.hardware)[:, None])

    def step(self, step: int) -> dict[str, Tensor]:
        """One update of the generators and one of the discriminators."""
        nets, config, ranks = self.nets, self.config, self.hardware.ranks
        with phase("data"):
            source = self._draw(self.source, "source", step)
            target = self._draw(self.target, "target", step)
        for optimizer in (self.generators, self.discriminators):
            rate = learning_rate(step, config.steps, config.learning_rate)
            optimizer.param_groups[0]["lr"] = rate

        # --- generators: the discriminators' weights get no gradient here
        for discriminator in (nets.target_discriminator, nets.source_discriminator):
            discriminator.requires_grad_(False)
        with self.hardware.autocast():
            total, terms, fakes = generator_losses(
                nets, source, target, config.lambda_cycle, config.lambda_identity
            )
        optimizer_step(self.generators, total, self.scaler, ranks)

        # --- discriminators, on detached fakes
        for discriminator in (nets.target_discriminator, nets.source_discriminator):
            discriminator.requires_grad_(True)
        with self.hardware.autocast():
            pool = step_generator(self.seed, "pool", step)
            terms["discriminator"] = discriminator_losses(nets, source, target, fakes, pool, ranks)
        optimizer_step(self.discriminators, terms["discriminator"], self.scaler, ranks)
        self.scaler.update()
        return {name: term.detach() for name, term in terms.items()}

    def _stateful(self) -> dict[str, Any]:
        names = ("to_target", "to_source", "target_discriminator", "source_discriminator")
        return {name: getattr(self.nets, name) for name in names} | {
            "generators": self.generators,
            "discriminators": self.discriminators,
            "scaler": self.scaler,
        }

    def state(self) -> dict[str, Any]:
        """Networks, optimisers, scaler and both pools."""
        pools = {"target": self.nets.target_pool.images, "source": self.nets.source_pool.images}
        return {name: part.state_dict() for name, part in self._stateful().items()} | {
            "pools": pools
        }

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        for name, part in self._stateful().items():
            part.load_state_dict(state[name])
        for name, pool in (("target", self.nets.target_pool), ("source", self.nets.source_pool)):
            pool.images = [image.to(self.hardware.device) for image in state["pools"][name]]


def _initialised(net: nn.Module) -> nn.Module:
    """CycleGAN's initial weights: N(0, 0.02²), biases 0."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0.0, 0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return net


@torch.no_grad()
def _write_sets(slices: Slices, nets: CycleGAN, folder: Path, hardware: Hardware) -> None:
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
