"""Teachers follow the student by the stated recursion, batch norm as asked."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from leuda_train.objective.ema import ema_decay, teacher_mode, update_teacher


def norm_layer(value: float) -> nn.BatchNorm1d:
    layer = nn.BatchNorm1d(2)
    for tensor in (*layer.parameters(), layer.running_mean, layer.running_var):
        nn.init.constant_(tensor, value)
    layer.num_batches_tracked.fill_(int(value))
    return layer


@pytest.mark.parametrize(
    ("update", "decay"), [(0, 0.0), (1, 0.5), (3, 0.75), (98, 98 / 99), (99, 0.99), (5000, 0.99)]
)
def test_decay_rises_to_its_limit(update, decay):
    assert ema_decay(update, 0.99) == pytest.approx(decay, rel=1e-12)


def test_early_teacher_is_the_mean_of_all_students():
    teacher, student = nn.Linear(1, 1), nn.Linear(1, 1)
    values = [1.0, 5.0, -3.0, 2.0]
    for update, value in enumerate(values):
        nn.init.constant_(student.weight, value)
        update_teacher(teacher, student, ema_decay(update, 0.99), "ema")
    assert teacher.weight.item() == pytest.approx(sum(values) / len(values), rel=1e-6)


def test_constant_decay_gives_the_geometric_sum():
    teacher, student = nn.Linear(1, 1), nn.Linear(1, 1)
    nn.init.constant_(teacher.weight, 2.0)
    nn.init.constant_(student.weight, 1.0)
    for _ in range(10):
        update_teacher(teacher, student, 0.9, "own")
    assert teacher.weight.item() == pytest.approx(1.0 + 0.9**10, rel=1e-5)
    assert student.weight.item() == 1.0


def test_ema_batchnorm_averages_running_statistics_and_copies_counts():
    teacher, student = norm_layer(1.0), norm_layer(5.0)
    update_teacher(teacher, student, 0.75, "ema")
    for tensor in (teacher.weight, teacher.running_mean, teacher.running_var):
        torch.testing.assert_close(tensor.detach(), torch.full((2,), 2.0))
    assert teacher.num_batches_tracked.item() == 5


def test_own_batchnorm_moves_weights_but_no_statistics():
    teacher, student = norm_layer(1.0), norm_layer(5.0)
    update_teacher(teacher, student, 0.75, "own")
    torch.testing.assert_close(teacher.weight.detach(), torch.full((2,), 2.0))
    assert teacher.running_mean.tolist() == [1.0, 1.0]
    assert teacher.running_var.tolist() == [1.0, 1.0]
    assert teacher.num_batches_tracked.item() == 1


def test_own_teacher_is_in_train_mode_and_ema_teacher_in_eval_mode():
    teacher = nn.Sequential(nn.BatchNorm1d(2))
    teacher_mode(teacher, "own")
    assert teacher.training
    assert teacher[0].training
    teacher_mode(teacher, "ema")
    assert not teacher.training
    assert not teacher[0].training


def test_different_networks_are_refused():
    with pytest.raises(AssertionError, match="different networks"):
        update_teacher(nn.Linear(1, 1), nn.Linear(1, 1, bias=False), 0.5, "ema")
