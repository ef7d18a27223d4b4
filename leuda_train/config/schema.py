"""TrainConfig and its parts: everything about a run but the scans; frozen, validated."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from leuda_train.config.appearance import AppearanceConfig, StyleConfig
from leuda_train.config.objective import ObjectiveConfig
from leuda_train.config.schedule import ScheduleConfig
from leuda_train.config.tested import DistilConfig, Feed, TestConfig
from leuda_train.config.values import Count, MemorySize, Part, Positive, Probability, Rate, Weight


class RecipeConfig(Part):
    """How intensities and windows are prepared; slice axis and spacing are the cohort's.

    window            (height, width) in pixels that the networks read at once
    clip_percentiles  of a whole scan; intensities outside are clipped
    normalisation     after clipping, over the whole scan: "zscore", or "minmax" to -1 to 1
    """

    window: tuple[int, int]
    clip_percentiles: tuple[float, float]
    normalisation: Literal["zscore", "minmax"]


class TranslationConfig(Part):
    """Stage 1: images of one domain -> the other's appearance.

    kind                  "cyclegan", or "fourier": amplitude swap, which needs no training but
                          cannot be part of an exported graph, so nothing is tested on x^{t→s}
    fourier_radius        half the side of the swapped square, as a share of the spectrum's side
    width                 channels of the generators' first layer
    blocks                residual blocks of a generator
    discriminator_width   channels of the patch discriminators' first layer
    discriminator_layers  stride-2 convolutions of a patch discriminator
    steps                 iterations in all
    batch                 images of each domain in a step
    learning_rate         of generators and discriminators; it falls to 0 in the second half
    lambda_cycle          weight of the cycle loss
    lambda_identity       weight of the identity loss, as a share of lambda_cycle
    pool                  earlier translated images that the discriminators are shown again
    """

    kind: Literal["cyclegan", "fourier"] = "cyclegan"
    fourier_radius: Annotated[float, Field(gt=0, le=0.5)] = 0.06
    width: Positive
    blocks: Positive
    discriminator_width: Positive
    discriminator_layers: Positive
    steps: Positive
    batch: Positive
    learning_rate: Rate
    lambda_cycle: Weight
    lambda_identity: Weight
    pool: Count

    @property
    def title(self) -> str:
        """The translator's name, for people."""
        return {"cyclegan": "CycleGAN", "fourier": "Fourier"}[self.kind]


class UNetConfig(Part):
    """The segmentation network.

    widths   channels by level, finest first
    dropout  of the encoder, by level
    """

    widths: Annotated[tuple[Positive, ...], Field(min_length=2)]
    dropout: tuple[Probability, ...]

    @model_validator(mode="after")
    def _one_dropout_a_level(self) -> Self:
        if len(self.dropout) != len(self.widths):
            raise ValueError(f"dropout needs {len(self.widths)} values, one a level of widths")
        return self


class AdversarialConfig(Part):
    """Feature adaptation: the discriminators on decoder features.

    levels         which feature maps, counted from the output: 1 is the last
    width          channels of a discriminator's first layer
    learning_rate  of the discriminators
    """

    levels: Annotated[tuple[Positive, ...], Field(min_length=1)]
    width: Positive
    learning_rate: Rate


class AugmentConfig(Part):
    """The random affine; drawn anew for each image family.

    scale             smallest and largest factor
    rotation_degrees  largest angle, to either side
    stretch           largest factor between the scales of the two axes: 1 keeps shapes
    translation       largest shift, as a share of the window
    """

    scale: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]
    rotation_degrees: Annotated[float, Field(ge=0, le=180)]
    stretch: Annotated[float, Field(ge=1, le=2)] = 1.0
    translation: Annotated[float, Field(ge=0, le=0.5)] = 0.0

    @model_validator(mode="after")
    def _scale_in_order(self) -> Self:
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale must not fall, got {self.scale}")
        return self


