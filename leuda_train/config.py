"""run.toml + method.toml -> TrainConfig: frozen, validated, unknown keys are errors.

A config says how large and how long; a method says what is trained on what. Both are TOML with the
same keys; the method is laid over the config.
"""

from __future__ import annotations

import math
import tomllib
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from leuda_deploy.card import describe
from leuda_deploy.errors import InputError
from leuda_deploy.recipe import Recipe

Stream = Literal[
    "source",
    "source_as_target",
    "source_cycled",
    "target",
    "target_as_source",
    "target_cycled",
]
SOURCE_STREAMS: tuple[Stream, ...] = ("source", "source_as_target", "source_cycled")
TARGET_STREAMS: tuple[Stream, ...] = ("target", "target_as_source", "target_cycled")
# by appearance
SOURCE_LIKE: tuple[Stream, ...] = ("source", "source_cycled", "target_as_source")
TARGET_LIKE: tuple[Stream, ...] = ("source_as_target", "target", "target_cycled")

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RecipeConfig(_Part):
    """The part of the recipe that is not the cohort's: see `leuda_deploy.recipe.Recipe`."""

    window: tuple[int, int]
    clip_percentiles: tuple[float, float]
    normalisation: Literal["zscore", "minmax"]


class TranslationConfig(_Part):
    """Stage 1. width: channels of the generators' first layer; steps: iterations in all.

    kind  "cyclegan", or "fourier": amplitude swap, which needs no training but cannot be part of an
          exported graph, so that nothing can be tested on x^{t→s}; fourier_radius is its reach
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


class UNetConfig(_Part):
    """Channels and encoder dropout by level, finest first."""

    widths: Annotated[tuple[Positive, ...], Field(min_length=2)]
    dropout: tuple[Probability, ...]

    @model_validator(mode="after")
    def _one_dropout_a_level(self) -> Self:
        if len(self.dropout) != len(self.widths):
            raise ValueError(f"dropout needs {len(self.widths)} values, one a level of widths")
        return self


class AdversarialConfig(_Part):
    """Feature adaptation. levels count decoder feature maps from the output: 1 is the last."""

    levels: Annotated[tuple[Positive, ...], Field(min_length=1)]
    width: Positive
    learning_rate: Rate


class ObjectiveConfig(_Part):
    """L = L_seg + λ_intra L_con^intra + λ_inter L_con^inter + λ_adv_* L_adv^* + λ_pseudo L_pseudo.

    supervised_on      the images L_seg is taken on; they share one label, so are all of one domain
    intra_on           the images that student and intra-domain teacher are compared on
    warmup_epochs      λ are 0 and the learning rate rises linearly
    ramp_epochs        λ rise as exp(-5 (1 - epoch/ramp_epochs)²)
    lambda_pseudo      self-training on the target; not in the paper, 0 switches it off
    pseudo_from        the teachers whose mean makes the pseudo-labels: the intra-domain one reads
                       x^{t→s}, the inter-domain one x^t
    pseudo_confidence  pixels below it are left out
    pseudo_rule        "balanced": but never more than half of a class; "floor": however many
    pseudo_prior       0 to 1: before they are taken for labels, how far the teachers' probabilities
                       are weighted for classes to be as frequent as in the source's labels
    pseudo_by          "slice": pseudo-labels are made in each step; "volume": of whole scans every
                       pseudo_every_epochs, by the inter-domain teacher, without islands
    pseudo_from_epoch  no self-training before it; from then on with the ramp of the other λ
    copy_paste         how often a labelled source region is pasted into the image that the student
                       self-trains on, with its label; not in the paper
    batchnorm_over     what batch norm takes its statistics over in training, where a network reads
                       several streams: "batch", all of them; "stream", each by itself, as the
                       released MT-UDA code, which reads them one after another
    """

    supervised_on: Annotated[tuple[Stream, ...], Field(min_length=1)]
    lambda_intra: Weight
    lambda_inter: Weight
    lambda_adv_intra: Weight
    lambda_adv_inter: Weight
    warmup_epochs: Count
    ramp_epochs: Positive
    ema_decay: Probability
    teacher_batchnorm: Literal["ema", "own"]
    teacher_noise: Weight
    teacher_noise_limit: Weight
    intra_on: Annotated[tuple[Stream, ...], Field(min_length=1)] = ("source", "target_as_source")
    lambda_pseudo: Weight = 0.0
    pseudo_from: tuple[Literal["intra_teacher", "inter_teacher"], ...] = ("inter_teacher",)
    pseudo_confidence: Probability = 0.8
    pseudo_rule: Literal["balanced", "floor"] = "balanced"
    pseudo_prior: Share = 0.0
    pseudo_by: Literal["slice", "volume"] = "slice"
    pseudo_every_epochs: Positive = 2
    pseudo_from_epoch: Count = 0
    copy_paste: Share = 0.0
    batchnorm_over: Literal["batch", "stream"] = "batch"

    @property
    def compares_intra(self) -> bool:
        """Whether student and intra-domain teacher are compared."""
        return self.lambda_intra > 0 or self.lambda_adv_intra > 0

    @property
    def compares_inter(self) -> bool:
        """Whether student and inter-domain teacher are compared."""
        return self.lambda_inter > 0 or self.lambda_adv_inter > 0

    @property
    def student_streams(self) -> tuple[Stream, ...]:
        """The unlabelled images that the student reads as they are."""
        read = {*(self.intra_on if self.compares_intra else ())}
        read |= {*(SOURCE_LIKE if self.compares_inter else ())}
        return tuple(stream for stream in (*SOURCE_LIKE, *TARGET_LIKE) if stream in read)

    @property
    def intra_streams(self) -> tuple[Stream, ...]:
        """What the intra-domain teacher reads; nothing if no term of L asks it."""
        asked = self.lambda_pseudo > 0 and "intra_teacher" in self.pseudo_from
        return self.intra_on if self.compares_intra or asked else ()

    @property
    def inter_streams(self) -> tuple[Stream, ...]:
        """What the inter-domain teacher reads; nothing if no term of L asks it."""
        if self.compares_inter:
            return TARGET_LIKE
        asked = self.lambda_pseudo > 0 and "inter_teacher" in self.pseudo_from
        return ("target",) if asked and self.pseudo_by == "slice" else ()

    @property
    def unlabelled_streams(self) -> tuple[Stream, ...]:
        """Every unlabelled image set that is drawn from."""
        read = {*self.student_streams, *self.intra_streams, *self.inter_streams}
        read |= {"target"} if self.lambda_pseudo > 0 else set()
        return tuple(stream for stream in (*SOURCE_STREAMS, *TARGET_STREAMS) if stream in read)

    @property
    def networks_in_use(self) -> dict[str, bool]:
        """Network name -> whether any term of L asks it."""
        return {
            "student": True,
            "intra_teacher": bool(self.intra_streams),
            "inter_teacher": bool(self.inter_streams)
            or (self.lambda_pseudo > 0 and self.pseudo_by == "volume"),
        }

    @model_validator(mode="after")
    def _pseudo_labels_have_an_author(self) -> Self:
        missing = "intra_teacher" in self.pseudo_from and "target_as_source" not in self.intra_on
        if self.lambda_pseudo > 0 and (missing or not self.pseudo_from):
            raise ValueError(
                f"pseudo_from = {self.pseudo_from}: name a teacher; the intra-domain one needs "
                "target_as_source in intra_on"
            )
        return self

    @model_validator(mode="after")
    def _volumes_have_one_author(self) -> Self:
        if self.pseudo_by == "volume" and self.pseudo_from != ("inter_teacher",):
            raise ValueError(
                f"pseudo_from = {self.pseudo_from}: whole volumes are labelled by the "
                "inter_teacher alone"
            )
        return self

    @model_validator(mode="after")
    def _copy_paste_has_a_place(self) -> Self:
        if self.copy_paste > 0 and self.lambda_pseudo == 0:
            raise ValueError(
                "copy_paste needs lambda_pseudo: it pastes into what is self-trained on"
            )
        return self

    @model_validator(mode="after")
    def _one_domain(self) -> Self:
        if {*self.supervised_on} & {*SOURCE_STREAMS} and {*self.supervised_on} & {*TARGET_STREAMS}:
            raise ValueError(f"supervised_on mixes source and target images: {self.supervised_on}")
        if {*self.supervised_on} & {"target_as_source", "target_cycled"}:
            raise ValueError("supervised_on may name source images, or target alone")
        return self


class ScheduleConfig(_Part):
    """How long and how much at a time. An epoch is steps_per_epoch iterations.

    decay            of the learning rate after the warm-up: the paper's is constant
    structure_share  of a labelled batch, slices that show a structure; without it, as they come
    coarse_window    (h, w) pixels that the first steps show the recipe's window in: less work
    coarse_share     share of the steps that do so; networks see full resolution for the rest
    """

    epochs: Positive
    steps_per_epoch: Positive
    batch_labelled: Positive
    batch_unlabelled: Positive
    learning_rate: Rate
    decay: Literal["constant", "cosine"] = "constant"
    structure_share: Share | None = None
    coarse_window: tuple[Positive, Positive] | None = None
    coarse_share: Share = 0.0
    checkpoint_seconds: Annotated[float, Field(ge=0)] = 30.0


class AugmentConfig(_Part):
    """The random affine; drawn anew for each image family.

    stretch      largest factor between the zooms of the two axes: 1 keeps shapes
    translation  largest shift, as a share of the window
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


