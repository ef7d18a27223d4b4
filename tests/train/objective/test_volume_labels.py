"""Pseudo-labels of whole scans: islands go, rivals and unsure pixels stay unlabelled."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from support import tiny
from torch import Tensor, nn

from leuda_train.config.appearance import AppearanceConfig
from leuda_train.data.batches import draw_labelled
from leuda_train.data.slices import UNLABELLED
from leuda_train.objective.volume_labels import agreement, label_volumes, without_islands
from leuda_train.stages.adapt import Adaptation
from leuda_train.stages.self_labels import SelfLabels


def scan() -> np.ndarray:
    """Class 1: 4 slices of 36, an island of 9 and, in class 2, two pieces of 16 and 12."""
    found = np.zeros((6, 24, 24), dtype=np.uint8)
    found[0:4, 2:8, 2:8] = 1
    found[5, 20:23, 20:23] = 1
    found[1, 10:14, 10:14] = 2
    found[4, 10:14, 16:19] = 2
    return found


def test_islands_become_background_and_rivals_unlabelled():
    found = scan()
    found[2, 20, 2] = 2  # an island of one pixel
    cleaned = without_islands(found, found, 3)
    assert (cleaned == 1).sum() == 144
    assert (cleaned[5] == 0).all()
    assert (cleaned == 2).sum() == 16
    assert (cleaned[4, 10:14, 16:19] == UNLABELLED).all()
    assert (cleaned == UNLABELLED).sum() == 12
    assert cleaned[2, 20, 2] == 0


def test_pieces_are_found_in_what_was_meant_not_in_what_was_sure():
    found = scan()
    labels = found.copy()
    labels[2, 2:8, 2:8] = UNLABELLED  # an unsure slice does not cut the organ in two
    cleaned = without_islands(labels, found, 3)
    assert (cleaned == 1).sum() == 108
    assert (cleaned[2, 2:8, 2:8] == UNLABELLED).all()


class Reader(nn.Module):
    """Scores of class 1 that rise with grey values, behind a batch norm; no other structure."""

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.norm, self.classes = nn.BatchNorm2d(1), classes

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        z = self.norm(x)
        others = [torch.full_like(z, -99.0)] * (self.classes - 2)
        return torch.cat([torch.zeros_like(z), 4.0 * z, *others], dim=1), []


def test_whole_scans_are_labelled_with_the_norms_of_the_target():
    images = np.zeros((12, 24, 24), dtype=np.float32)
    images[0:6], images[6:12] = scan() == 1, scan()[::-1] == 1
    images = images * 50 + 300  # far from what an untrained norm expects
    teacher = Reader().train()
    labels = label_volumes(
        teacher,
        images,
        np.repeat([0, 1], 6),
        torch.tensor([0.9, 0.1]),
        strength=0.0,
        floor=0.6,
        hardware=tiny.CPU,
    )
    assert teacher.training
    assert labels.dtype == torch.uint8
    expected = (scan() == 1) & (np.arange(6) < 5)[:, None, None]
    assert np.array_equal(labels[:6].numpy() == 1, expected)
    assert np.array_equal(labels[6:].numpy() == 1, expected[::-1])


def trainer(**objective: object) -> Adaptation:
    terms = {
        **tiny.NO_TERMS,
        "supervised_on": ["source"],
        "lambda_pseudo": 1.0,
        "pseudo_by": "volume",
        "pseudo_from_epoch": 1,
        "warmup_epochs": 0,
        **objective,
    }
    config = tiny.config(objective=terms, test={"network": "inter_teacher", "feed": "target"})
    scans = np.repeat([0, 1], 3)
    sets = replace(
        tiny.aligned_sets(), source_scans=scans, target_scans=scans, labelled_rows=np.arange(3)
    )
    sets.labels[3:] = UNLABELLED
    return Adaptation(sets, config, tiny.CPU)


def test_labels_are_made_when_self_training_begins_and_anew_every_few_epochs():
    made = trainer(pseudo_every_epochs=2, copy_paste=0.5)
    seen = []
    for step in range(12):
        terms = made.step(step)
        seen.append(made.labels.target)
        assert (terms["L_pseudo"] > 0) == (step >= 3)
    assert all(labels is None for labels in seen[:3])
    assert seen[3] is seen[5]
    assert seen[6] is not seen[5]
    assert seen[6] is seen[11]
    assert seen[6].shape == (6, 16, 16)


def test_the_intra_domain_teacher_labels_the_source_that_nobody_labelled():
    made = trainer(pseudo_every_epochs=2, source_pseudo_share=0.5)
    before = np.array(made.labels.sets.labels)
    seen = []
    for step in range(9):
        made.step(step)
        seen.append(made.labels.source)
    assert all(labels is None for labels in seen[:3])
    assert seen[3] is seen[5]
    assert seen[6] is not seen[5]
    labels = made.labels.sets.labels
    assert (labels[:3] == before[:3]).all()  # the true ones
    assert (labels[3:] == seen[-1].numpy()).all()
    assert labels.max() < 3  # none is left unlabelled
    assert list(made.labels.sets.self_labelled_rows) == [3, 4, 5]


@pytest.mark.parametrize("self_training", [0.0, 1.0])
@pytest.mark.parametrize(("look", "kept"), [({"plain": 1.0}, 1), ({"curve": 1.0}, 0)])
def test_only_scans_whose_labels_survive_a_random_style_are_learned_from(look, kept, self_training):
    made = trainer(
        lambda_pseudo=self_training,
        teacher_batchnorm="own" if self_training else "ema",
        source_pseudo_share=0.5,
        source_pseudo_agreement=0.9,
    )
    images = np.zeros((6, 16, 16), dtype=np.float32)
    images[:, 2:8, 2:8] = 1.0
    sets = replace(made.labels.sets, images={"source": images, "target": images})
    labels = SelfLabels(sets, tiny.CPU)
    nets = replace(made.nets, intra_teacher=Reader(3), inter_teacher=Reader(3))
    style = {"convolution": 0.0, "plain": 0.0, "free_curves": 1.0, **look}
    config = made.config.model_copy(update={"target_appearance": AppearanceConfig(**style)})
    labels.renew(0, config, nets)
    assert labels.source_scans == (kept, 1)
    assert list(labels.sets.self_labelled_rows) == [3, 4, 5][: 3 * kept]
    expected = images[3:] == 1 if kept else np.zeros((3, 16, 16), dtype=bool)
    assert np.array_equal(labels.sets.labels[3:] == 1, expected)
    assert (labels.target is not None) == (self_training > 0)


def test_a_run_goes_on_where_no_scan_is_agreed_on():
    made = trainer(source_pseudo_share=0.5, source_pseudo_agreement=1.0)
    for step in range(4):
        made.step(step)
    made.labels.source = torch.full((3, 16, 16), UNLABELLED, dtype=torch.uint8)
    made.labels.restore(made.labels.state())
    assert made.labels.source_scans == (0, 1)
    rows = draw_labelled(made.labels.sets, made.draw, 5, "labelled")
    assert (rows < 3).all()
    made.step(4)


def test_two_labellings_agree_by_the_mean_dice_of_their_structures():
    first, second = np.zeros((2, 1, 4, 4), dtype=np.uint8)
    assert agreement(first, second, 3) == 0.0  # nothing that could be learned
    first[..., :2] = second[..., :2] = 1
    assert agreement(first, second, 3) == 1.0
    second[..., 3] = 2  # a structure that one of the two has alone
    assert agreement(first, second, 3) == 0.5


def test_the_supervised_images_are_shared_between_true_and_made_labels():
    made = trainer(source_pseudo_share=0.5)
    for step in range(4):
        made.step(step)
    of = replace(made.draw, labelled_count=6)
    for step in range(20):
        rows = draw_labelled(made.labels.sets, of, step, "labelled")
        assert (rows < 3).sum() == 3
        assert (rows >= 3).sum() == 3


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_resumed_run_keeps_its_labels(share):
    straight, first = (trainer(source_pseudo_share=share) for _ in range(2))
    for step in range(6):
        straight.step(step)
    for step in range(4):
        first.step(step)
    resumed = trainer(source_pseudo_share=share)
    resumed.restore(first.state())
    for step in range(4, 6):
        resumed.step(step)
    for a, b in zip(
        straight.nets.student.parameters(), resumed.nets.student.parameters(), strict=True
    ):
        assert torch.equal(a, b)


class Timid(Reader):
    """Finds the left half of what is bright."""

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        scores, features = super().forward(x)
        scores[..., scores.shape[-1] // 2 :] = torch.tensor([0.0, -4.0])[:, None, None]
        return scores, features


def test_labels_may_follow_the_edges_of_the_slices_first():
    images = np.zeros((4, 24, 24), dtype=np.float32)
    images[:, 6:18, 6:16] = 1.0
    images += 0.02 * np.random.default_rng(0).normal(size=images.shape).astype(np.float32)

    def found(refine: bool) -> Tensor:
        shares = torch.tensor([0.8, 0.2])
        labels = label_volumes(
            Timid().train(), images, np.zeros(4, int), shares,
            strength=0.0, floor=0.5, refine=refine, hardware=tiny.CPU,
        )  # fmt: skip
        return labels == 1

    beyond = np.s_[:, 8:16, 12:15]
    assert found(False)[beyond].sum() == 0
    assert found(True)[beyond].float().mean() > 0.9
    assert found(True)[:, :, 18:].sum() == 0
