"""ONE LE-UDA iteration: the algorithm, readable top to bottom.

Zhao et al., IEEE TMI 2022. The paper's symbols and ours:

    x^s       source              labelled (y^s) or not      source-like
    x^{s→t→s} source_cycled                                  source-like
    x^{t→s}   target_as_source                               source-like
    x^t       target              never labelled             target-like
    x^{s→t}   source_as_target                               target-like
    x^{t→s→t} target_cycled                                  target-like
    p, f      the student's logits and decoder features
    q, g      a teacher's logits and decoder features
    D         feature discriminators (FA); a teacher's features are "real", the student's "fake"
    λ         the weights of the terms in this epoch, ramp included (schedules.py)

Shapes: B images a stream, K classes; logits (B, K, H, W); features one (B, C_l, H_l, W_l) a level.

Each network reads all its streams in one pass. With objective.batchnorm_over = "stream" the pass
normalises each stream by itself, in order, and the step equals one that reads stream after stream;
with "batch" the statistics are those of all the streams that a network reads. Either way they are
those of the joint batch where several processes train, and this is one process's share of the step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from leuda_train.config.objective import ObjectiveConfig
from leuda_train.config.streams import SOURCE_LIKE
from leuda_train.data.batches import Batch
from leuda_train.data.slices import UNLABELLED
from leuda_train.loop.hardware import Hardware
from leuda_train.loop.optimizer_step import optimizer_step
from leuda_train.loop.profile import phase
from leuda_train.loop.ranks import Ranks
from leuda_train.networks.batchnorm import normalised_by
from leuda_train.networks.discriminators import FeatureDiscriminator
from leuda_train.objective.class_prior import ClassPrior
from leuda_train.objective.ema import ema_decay, update_teacher
from leuda_train.objective.gradient_shares import gradient_shares
from leuda_train.objective.losses import (
    adversarial_loss,
    confident_labels,
    discriminator_loss,
    inter_consistency,
    intra_consistency,
    pseudo_labels,
    pseudo_loss,
    segmentation_loss,
)
from leuda_train.objective.schedules import Lambdas
from leuda_train.objective.teacher_noise import teacher_noise

Value = TypeVar("Value")
Images = Mapping[str, Tensor]  # by stream
Logits = Mapping[str, Tensor]  # by stream
Features = Mapping[str, list[Tensor]]  # by stream, then level


@dataclass(frozen=True, kw_only=True)
class Networks:
    """Everything that has weights, and the optimisers of what is trained by gradients."""

    student: nn.Module
    intra_teacher: nn.Module
    inter_teacher: nn.Module
    intra_discriminator: FeatureDiscriminator
    inter_discriminator: FeatureDiscriminator
    class_prior: ClassPrior
    student_optimizer: torch.optim.Optimizer
    discriminator_optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler


def le_uda_step(  # noqa: PLR0913  (what a step reads and changes, each by its name)
    nets: Networks,
    batch: Batch,
    λ: Lambdas,
    objective: ObjectiveConfig,
    hardware: Hardware,
    update: int,
    generator: torch.Generator,
    shares: bool = False,
) -> dict[str, Tensor]:
    """Train student and discriminators on one batch, then move the teachers.

    No value is read back from the device here.

    Args:
        nets: Changed in place.
        batch: This process's share.
        λ: What each term weighs now.
        objective: Which terms there are, and what they read; a term with weight 0 is not computed.
        hardware: Precision, and the other processes.
        update: Counts EMA updates from 0.
        generator: Of the teachers' noise.
        shares: Also take each term's gradient by itself: a backward pass a term.

    Returns:
        Scalars on the device: the terms of L, unweighted, L itself and the discriminators' L_D;
        each discriminator's mean score by what it sees (`D_intra/student/source`, ...: 1 is what it
        takes for a teacher's features, 0 for the student's); if asked, `gradient_shares`.
    """
    x, ranks = batch.unlabelled, hardware.ranks
    zero = torch.zeros((), device=hardware.device)
    L_con_intra = L_con_inter = L_adv_intra = L_adv_inter = L_pseudo = L_D = zero
    q_intra: Logits = {}
    q_inter: Logits = {}
    scores: dict[str, Tensor] = {}

    with hardware.autocast():
        # --- student: all its images in one pass, the unlabelled ones clean
        labelled: Images = {f"labelled {n}": images for n, images in enumerate(batch.labelled)}
        y = dict(zip(labelled, batch.labels, strict=True))
        clean: Images = {stream: x[stream] for stream in objective.student_streams}
        strong: Images = {"strong": batch.strong} if batch.strong is not None else {}
        p, f = _read(nets.student, {**labelled, **clean, **strong}, objective)

        # --- teachers: their own view of the same slices, under noise; no gradient reaches them
        with torch.no_grad():
            if objective.intra_streams:
                noisy = teacher_noise(x, objective.intra_compared, objective, generator, ranks)
                shown = _pick({**x, **noisy}, objective.intra_streams)
                q_intra, g_intra = _read(nets.intra_teacher, shown, objective)
            if objective.inter_streams:
                noisy = teacher_noise(x, objective.inter_compared, objective, generator, ranks)
                shown = _pick({**x, **noisy}, objective.inter_streams)
                q_inter, g_inter = _read(nets.inter_teacher, shown, objective)

        # --- feature adaptation: the student's features are to look like the teachers'
        if objective.lambda_adv_intra > 0:
            f_intra = _by_level(f, objective.adv_intra_student)
            L_adv_intra = _adversarial(nets.intra_discriminator, f_intra)
        if objective.lambda_adv_inter > 0:
            f_inter = _by_level(f, objective.adv_inter_student)
            L_adv_inter = _adversarial(nets.inter_discriminator, f_inter)

    # --- the objective
    L_seg = sum((segmentation_loss(p[stream], y[stream], ranks) for stream in labelled), zero)
    if objective.lambda_intra > 0:
        L_con_intra = sum((intra_consistency(p[s], q_intra[s]) for s in objective.intra_on), zero)
    if objective.lambda_inter > 0:
        L_con_inter = sum(
            (
                inter_consistency(p[s], q_intra[t] if t in SOURCE_LIKE else q_inter[t])
                for s, t in objective.inter_pairs
            ),
            zero,
        )
    if objective.lambda_pseudo > 0:  # beyond the paper: self-training on the target
        labels, trusted = _settled_labels(batch, q_intra, q_inter, nets, objective, ranks)
        L_pseudo = pseudo_loss(p["strong"], labels, trusted, ranks)
    L = (
        L_seg
        + λ.intra * L_con_intra
        + λ.inter * L_con_inter
        + λ.adv_intra * L_adv_intra
        + λ.adv_inter * L_adv_inter
        + λ.pseudo * L_pseudo
    )
    found: dict[str, Tensor] = {}
    if shares:
        asked = {
            "L_con_intra": (objective.lambda_intra, λ.intra, L_con_intra),
            "L_con_inter": (objective.lambda_inter, λ.inter, L_con_inter),
            "L_adv_intra": (objective.lambda_adv_intra, λ.adv_intra, L_adv_intra),
            "L_adv_inter": (objective.lambda_adv_inter, λ.adv_inter, L_adv_inter),
            "L_pseudo": (objective.lambda_pseudo, λ.pseudo, L_pseudo),
        }
        on = {name: (now, term) for name, (weight, now, term) in asked.items() if weight > 0}
        with phase("gradient shares"):
            found = gradient_shares(L_seg, on, nets.student.parameters(), nets.scaler, ranks)
    optimizer_step(nets.student_optimizer, L, nets.scaler, ranks)

    # --- discriminators, on detached features
    if objective.lambda_adv_intra > 0 or objective.lambda_adv_inter > 0:
        with hardware.autocast():
            if objective.lambda_adv_intra > 0:
                real = _pick(g_intra, objective.adv_intra_teacher)
                fake = _pick(f, objective.adv_intra_student)
                L_D_intra, seen = _discriminator(nets.intra_discriminator, real, fake)
                L_D, scores = L_D + L_D_intra, {f"D_intra/{n}": s for n, s in seen.items()}
            if objective.lambda_adv_inter > 0:
                real = _pick(g_inter, objective.adv_inter_teacher)
                fake = _pick(f, objective.adv_inter_student)
                L_D_inter, seen = _discriminator(nets.inter_discriminator, real, fake)
                L_D, scores = L_D + L_D_inter, scores | {f"D_inter/{n}": s for n, s in seen.items()}
        optimizer_step(nets.discriminator_optimizer, L_D, nets.scaler, ranks)
    nets.scaler.update()

    # --- EMA last: teachers follow the student
    decay = ema_decay(update, objective.ema_decay)
    with phase("EMA"):
        for teacher in (nets.intra_teacher, nets.inter_teacher):
            update_teacher(teacher, nets.student, decay, objective.teacher_batchnorm)

    terms = {"L": L, "L_seg": L_seg, "L_con_intra": L_con_intra, "L_con_inter": L_con_inter}
    terms |= {"L_adv_intra": L_adv_intra, "L_adv_inter": L_adv_inter}
    terms |= {"L_pseudo": L_pseudo, "L_D": L_D, **scores, **found}
    return {name: term.detach() for name, term in terms.items()}


def _read(net: nn.Module, streams: Images, objective: ObjectiveConfig) -> tuple[Logits, Features]:
    """All the streams of a network in one pass: its logits and features by stream."""
    sizes = [len(images) for images in streams.values()]
    apart = objective.batchnorm_over == "stream"
    with normalised_by(net, sizes if apart else None):
        logits, features = net(torch.cat(list(streams.values())))
    by_level = [level.split(sizes) for level in features]
    by_stream = [list(levels) for levels in zip(*by_level, strict=True)]
    return (
        dict(zip(streams, logits.split(sizes), strict=True)),
        dict(zip(streams, by_stream, strict=True)),
    )


def _pick(of: Mapping[Any, Value], streams: Sequence[str]) -> dict[str, Value]:
    """Those of some streams, in their order."""
    return {stream: of[stream] for stream in streams}


def _settled_labels(
    batch: Batch,
    q_intra: Logits,
    q_inter: Logits,
    nets: Networks,
    objective: ObjectiveConfig,
    ranks: Ranks,
) -> tuple[Tensor, Tensor]:
    """Labels (B, H, W) of the restyled x^t, and the mask of those to trust.

    Known ones, of pasted regions and of whole scans, go before those of the teachers in this step.
    """
    if objective.pseudo_by == "slice":
        votes = [q_intra["target_as_source"]] if "intra_teacher" in objective.pseudo_from else []
        votes += [q_inter["target"]] if "inter_teacher" in objective.pseudo_from else []
        q_mean = torch.stack([vote.float().softmax(dim=1) for vote in votes]).mean(dim=0)
        if objective.pseudo_prior > 0:
            q_mean = nets.class_prior(q_mean, ranks)
        if objective.pseudo_rule == "floor":
            labels, trusted = confident_labels(q_mean, objective.pseudo_confidence)
        else:
            labels, trusted = pseudo_labels(q_mean, objective.pseudo_confidence, ranks)
        if batch.known is None:
            return labels, trusted
    else:
        assert batch.known is not None
        labels = torch.zeros_like(batch.known)
        trusted = torch.zeros_like(labels, dtype=torch.bool)
    known = batch.known != UNLABELLED
    return torch.where(known, batch.known, labels), trusted | known


def _by_level(features: Features, streams: Sequence[str]) -> list[Tensor]:
    """The features of some streams, joined: one (n * B, C_l, H_l, W_l) a level."""
    levels = zip(*(features[stream] for stream in streams), strict=True)
    return [torch.cat(level) for level in levels]


def _adversarial(discriminator: FeatureDiscriminator, features: Sequence[Tensor]) -> Tensor:
    """L_adv, the mean over the levels; the discriminator's weights get no gradient from it."""
    discriminator.requires_grad_(False)
    loss = torch.stack([adversarial_loss(score) for score in discriminator(features)]).mean()
    discriminator.requires_grad_(True)
    return loss


def _discriminator(
    discriminator: FeatureDiscriminator, real: Features, fake: Features
) -> tuple[Tensor, dict[str, Tensor]]:
    """A discriminator's own loss, and its mean score by what it sees; both means over the levels.

    No gradient reaches the networks.
    """
    real_scores = discriminator(_by_level(real, list(real)))
    fake_scores = discriminator([level.detach() for level in _by_level(fake, list(fake))])
    pairs = zip(real_scores, fake_scores, strict=True)
    loss = torch.stack([discriminator_loss(r, f) for r, f in pairs]).mean()
    seen = {f"teacher/{name}": mean for name, mean in _means(real_scores, real).items()}
    seen |= {f"student/{name}": mean for name, mean in _means(fake_scores, fake).items()}
    return loss, seen


def _means(scores: Sequence[Tensor], streams: Features) -> dict[str, Tensor]:
    """Score maps of joined streams, one a level -> their mean by stream."""
    by_level = [
        torch.stack([part.float().mean() for part in level.detach().chunk(len(streams))])
        for level in scores
    ]
    return dict(zip(streams, torch.stack(by_level).mean(dim=0).unbind(), strict=True))
