"""student -> teacher: the exponential moving average of its weights."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

TeacherBatchNorm = Literal["ema", "own"]


def ema_decay(update: int, limit: float) -> float:
    """min(1 - 1/(n + 1), limit): a plain mean at first, then a window of 1/(1 - limit) updates."""
    return min(1.0 - 1.0 / (update + 1.0), limit)


@torch.no_grad()
def update_teacher(
    teacher: nn.Module, student: nn.Module, decay: float, batchnorm: TeacherBatchNorm
) -> None:
    """teacher <- decay * teacher + (1 - decay) * student, in float32.

    batchnorm "ema"  running statistics are averaged like the weights: the teacher speaks the
                     student's domain
              "own"  running statistics are left alone: the teacher gathers those of the domain it
                     is shown (what the released MT-UDA code did without saying so)
    """
    theirs: list[Tensor] = list(student.parameters())
    ours: list[Tensor] = list(teacher.parameters())
    assert len(theirs) == len(ours), "teacher and student are different networks"
    torch._foreach_lerp_(ours, theirs, 1.0 - decay)
    if batchnorm == "ema":
        for mine, other in zip(teacher.buffers(), student.buffers(), strict=True):
            if mine.is_floating_point():
                mine.lerp_(other, 1.0 - decay)
            else:
                mine.copy_(other)  # counts of batches seen


def teacher_mode(teacher: nn.Module, batchnorm: TeacherBatchNorm) -> None:
    """With "own", train mode: it normalises by, and remembers, its own domain; else eval mode.

    Dropout follows the mode, so an "own" teacher drops out, as in the released MT-UDA code.
    """
    teacher.train(batchnorm == "own")
