"""A better network scores higher, no target label is looked at, and the best epoch is kept."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from support import tiny
from torch import Tensor, nn

from leuda_train.objective.label_free import label_free_score, make_probe, size_price
from leuda_train.stages.adapt import Adaptation, adapt


class Thresholds(nn.Module):
    """Labels tiny.aligned_sets' images as they were made, with some confidence."""

    def __init__(self, confidence: float, shift: float = 0.0) -> None:
        super().__init__()
        self.confidence, self.shift = confidence, shift

    def forward(self, x: Tensor) -> Tensor:
        labels = (x[:, 0] > 0.5 + self.shift).long() + (x[:, 0] > 1.0 + self.shift).long()
        return self.confidence * nn.functional.one_hot(labels, 3).movedim(-1, 1).float()


def test_the_better_and_the_more_confident_network_score_higher():
    probe = make_probe(tiny.aligned_sets(), tiny.CPU, seed=0)
    good, bad, unsure = (
        label_free_score(network, probe, tiny.CPU)
        for network in (Thresholds(20.0), Thresholds(20.0, shift=1.0), Thresholds(0.1))
    )
    assert good > bad
    assert good > unsure
    assert good <= 1.0


def test_nothing_but_background_is_not_a_safe_choice():
    """It is sure of it, so its pseudo-label loss is 0."""

    class Empty(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([50.0, 0.0, 0.0])[None, :, None, None].expand(len(x), 3, 16, 16)

    sets = tiny.aligned_sets()
    probe = make_probe(sets, tiny.CPU, seed=0)
    assert label_free_score(Empty(), probe, tiny.CPU) == pytest.approx(-0.5, abs=1e-3)
    # a network that finds something, but little of it right
    assert label_free_score(Thresholds(20.0, shift=-0.3), probe, tiny.CPU) > -0.5


@pytest.mark.parametrize(
    ("found", "price"),
    [
        ([0.6, 0.2, 0.2], 0.0),
        ([0.5, 0.4, 0.1], 0.0),  # within a factor of 2
        ([0.65, 0.2, 0.05 * 2**0.5], 0.25),  # one of two structures by 2^1.5
        ([0.8, 0.2, 0.0], 0.5),
        ([1.0, 0.0, 0.0], 1.0),
    ],
)
def test_the_price_of_sizes(found, price):
    expected = torch.tensor([0.6, 0.2, 0.2])
    assert size_price(torch.tensor(found), expected).item() == pytest.approx(price, abs=1e-5)
    unknown = torch.tensor([0.8, 0.2, 0.0])  # a structure that no labelled slice shows
    assert size_price(torch.tensor([0.6, 0.2, 0.2]), unknown).item() == 0.0


def test_held_out_rows_are_what_is_scored_and_x_s_to_t_is_among_it():
    sets = replace(tiny.aligned_sets(), held_out_rows=np.array([4, 5]))
    probe = make_probe(sets, tiny.CPU, seed=0)
    assert set(probe.target_like) == {"fourier", "translated"}
    expected = torch.from_numpy(sets.images["source_as_target"][[4, 5]])[:, None]
    found = probe.target_like["translated"]
    assert torch.equal(found.sort(dim=0).values, expected.sort(dim=0).values)
    plain = replace(sets, images={k: sets.images[k] for k in ("source", "target")})
    assert set(make_probe(plain, tiny.CPU, seed=0).target_like) == {"fourier"}


def test_the_probe_uses_labelled_source_rows_and_no_target_label():
    sets = tiny.aligned_sets()
    probe = make_probe(sets, tiny.CPU, seed=0)
    assert len(probe.labels) == len(sets.labelled_rows)
    other = replace(sets, labels=np.where(np.arange(6)[:, None, None] < 4, sets.labels, 9))
    assert torch.equal(make_probe(other, tiny.CPU, seed=0).labels, probe.labels)


def test_the_networks_mode_is_left_as_it_was():
    """Of every part: the product of a teacher in eval mode is wrapped in a new module."""
    for training in (True, False):
        network = Thresholds(1.0).train(training)
        product = torch.nn.Sequential(network)
        label_free_score(product, make_probe(tiny.aligned_sets(), tiny.CPU, seed=0), tiny.CPU)
        assert product.training
        assert network.training is training


@pytest.mark.parametrize(("select", "rows"), [("last", 1), ("label-free", 4)])
def test_the_best_candidate_of_all_epochs_is_the_product(tmp_path, select, rows):
    ranked = select == "label-free"
    test = {"network": "auto", "select": select, "select_epochs": 1, "rank_epochs": ranked}
    config = tiny.config(test=test)
    run = tiny.stage_run(tmp_path)
    found = adapt(tiny.aligned_sets(), config, run, tiny.generator())
    assert len(found.scores) == rows
    candidates = ("student on target_as_source", "student on target")
    candidates += ("intra_teacher on target_as_source", "inter_teacher on target")
    assert set(found.scores[0]) == {"epoch", *candidates}
    assert len(found.looks) == rows * len(candidates) * (select == "label-free")
    best = max(value for row in found.scores for key, value in row.items() if key != "epoch")
    assert found.score == best
    row = next(row for row in found.scores if row["epoch"] == found.epoch)
    assert row[f"{found.network} on {found.feed}"] == best
    assert (found.chosen.to_source is None) == (found.feed == "target")


def test_pseudo_labels_train_the_student_on_the_target():
    sets = tiny.aligned_sets()
    terms = {**tiny.NO_TERMS, "supervised_on": ["source"], "teacher_batchnorm": "ema"}
    target = {"network": "inter_teacher", "feed": "target"}
    losses = {}
    for weight in (0.0, 1.0):
        on = {**terms, "lambda_pseudo": weight, "warmup_epochs": 0, "ramp_epochs": 1}
        network = target if weight else {"network": "student", "feed": "target"}
        trainer = Adaptation(sets, tiny.config(objective=on, test=network), tiny.CPU)
        losses[weight] = [trainer.step(step) for step in range(6)][-1]
    assert losses[0.0]["L_pseudo"] == 0
    assert losses[1.0]["L_pseudo"] > 0
    expected = losses[1.0]["L_seg"] + losses[1.0]["L_pseudo"]
    torch.testing.assert_close(losses[1.0]["L"], expected)
