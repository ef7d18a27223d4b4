"""stage 1: slices of two domains -> generators -> the six aligned image sets.

CycleGAN is trained once on the preprocessed slices, then run once over every slice. The result is
kept under a key made of the images and the settings, and reused by every run that has the same,
however many of its scans are labelled.
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from leuda_train.config.schema import TranslationConfig
from leuda_train.data.aligned_sets import on_device, take_rows
from leuda_train.data.batches import draw_rows, step_generator
from leuda_train.data.cache import content_key, made_once
from leuda_train.data.slices import Slices
from leuda_train.loop.hardware import Hardware, Precision
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
from leuda_train.stages.translated_sets import (
    TranslatedSets,
    open_sets,
    write_cyclegan_sets,
    write_fourier_sets,
)

STAGE = "translation"
VERSION = 2  # raise it when the same images and settings give other sets
log = logging.getLogger("leuda")


def load_translation(
    slices: Slices, config: TranslationConfig, seed: int, run: StageRun
) -> TranslatedSets:
    """Open the six aligned sets in the cache, training the translator first if they are not there.

    The run's folder is the cache; what is being trained has its checkpoints there, too.
    """
    key = translation_key(slices, config, seed, run.hardware.precision)
    training = _training(config, replace(run, folder=run.folder / f"training-{key}"))
    ranks = run.hardware.ranks

    def make(folder: Path) -> None:
        if config.kind == "fourier":
            write_fourier_sets(slices, config, seed, folder)
        else:
            trainer, history = train_cyclegan(slices, config, seed, training)
            write_cyclegan_sets(slices, trainer.nets, history, folder, training.hardware)

    def assist() -> None:
        if config.kind == "cyclegan" and training.hardware.ranks == ranks:
            train_cyclegan(slices, config, seed, training)

    folder = made_once(folder_of(run.folder, key), make, ranks=ranks, assist=assist)
    shutil.rmtree(training.folder, ignore_errors=True)
    translated = open_sets(folder, slices, config)
    if run.watch.metrics is not None:  # a translation that was there already has rows, too
        run.watch.metrics.begin(STAGE, translated.history)
    return translated


def translation_key(
    slices: Slices, config: TranslationConfig, seed: int, precision: Precision
) -> str:
    """What a translation is made of, as its name in the cache."""
    settings = config.model_dump(mode="json")
    return content_key(VERSION, slices.images_key, settings, seed, precision)


def folder_of(cache: Path, key: str) -> Path:
    """Where the translation of this key is, once it is made."""
    return cache / f"translation-{key}"


def train_cyclegan(
    slices: Slices, config: TranslationConfig, seed: int, run: StageRun
) -> tuple[Translation, list[Row]]:
    """Train to the last step, resumed from the run's folder; the trainer and its history."""
    trainer = Translation(slices, config, run.hardware, seed, run.recomputed)
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


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Constant for the first half, then linear to zero (CycleGAN's schedule)."""
    return peak * min(1.0, 2.0 * (1.0 - step / steps))


class Translation:
    """Both generators, then both discriminators, one iteration at a time."""

    def __init__(
        self,
        slices: Slices,
        config: TranslationConfig,
        hardware: Hardware,
        seed: int,
        recomputed: int = 0,
    ) -> None:
        self.config, self.hardware, self.seed = config, hardware, seed
        self.source, self.target = on_device([slices.source, slices.target], hardware)
        self.images_per_step = 2 * config.batch
        torch.manual_seed(seed)
        self.nets = CycleGAN(
            to_target=hardware.place(self._generator(recomputed)),
            to_source=hardware.place(self._generator(recomputed)),
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

    def _generator(self, recomputed: int) -> nn.Module:
        generator = Generator(self.config.width, self.config.blocks)
        generator.recomputed = recomputed
        return _initialised(generator)

    def _discriminator(self) -> nn.Module:
        config = self.config
        return _initialised(
            patch_discriminator(config.discriminator_width, config.discriminator_layers)
        )

    def _adam(self, *nets: nn.Module) -> torch.optim.Adam:
        weights = chain(*(net.parameters() for net in nets))
        return self.hardware.adam(weights, self.config.learning_rate, betas=(0.5, 0.999))

    def _draw(self, images: NDArray[np.float32] | Tensor, domain: str, step: int) -> Tensor:
        every = np.arange(len(images))
        rows = draw_rows(every, self.config.batch, step, self.seed, f"translation {domain}")
        own = self.hardware.ranks.share(rows)
        return self.hardware.put(take_rows(images, own, self.hardware)[:, None])

    def step(self, step: int) -> dict[str, Tensor]:
        """One update of the generators and one of the discriminators."""
        with phase("data"):
            source = self._draw(self.source, "source", step)
            target = self._draw(self.target, "target", step)
        return self.update(source, target, step)

    def update(self, source: Tensor, target: Tensor, step: int) -> dict[str, Tensor]:
        """Train on images (B, 1, H, W) of each domain."""
        nets, config, ranks = self.nets, self.config, self.hardware.ranks
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
