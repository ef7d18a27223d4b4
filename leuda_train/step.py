"""ONE LE-UDA iteration: the algorithm, readable top to bottom.

Zhao et al., IEEE TMI 2022. The paper's symbols and ours:

    x^s     source              labelled (y^s) or not        source-like
    x^{s→t→s} source_cycled                                  source-like
    x^{t→s} target_as_source                                 source-like
    x^t     target              never labelled               target-like
    x^{s→t} source_as_target                                 target-like
    x^{t→s→t} target_cycled                                  target-like
    p, f    the student's logits and decoder features
    q, g    a teacher's logits and decoder features
    D       feature discriminators (FA); a teacher's features are "real", the student's "fake"

B images a stream; logits (B, K, H, W); features one (B, C_l, H_l, W_l) a level.

Each network reads all its streams in one pass. With objective.batchnorm_over = "stream" the pass
normalises each stream by itself, in order, and the step equals one that reads stream after stream;
with "batch" the statistics are those of all the streams that a network reads. Either way they are
those of the joint batch where several processes train, and this is one process's share of the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from leuda_train.augment import teacher_noise
from leuda_train.batches import Batch
from leuda_train.batchnorm import normalised_by
from leuda_train.config import SOURCE_LIKE, ObjectiveConfig, Stream
from leuda_train.descend import descend
from leuda_train.ema import ema_decay, update_teacher
from leuda_train.hardware import Hardware
from leuda_train.losses import (
    confident_labels,
    discern,
    fool,
    inter_consistency,
    intra_consistency,
    pseudo_labels,
    pseudo_loss,
    segmentation_loss,
)
from leuda_train.phases import phase
from leuda_train.ranks import Ranks
from leuda_train.slices import UNLABELLED

# (student's image, inter-domain teacher's image): the same slice in the two appearances
INTER: tuple[tuple[Stream, Stream], ...] = (
    ("source", "source_as_target"),
    ("source_cycled", "source_as_target"),
    ("target_as_source", "target"),
    ("target_as_source", "target_cycled"),
)


@dataclass(frozen=True, kw_only=True)
class Networks:
    """Everything that has weights, and the optimisers of what is trained by gradients."""

    student: nn.Module
    intra_teacher: nn.Module
    inter_teacher: nn.Module
    intra_critic: nn.Module
    inter_critic: nn.Module
    class_prior: nn.Module
    student_optimizer: torch.optim.Optimizer
    critic_optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler


@dataclass(frozen=True, kw_only=True)
class Lambdas:
    """The weights of the terms of L in this epoch, ramp included."""

    intra: float
    inter: float
    adv_intra: float
    adv_inter: float
    pseudo: float = 0.0


def le_uda_step(
    nets: Networks,
    batch: Batch,
    λ: Lambdas,
    objective: ObjectiveConfig,
    hardware: Hardware,
    update: int,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Train student and discriminators on one batch, move the teachers; returns the loss terms.

    update counts EMA updates from 0. No value is read back from the device here.
    """
    x, ranks = batch.unlabelled, hardware.ranks
    zero = torch.zeros((), device=hardware.device)
    q_intra: dict[Stream, Tensor] = {}
    q_inter: dict[Stream, Tensor] = {}
    L_con_intra = L_con_inter = L_adv_intra = L_adv_inter = L_pseudo = L_D = zero

    with hardware.autocast():
        # --- the student reads all its images in one pass, the unlabelled ones clean
        clean = [x[stream] for stream in objective.student_streams]
        strong = [batch.strong] if batch.strong is not None else []
        inputs = [*batch.labelled, *clean, *strong]
        sizes = [len(images) for images in inputs]
        p, f = _read(nets.student, inputs, objective)
        first, last = len(batch.labelled), len(batch.labelled) + len(clean)
        p_all = p.split(sizes)
        p_ = dict(zip(objective.student_streams, p_all[first:last], strict=True))
        f_ = [
            dict(zip(objective.student_streams, level.split(sizes)[first:last], strict=True))
            for level in f
        ]

        # --- the teachers read their own view of the same slices; no gradient reaches them
        with torch.no_grad():
            if objective.intra_streams:
                shown = [x[stream] for stream in objective.intra_streams]
                noise = teacher_noise(
                    shown, objective.teacher_noise, objective.teacher_noise_limit, generator, ranks
                )
                noisy = [images + n for images, n in zip(shown, noise, strict=True)]
                q, g_intra = _read(nets.intra_teacher, noisy, objective)
                q_intra = _by_stream(q, objective.intra_streams)
            if objective.inter_streams:
                target_like = [x[stream] for stream in objective.inter_streams]
                q, g_inter = _read(nets.inter_teacher, target_like, objective)
                q_inter = _by_stream(q, objective.inter_streams)

        # --- features that the discriminators compare
        if objective.lambda_adv_intra > 0:
            f_intra = [torch.cat([level[s] for s in objective.intra_on]) for level in f_]
            L_adv_intra = _fool_all(nets.intra_critic, f_intra)
        if objective.lambda_adv_inter > 0:
            f_inter = [torch.cat([level[s] for s in SOURCE_LIKE]) for level in f_]
            L_adv_inter = _fool_all(nets.inter_critic, f_inter)

    # --- the objective
    L_seg = sum((segmentation_loss(p_s, batch.labels, ranks) for p_s in p_all[:first]), zero)
    if objective.lambda_intra > 0:
        L_con_intra = torch.stack(
            [intra_consistency(p_[s], q_intra[s]) for s in objective.intra_on]
        ).mean()
    if objective.lambda_inter > 0:
        L_con_inter = torch.stack([inter_consistency(p_[s], q_inter[t]) for s, t in INTER]).sum()
    if objective.lambda_pseudo > 0:  # beyond the paper: self-training on the target
        if objective.pseudo_by == "slice":
            labels, trusted = _pseudo_labels(q_intra, q_inter, nets.class_prior, objective, ranks)
        else:
            labels = torch.zeros_like(batch.known)
            trusted = torch.zeros_like(labels, dtype=torch.bool)
        if batch.known is not None:  # pasted from the source, or labelled by whole scans
            known = batch.known != UNLABELLED
            labels, trusted = torch.where(known, batch.known, labels), trusted | known
        L_pseudo = pseudo_loss(p_all[-1], labels, trusted, ranks)
    L = (
        L_seg
        + λ.intra * L_con_intra
        + λ.inter * L_con_inter
        + λ.adv_intra * L_adv_intra
        + λ.adv_inter * L_adv_inter
        + λ.pseudo * L_pseudo
    )

    # --- student
    descend(nets.student_optimizer, L, nets.scaler, ranks)

    # --- discriminators, on detached features
    if objective.lambda_adv_intra > 0 or objective.lambda_adv_inter > 0:
        with hardware.autocast():
            if objective.lambda_adv_intra > 0:
                L_D = L_D + _discern_all(nets.intra_critic, g_intra, f_intra)
            if objective.lambda_adv_inter > 0:
                L_D = L_D + _discern_all(nets.inter_critic, g_inter, f_inter)
        descend(nets.critic_optimizer, L_D, nets.scaler, ranks)
    nets.scaler.update()

    # --- EMA last: teachers follow the student
    decay = ema_decay(update, objective.ema_decay)
    with phase("EMA"):
        for teacher in (nets.intra_teacher, nets.inter_teacher):
            update_teacher(teacher, nets.student, decay, objective.teacher_batchnorm)

    return {
        "L": L.detach(),
        "L_seg": L_seg.detach(),
        "L_con_intra": L_con_intra.detach(),
        "L_con_inter": L_con_inter.detach(),
        "L_adv_intra": L_adv_intra.detach(),
        "L_adv_inter": L_adv_inter.detach(),
        "L_pseudo": L_pseudo.detach(),
        "L_D": L_D.detach(),
    }