class TrainConfig(Part):
    """Everything about a run but the scans.

    name       of the config; without it, the file's
    method     name of the method; without it, the file's
    seed       of everything random: weights, order of the data, augmentation, noise
    device     "auto": a GPU where there is one
    precision  of training; "auto": bf16 where the device has it, else fp16 on a GPU, fp32 on a CPU
    compile    torch.compile student and teachers: pays in long runs alone (benchmarks/training.py)
    max_memory most memory that training may take, "8G": of the GPU, or on CPUs of the machine.
               Activations that do not fit are computed again, which is slower and changes nothing
               but rounding
    first_model  sha256 of the model.pt whose weights it begins with; `leuda adapt` sets it
    """

    name: str
    method: str
    seed: Count = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    compile: bool = False
    max_memory: MemorySize | None = None
    first_model: str | None = None
    recipe: RecipeConfig
    translation: TranslationConfig
    unet: UNetConfig
    objective: ObjectiveConfig
    adversarial: AdversarialConfig
    schedule: ScheduleConfig
    augment: AugmentConfig
    style: StyleConfig = StyleConfig()
    appearance: AppearanceConfig | None = None
    target_appearance: AppearanceConfig = AppearanceConfig(curve=0.3, convolution=0.0, plain=0.2)
    distil: DistilConfig | None = None
    test: TestConfig

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        factor = 2 ** (len(self.unet.widths) - 1)
        # the generator halves its input twice
        factor = math.lcm(factor, 4) if self.uses_translation else factor
        if any(size % factor for size in self.recipe.window):
            raise ValueError(f"recipe.window {self.recipe.window} must be multiples of {factor}")
        coarse = self.schedule.coarse_window or self.recipe.window
        if any(size % factor for size in coarse):
            raise ValueError(f"schedule.coarse_window {coarse} must be multiples of {factor}")
        if max(self.adversarial.levels) > len(self.unet.widths) - 1:
            raise ValueError(
                f"adversarial.levels {self.adversarial.levels}: "
                f"the U-Net has {len(self.unet.widths) - 1} decoder levels"
            )
        self._discriminators_fit(min(*self.recipe.window, *coarse))
        if self.translation.kind == "fourier" and self.test.feed != "target":
            raise ValueError(
                'translation.kind = "fourier" has no generator: set test.feed = "target"'
            )
        if self.source_free and (self.uses_translation or self.chooses):
            raise ValueError(
                'supervised_on is empty: test.feed must be "target", and neither distil nor a '
                "choice of network or epoch is possible without a labelled source scan"
            )
        if self.distil is not None and not self.teachers:
            raise ValueError("distil needs a teacher, but no term of L asks one")
        if self.distil is not None and self.uses_target_labels:
            raise ValueError('distil is for runs without target labels: not supervised_on "target"')
        if not self.candidates:
            raise ValueError(
                f"test.network = {self.test.network}, but no term of L asks it; with "
                'teacher_batchnorm = "ema" it is the average of the student'
            )
        return self

    def _discriminators_fit(self, window: int) -> None:
        """Discriminators halve what they are shown several times; something must be left."""
        # three halvings, on the smallest feature map
        least = 8 * 2 ** (max(self.adversarial.levels) - 1)
        if (self.objective.lambda_adv_intra or self.objective.lambda_adv_inter) and window < least:
            raise ValueError(
                f"adversarial.levels {self.adversarial.levels} need a recipe.window of {least}"
            )
        # a patch discriminator's last two 4x4 convolutions take one pixel each
        least = 3 * 2**self.translation.discriminator_layers
        if self.uses_translation and window < least:
            raise ValueError(
                f"translation.discriminator_layers = {self.translation.discriminator_layers} "
                f"needs a recipe.window of {least}"
            )

    def at(self, epoch: int) -> TrainConfig:
        """The config of an epoch: self-training not yet, by slice, or as it says."""
        objective = self.objective
        change: dict[str, object] = {}
        if objective.lambda_pseudo > 0 and epoch < objective.pseudo_from_epoch:
            change = {"lambda_pseudo": 0.0, "copy_paste": 0.0, "source_pseudo_share": 0.0}
        elif objective.pseudo_by == "volume" and epoch < objective.pseudo_volumes_from_epoch:
            change = {"pseudo_by": "slice"}
        if epoch < objective.source_pseudo_from_epoch:
            change["source_pseudo_share"] = 0.0
        changed = objective.model_copy(update=change)
        return self.model_copy(update={"objective": changed}) if change else self

    def window_at(self, step: int) -> tuple[int, int]:
        """(h, w) pixels of the images of a step of stage 2."""
        schedule = self.schedule
        coarse = step < schedule.coarse_share * schedule.epochs * schedule.steps_per_epoch
        return schedule.coarse_window or self.recipe.window if coarse else self.recipe.window

    @property
    def networks_in_use(self) -> tuple[str, ...]:
        """Those that some term of L asks, and the average of the student if it is tested."""
        asked = self.objective.networks_in_use
        averaged = self.objective.teacher_batchnorm == "ema"
        return tuple(
            name for name, used in asked.items() if used or (averaged and name == self.test.network)
        )

    @property
    def candidates(self) -> tuple[tuple[str, Feed], ...]:
        """What may become the product: a network, and what it is fed."""
        pairs = {name: self.test.feed_of(name) for name in self.networks_in_use}
        if self.test.network != "auto":
            return tuple((name, feed) for name, feed in pairs.items() if name == self.test.network)
        # the student is the one network that may be good on either
        return tuple(dict.fromkeys([*pairs.items(), ("student", "target")]))

    @property
    def chooses(self) -> bool:
        """Whether a network or an epoch is chosen, without target labels."""
        return not self.uses_target_labels and (
            self.test.select == "label-free" or self.test.network == "auto"
        )

    @property
    def distil_steps(self) -> int:
        """Iterations of stage 3; 0 if there is none."""
        if self.distil is None:
            return 0
        return max(1, round(self.distil.share * self.schedule.steps))

    @property
    def reports_oracle(self) -> bool:
        """Whether a choice was made that test labels might have made better."""
        return self.chooses or self.distil is not None

    @property
    def teachers(self) -> tuple[str, ...]:
        """The teachers that some term of L asks."""
        used = self.objective.networks_in_use.items()
        return tuple(name for name, asked in used if asked and name != "student")

    @property
    def uses_translation(self) -> bool:
        """Whether stage 1 is needed at all."""
        read = {*self.objective.supervised_on, *self.objective.unlabelled_streams, self.test.feed}
        return self.distil is not None or bool(read - {"source", "target"})

    @property
    def source_free(self) -> bool:
        """Whether no source scan is read: a trained network goes on alone, `leuda adapt`."""
        return not self.objective.supervised_on

    @property
    def uses_target_labels(self) -> bool:
        """Whether this is the supervised upper bound, the one method that reads target labels."""
        return "target" in self.objective.supervised_on
