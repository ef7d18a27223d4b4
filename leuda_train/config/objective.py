"""the weights of L -> which terms there are, which images they need, which networks they ask.

It stands here and not with the losses because a config whose parts contradict each other is
refused when it is read, and this says what the parts need.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from leuda_train.config.streams import (
    SOURCE_LIKE,
    SOURCE_STREAMS,
    TARGET_LIKE,
    TARGET_STREAMS,
    Stream,
)
from leuda_train.config.values import Count, Part, Positive, Probability, Share, Weight


class ObjectiveConfig(Part):
    """L = L_seg + λ_intra L_con^intra + λ_inter L_con^inter + λ_adv_* L_adv^* + λ_pseudo L_pseudo.

    supervised_on      the images L_seg is taken on; they share one label, so are all of one domain
    lambda_intra, lambda_inter          weights of the consistency terms, after the ramp
    lambda_adv_intra, lambda_adv_inter  weights of the adversarial terms, after the ramp
    ema_decay          the most that a teacher keeps of itself in a step; less in the first steps
    teacher_batchnorm  "own": a teacher normalises by, and remembers, its own domain; "ema": it
                       averages the student's statistics like the weights
    teacher_noise, teacher_noise_limit  standard deviation of the noise on the intra-domain
                       teacher's images, and where it is clipped, in normalised intensities
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