class StyleConfig(_Part):
    """Style randomisation of the images that the student is trained on; not in the paper.

    curve, convolution  how often a random intensity curve and a random shallow network are applied
    noise               largest standard deviation of added noise, in normalised intensities
    """

    curve: Annotated[float, Field(ge=0, le=1)] = 0.0
    convolution: Annotated[float, Field(ge=0, le=1)] = 0.0
    noise: Annotated[float, Field(ge=0, le=2)] = 0.0


class AppearanceConfig(_Part):
    """Random appearance by structure, in place of `style`; not in the paper. See `class_style.py`.

    curve, convolution  how often the grey scale is bent, and a random shallow network applied
    free_curves         share of the curves that rise and fall, instead of one of the two
    patchwork           how often one curve holds here and another there
    structures          how often the labelled structures get a brightness and contrast of their own
    fourier             how often low frequencies are borrowed from a target image of the batch
    plain               share of the images left as they are, but for noise and unevenness
    """

    curve: Share = 0.9
    free_curves: Share = 0.5
    patchwork: Share = 0.4
    structures: Share = 0.5
    convolution: Share = 0.2
    fourier: Share = 0.0
    plain: Share = 0.1


class TestConfig(_Part):
    """Which network is the product of the run, and what it reads of a target scan.

    network       "auto": the label-free score chooses among those in use
    feed          of student and intra-domain teacher; the inter-domain one always reads x^t
    batchnorm     "trained": statistics as they were gathered in training; "feed": those of all the
                  unlabelled target scans, read once more by the finished network
    select        "last": as it is after the last epoch, as in the paper; "label-free": as at the
                  epoch with the best label-free score, looked at every select_epochs
    """

    network: Literal["student", "intra_teacher", "inter_teacher", "auto"]
    feed: Literal["target", "target_as_source"]
    batchnorm: Literal["trained", "feed"] = "trained"
    select: Literal["last", "label-free"] = "last"
    select_epochs: Positive = 5

    def feed_of(self, network: str) -> Literal["target", "target_as_source"]:
        """What a network is fed at test time."""
        return "target" if network in ("inter_teacher", "distilled") else self.feed


