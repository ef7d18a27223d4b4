"""A step whose activations are computed again is the step that keeps them, to the bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support import tiny
from support.states import assert_bit_equal
from torch.autograd.graph import saved_tensors_hooks

from leuda_train.loop.ranks import Ranks
from leuda_train.networks.batchnorm import normalised_by, with_joint_batchnorm
from leuda_train.networks.product import DeployedNetwork
from leuda_train.networks.unet import UNet
from leuda_train.stages.adapt import Adaptation
from leuda_train.stages.distil import Distillation
from leuda_train.stages.translate import Translation

STEPS = 4
# dropout, joint batch norm, every term, and a look at each term's gradient by itself
LE_UDA = {"schedule": {"shares_every": 2}}
SELF_TRAINED = {
    "objective": {"lambda_pseudo": 1.0, "pseudo_from": ["intra_teacher"], "copy_paste": 0.5},
    "schedule": {"shares_every": 2},
}
BY_STREAM = {"objective": {"batchnorm_over": "stream"}, "schedule": {"shares_every": 2}}


def adaptation(recomputed: int, precision: str = "fp32", **sections: object) -> Adaptation:
    config = tiny.config(**sections)
    hardware = replace(tiny.CPU, precision=precision)
    return Adaptation(
        tiny.aligned_sets(), config, hardware, tiny.generator(), recomputed=recomputed
    )


def kept_bytes(trainer: Adaptation, step: int) -> int:
    """What the backward passes of a step are left, each tensor once."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        trainer.step(step)
    return sum(kept.values())


def same_steps(one, other) -> None:
    """Both do the same: losses, gradients, weights, moments, running statistics."""
    for step in range(STEPS):
        assert_bit_equal(*(after(step, trainer) for trainer in (one, other)))


def after(step: int, trainer) -> dict[str, object]:
    terms = trainer.step(step)
    return {"terms": terms, "gradients": gradients(trainer), "state": trainer.state()}


def gradients(trainer) -> list[torch.Tensor]:
    parts = vars(trainer) | vars(getattr(trainer, "nets", trainer))
    optimizers = [part for part in parts.values() if isinstance(part, torch.optim.Optimizer)]
    assert optimizers
    found = [p.grad for o in optimizers for group in o.param_groups for p in group["params"]]
    assert any(gradient is not None and gradient.any() for gradient in found)
    return [torch.zeros(()) if gradient is None else gradient for gradient in found]


@pytest.mark.parametrize("sections", [LE_UDA, SELF_TRAINED, BY_STREAM])
@pytest.mark.parametrize("recomputed", [1, 2])
def test_stage_2(recomputed: int, sections: dict) -> None:
    same_steps(adaptation(0, **sections), adaptation(recomputed, **sections))


def test_stage_2_in_bf16() -> None:
    same_steps(adaptation(0, "bf16"), adaptation(2, "bf16"))


def test_stage_1() -> None:
    config = tiny.config().translation
    kept, again = (Translation(tiny.make_slices(), config, tiny.CPU, 0, n) for n in (0, 1))
    same_steps(kept, again)


def test_stage_3() -> None:
    def trainer(recomputed: int) -> Distillation:
        torch.manual_seed(3)
        teachers = {name: DeployedNetwork(UNet(3, (4, 8), (0.0, 0.0)), None) for name in "ab"}
        config = tiny.config(distil={"width": 1.0, "share": 1.0, "learning_rate": 3e-4})
        return Distillation(teachers, tiny.aligned_sets(), config, tiny.CPU, recomputed)

    same_steps(trainer(0), trainer(2))


def test_each_level_that_is_computed_again_keeps_less() -> None:
    sections = {
        "recipe": {"window": [32, 32]},
        "unet": {"widths": [4, 8, 16], "dropout": [0.1] * 3},
    }
    kept = []
    for levels in range(4):
        trainer = adaptation(levels, **sections)
        trainer.step(0)
        kept.append(kept_bytes(trainer, 1))
    assert kept == sorted(kept, reverse=True)
    assert kept[3] < 0.6 * kept[0]


def test_running_statistics_move_once_and_parts_stay_parts() -> None:
    """Also where several backward passes compute the same block again."""
    torch.manual_seed(0)
    images = torch.randn(4, 1, 8, 8)
    made = []
    for recomputed in (0, 2):
        torch.manual_seed(1)
        net = UNet(3, (4, 8), (0.0, 0.0))
        net.recomputed = recomputed
        with_joint_batchnorm(net, Ranks())
        with normalised_by(net, [3, 1]):
            logits, _ = net(images)
        loss = logits.square().mean()
        first = torch.autograd.grad(loss, list(net.parameters()), retain_graph=True)
        second = torch.autograd.grad(loss, list(net.parameters()))
        assert_bit_equal(list(first), list(second))
        made.append({"gradients": list(first), **net.state_dict()})
    assert_bit_equal(made[0], made[1])
    assert int(made[1]["encoder.0.1.num_batches_tracked"]) == 2  # a part, a count


def test_without_a_backward_pass_nothing_is_kept_for_one() -> None:
    net = UNet(3, (4, 8), (0.0, 0.0))
    net.recomputed = 2
    with torch.no_grad():
        assert net(torch.randn(1, 1, 8, 8))[0].grad_fn is None
    assert not net.eval()(torch.randn(1, 1, 8, 8))[0].isnan().any()
