"""the weights of L -> which terms there are, which images they need, which networks they ask.

It stands here and not with the losses because a config whose parts contradict each other is
refused when it is read, and this says what the parts need.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from leuda_train.config.streams import (
    PAPER_PAIRS,
    SOURCE_LIKE,
    SOURCE_STREAMS,
    TARGET_LIKE,
    TARGET_STREAMS,
    Pair,
    Stream,
    in_order,
    is_aligned,
)
from leuda_train.config.values import Count, Part, Positive, Probability, Share, Weight

Streams = Annotated[tuple[Stream, ...], Field(min_length=1)]


class ObjectiveConfig(Part):
    """L = L_seg + λ_intra L_con^intra + λ_inter L_con^inter + λ_adv_* L_adv^* + λ_pseudo L_pseudo.

    supervised_on      the images L_seg is taken on, all of one domain; schedule.batch_labelled of
                       each are drawn, independently. Named twice, twice as many are drawn. None:
                       `leuda adapt`, without L_seg
    lambda_intra, lambda_inter          weights of the consistency terms, after the ramp
    lambda_adv_intra, lambda_adv_inter  weights of the adversarial terms, after the ramp
    ema_decay          the most that a teacher keeps of itself in a step; less in the first steps
    teacher_batchnorm  "own": a teacher normalises by, and remembers, its own domain; "ema": it
                       averages the student's statistics like the weights
    teacher_noise, teacher_noise_limit  standard deviation of the noise on the images of both
                       teachers, and where it is clipped, in normalised intensities
    intra_on           the images that L_con^intra compares student and intra-domain teacher on
    inter_pairs        the pairs of L_con^inter: the student's image, and its partner in the other
                       appearance. The teacher of the partner's appearance reads that: the
                       inter-domain one if it is target-like, the intra-domain one if source-like
    adv_intra_student, adv_intra_teacher  what D_intra sees: features of the student on these
                       images, and of the intra-domain teacher on those
    adv_inter_student, adv_inter_teacher  the same of D_inter and the inter-domain teacher
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
    pseudo_volumes_from_epoch  with "volume": by slice before it, as a poor teacher's labels had
                       better follow it step by step than stand for epochs
    pseudo_refine      with "volume": the teacher's probabilities first follow the slices' edges
    pseudo_renewed_from_epoch  with "volume": the first labels stand until it, or for good
    pseudo_from_epoch  no self-training before it; from then on with the ramp of the other λ
    source_pseudo_share  the share of the supervised images that are of unlabelled source scans,
                       labelled as whole scans by the intra-domain teacher every
                       pseudo_every_epochs; not in the paper
    source_pseudo_agreement  of those scans, only the ones whose labels survive another appearance:
                       the least mean Dice between the teacher's labels of x^s as it is and in the
                       random styles of target images. 0: all of them
    source_pseudo_from_epoch  none of them before it: a poor teacher's labels do harm
    copy_paste         how often a labelled source region is pasted into the image that the student
                       self-trains on, with its label; not in the paper
    batchnorm_over     what batch norm takes its statistics over in training, where a network reads
                       several streams: "batch", all of them; "stream", each by itself, as the
                       released MT-UDA code, which reads them one after another
    """

    supervised_on: tuple[Stream, ...]
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
    intra_on: Streams = ("source", "target_as_source")
    inter_pairs: Annotated[tuple[Pair, ...], Field(min_length=1)] = PAPER_PAIRS
    adv_intra_student: Streams = ("source",)
    adv_intra_teacher: Streams = ("source_cycled", "target_as_source")
    adv_inter_student: Streams = ("source",)
    adv_inter_teacher: Streams = TARGET_LIKE
    lambda_pseudo: Weight = 0.0
    pseudo_from: tuple[Literal["intra_teacher", "inter_teacher"], ...] = ("inter_teacher",)
    pseudo_confidence: Probability = 0.8
    pseudo_rule: Literal["balanced", "floor"] = "balanced"
    pseudo_prior: Share = 0.0
    pseudo_by: Literal["slice", "volume"] = "slice"
    pseudo_every_epochs: Positive = 2
    pseudo_volumes_from_epoch: Count = 0
    pseudo_refine: bool = False
    pseudo_renewed_from_epoch: Count | Literal["never"] = 0
    pseudo_from_epoch: Count = 0
    source_pseudo_share: Share = 0.0
    source_pseudo_agreement: Share = 0.0
    source_pseudo_from_epoch: Count = 0
    copy_paste: Share = 0.0
    batchnorm_over: Literal["batch", "stream"] = "batch"

    @property
    def student_streams(self) -> tuple[Stream, ...]:
        """The unlabelled images that the student reads as they are."""
        return in_order(
            (
                *(self.intra_on if self.lambda_intra > 0 else ()),
                *((student for student, _ in self.inter_pairs) if self.lambda_inter > 0 else ()),
                *(self.adv_intra_student if self.lambda_adv_intra > 0 else ()),
                *(self.adv_inter_student if self.lambda_adv_inter > 0 else ()),
            )
        )

    @property
    def intra_compared(self) -> tuple[Stream, ...]:
        """What the intra-domain teacher reads, noisy, to be compared with the student."""
        return in_order(
            (
                *(self.intra_on if self.lambda_intra > 0 else ()),
                *self._partners(SOURCE_LIKE),
                *(self.adv_intra_teacher if self.lambda_adv_intra > 0 else ()),
            )
        )

    @property
    def inter_compared(self) -> tuple[Stream, ...]:
        """What the inter-domain teacher reads, noisy, to be compared with the student."""
        return in_order(
            (
                *self._partners(TARGET_LIKE),
                *(self.adv_inter_teacher if self.lambda_adv_inter > 0 else ()),
            )
        )

    def _partners(self, like: tuple[Stream, ...]) -> list[Stream]:
        """The teachers' images in L_con^inter that look like that."""
        on = self.lambda_inter > 0
        return [teacher for _, teacher in self.inter_pairs if on and teacher in like]

    @property
    def intra_streams(self) -> tuple[Stream, ...]:
        """What the intra-domain teacher reads; nothing if no term of L asks it."""
        asked = self.lambda_pseudo > 0 and "intra_teacher" in self.pseudo_from
        return in_order((*self.intra_compared, *(("target_as_source",) if asked else ())))

    @property
    def inter_streams(self) -> tuple[Stream, ...]:
        """What the inter-domain teacher reads; nothing if no term of L asks it."""
        asked = self.lambda_pseudo > 0 and "inter_teacher" in self.pseudo_from
        asked = asked and self.pseudo_by == "slice"
        return in_order((*self.inter_compared, *(("target",) if asked else ())))

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
            "intra_teacher": bool(self.intra_streams) or self.source_pseudo_share > 0,
            "inter_teacher": bool(self.inter_streams)
            or (self.lambda_pseudo > 0 and self.pseudo_by == "volume"),
        }

    @model_validator(mode="after")
    def _pseudo_labels_have_an_author(self) -> Self:
        if self.lambda_pseudo > 0 and not self.pseudo_from:
            raise ValueError("pseudo_from is empty, but lambda_pseudo > 0: name a teacher")
        return self

    @model_validator(mode="after")
    def _pairs_are_aligned(self) -> Self:
        for student, teacher in self.inter_pairs:
            if not is_aligned(student, teacher) or student == teacher:
                raise ValueError(
                    f"inter_pairs: {student} and {teacher} are not two appearances of one slice"
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
    def _some_true_labels_are_left(self) -> Self:
        if self.source_pseudo_share == 1:
            raise ValueError("source_pseudo_share = 1 leaves no image with true labels")
        return self

    @model_validator(mode="after")
    def _without_labels_the_target_alone(self) -> Self:
        if self.supervised_on:
            return self
        if self.lambda_pseudo == 0 or self.pseudo_from_epoch > 0 or self.copy_paste > 0:
            raise ValueError(
                "supervised_on is empty: lambda_pseudo must not be 0, and pseudo_from_epoch and "
                "copy_paste must be"
            )
        if self.unlabelled_streams != ("target",):
            raise ValueError(
                "supervised_on is empty: no term may read other images than the target's, but "
                f"these read {', '.join(self.unlabelled_streams)}"
            )
        return self

    @model_validator(mode="after")
    def _one_domain(self) -> Self:
        if {*self.supervised_on} & {*SOURCE_STREAMS} and {*self.supervised_on} & {*TARGET_STREAMS}:
            raise ValueError(f"supervised_on mixes source and target images: {self.supervised_on}")
        if {*self.supervised_on} & {"target_as_source", "target_cycled"}:
            raise ValueError("supervised_on may name source images, or target alone")
        return self