class DistilConfig(_Part):
    """Stage 3. width: channels as a share of the U-Net's, 0.25 for an edge-sized network."""

    width: Annotated[float, Field(gt=0, le=1)]
    steps: Positive
    learning_rate: Rate

    def widths(self, full: tuple[int, ...]) -> tuple[int, ...]:
        """The distilled network's channels by level."""
        return tuple(max(4, round(self.width * channels)) for channels in full)


class TrainConfig(_Part):
    """Everything about a run but the scans.

    compile  torch.compile student and teachers: pays in long runs alone (benchmarks/training.py)
    """

    name: str
    method: str
    seed: Count = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    compile: bool = False
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
        self._critics_fit(min(self.recipe.window))
        if self.translation.kind == "fourier" and self.test.feed != "target":
            raise ValueError(
                'translation.kind = "fourier" has no generator: set test.feed = "target"'
            )
        if self.distil is not None and not self.teachers:
            raise ValueError("distil needs a teacher, but no term of L asks one")
        if self.distil is not None and self.uses_target_labels:
            raise ValueError('distil is for runs without target labels: not supervised_on "target"')
        if not self.candidates:
            raise ValueError(f"test.network = {self.test.network}, but no term of L asks it")
        return self

    def _critics_fit(self, window: int) -> None:
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

    @property
    def candidates(self) -> tuple[str, ...]:
        """The networks that may become the product."""
        used = tuple(name for name, used in self.objective.networks_in_use.items() if used)
        return used if self.test.network == "auto" else tuple({self.test.network} & {*used})

    @property
    def reports_oracle(self) -> bool:
        """Whether a choice was made that test labels might have made better."""
        return self.test.select == "label-free" or self.test.network == "auto" or bool(self.distil)

    @property
    def teachers(self) -> tuple[str, ...]:
        """The teachers that some term of L asks."""
        used = self.objective.networks_in_use.items()
        return tuple(name for name, asked in used if asked and name != "student")

    def at(self, epoch: int) -> TrainConfig:
        """The config of an epoch: before `pseudo_from_epoch` nothing of self-training is run."""
        if epoch >= self.objective.pseudo_from_epoch or self.objective.lambda_pseudo == 0:
            return self
        objective = self.objective.model_copy(update={"lambda_pseudo": 0.0, "copy_paste": 0.0})
        return self.model_copy(update={"objective": objective})

    def window_at(self, step: int) -> tuple[int, int]:
        """(h, w) pixels of the images of a step of stage 2."""
        schedule = self.schedule
        coarse = step < schedule.coarse_share * schedule.epochs * schedule.steps_per_epoch
        return schedule.coarse_window or self.recipe.window if coarse else self.recipe.window

    @property
    def images_per_step(self) -> int:
        """How many images a step of stage 2 draws, over all streams."""
        objective, schedule = self.objective, self.schedule
        unlabelled = len(objective.unlabelled_streams) + (objective.lambda_pseudo > 0)
        labelled = len(objective.supervised_on)
        return schedule.batch_labelled * labelled + schedule.batch_unlabelled * unlabelled

    @property
    def uses_translation(self) -> bool:
        """Whether stage 1 is needed at all."""
        read = {*self.objective.supervised_on, *self.objective.unlabelled_streams, self.test.feed}
        return self.distil is not None or bool(read - {"source", "target"})

    @property
    def uses_target_labels(self) -> bool:
        """Whether this is the supervised upper bound, the one method that reads target labels."""
        return "target" in self.objective.supervised_on