def _read(
    net: nn.Module, streams: Sequence[Tensor], objective: ObjectiveConfig
) -> tuple[Tensor, list[Tensor]]:
    """All the streams of a network in one pass: logits and features, stream after stream."""
    apart = objective.batchnorm_over == "stream"
    with normalised_by(net, [len(images) for images in streams] if apart else None):
        return net(torch.cat(list(streams)))


def _pseudo_labels(
    q_intra: dict[Stream, Tensor],
    q_inter: dict[Stream, Tensor],
    class_prior: nn.Module,
    objective: ObjectiveConfig,
    ranks: Ranks,
) -> tuple[Tensor, Tensor]:
    """Labels (B, H, W) of x^t by the mean of the teachers asked, and the mask of those to trust."""
    votes = [q_intra["target_as_source"]] if "intra_teacher" in objective.pseudo_from else []
    votes += [q_inter["target"]] if "inter_teacher" in objective.pseudo_from else []
    q_mean = torch.stack([vote.float().softmax(dim=1) for vote in votes]).mean(dim=0)
    if objective.pseudo_prior > 0:
        q_mean = class_prior(q_mean, ranks)
    if objective.pseudo_rule == "floor":
        return confident_labels(q_mean, objective.pseudo_confidence)
    return pseudo_labels(q_mean, objective.pseudo_confidence, ranks)


def _by_stream(images: Tensor, streams: Sequence[Stream]) -> dict[Stream, Tensor]:
    """(n * B, ...) -> n tensors (B, ...), by the stream they came from."""
    return dict(zip(streams, images.chunk(len(streams)), strict=True))


def _fool_all(critic: nn.Module, features: Sequence[Tensor]) -> Tensor:
    """L_adv over the levels. The critic's weights get no gradient in the student's phase."""
    critic.requires_grad_(False)
    loss = torch.stack([fool(score) for score in critic(features)]).mean()
    critic.requires_grad_(True)
    return loss


def _discern_all(critic: nn.Module, real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """The critic's own loss over the levels; no gradient reaches the networks."""
    pairs = zip(critic(real), critic([f.detach() for f in fake]), strict=True)
    return torch.stack([discern(r, f) for r, f in pairs]).mean()
