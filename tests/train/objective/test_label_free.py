"""A better network scores higher, no target label is looked at, and the best epoch is kept."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from support import tiny
from torch import Tensor, nn

from leuda_train.objective.label_free import label_free_score, make_probe
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


def test_the_probe_uses_labelled_source_rows_and_no_target_label():
    sets = tiny.aligned_sets()
    probe = make_probe(sets, tiny.CPU, seed=0)
    assert len(probe.labels) == len(sets.labelled_rows)
    other = replace(sets, labels=np.where(np.arange(6)[:, None, None] < 4, sets.labels, 9))
    assert torch.equal(make_probe(other, tiny.CPU, seed=0).labels, probe.labels)


def test_the_networks_mode_is_left_as_it_was():
    """Of every part: what is shipped of a teacher in eval mode is wrapped in a new module."""
    for training in (True, False):
        network = Thresholds(1.0).train(training)
        product = torch.nn.Sequential(network)
        label_free_score(product, make_probe(tiny.aligned_sets(), tiny.CPU, seed=0), tiny.CPU)
        assert product.training
        assert network.training is training


@pytest.mark.parametrize(("select", "rows"), [("last", 1), ("label-free", 4)])
def test_the_best_candidate_of_all_epochs_is_the_product(tmp_path, select, rows):
    test = {"network": "auto", "select": select, "select_epochs": 1}
    config = tiny.config(test=test)
    run = tiny.stage_run(tmp_path)
    found = adapt(tiny.aligned_sets(), 3, config, run, tiny.generator())
    assert len(found.scores) == rows
    assert set(found.scores[0]) == {"epoch", "student", "intra_teacher", "inter_teacher"}
    best = max(value for row in found.scores for key, value in row.items() if key != "epoch")
    assert found.score == best
    row = next(row for row in found.scores if row["epoch"] == found.epoch)
    assert row[found.network] == best
    assert (found.chosen.to_source is None) == (found.network == "inter_teacher")


def test_pseudo_labels_train_the_student_on_the_target():
    sets = tiny.aligned_sets()
    terms = {**tiny.NO_TERMS, "supervised_on": ["source"], "teacher_batchnorm": "ema"}
    target = {"network": "inter_teacher", "feed": "target"}
    losses = {}
    for weight in (0.0, 1.0):
        on = {**terms, "lambda_pseudo": weight, "warmup_epochs": 0, "ramp_epochs": 1}
        network = target if weight else {"network": "student", "feed": "target"}
        trainer = Adaptation(sets, 3, tiny.config(objective=on, test=network), tiny.CPU)
        losses[weight] = [trainer.step(step) for step in range(6)][-1]
    assert losses[0.0]["L_pseudo"] == 0
    assert losses[1.0]["L_pseudo"] > 0
    expected = losses[1.0]["L_seg"] + losses[1.0]["L_pseudo"]
    torch.testing.assert_close(losses[1.0]["L"], expected)