def shipped(kind: Literal["configs", "methods"]) -> list[str]:
    """Names of the configs or methods in the package."""
    folder = resources.files("leuda_train") / kind
    return sorted(
        Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".toml")
    )


def load_config(config: str, method: str, **overrides: Any) -> TrainConfig:
    """A shipped name or a TOML path each; overrides (seed=, device=, ...) are laid over both.

    Raises InputError naming the first fault.
    """
    content = _merge(_read("configs", config), _read("methods", method))
    content.setdefault("name", Path(config).stem)
    content.setdefault("method", Path(method).stem)
    content |= {key: value for key, value in overrides.items() if value is not None}
    return parse_config(content, f"config {config} with method {method}")


def parse_config(content: dict[str, Any], origin: str) -> TrainConfig:
    """Validate a resolved config. Raises InputError naming the first fault."""
    try:
        return TrainConfig.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{origin}: {describe(error)}") from error


def make_recipe(config: TrainConfig, slice_axis: str, spacing_mm: object) -> Recipe:
    """The cohort's slice axis and spacing with the config's window and intensities.

    Raises InputError naming the first fault.
    """
    content = {"slice_axis": slice_axis, "spacing_mm": spacing_mm, **config.recipe.model_dump()}
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise InputError(f"recipe of config {config.name}: {describe(error)}") from error


def _read(kind: Literal["configs", "methods"], name: str) -> dict[str, Any]:
    path = Path(name)
    if path.suffix == ".toml":
        if not path.is_file():
            raise InputError(f"no such file: {path}")
        text = path.read_bytes()
    elif name in shipped(kind):
        text = (resources.files("leuda_train") / kind / f"{name}.toml").read_bytes()
    else:
        raise InputError(
            f"no {kind[:-1]} named {name!r}; shipped: {', '.join(shipped(kind))}; or a *.toml file"
        )
    try:
        return tomllib.loads(text.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{name} is not TOML: {error}") from error


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged
