"""What a step of stage 2 draws: coarse first, the target from its epoch on."""

from __future__ import annotations

from support import tiny

from leuda_train.stages.adapt import draw_of


def test_before_its_epoch_self_training_draws_no_target():
    objective = {
        **tiny.NO_TERMS,
        "supervised_on": ["source"],
        "lambda_pseudo": 1.0,
        "copy_paste": 0.5,
        "pseudo_from_epoch": 2,
    }
    config = tiny.config(objective=objective, test={"network": "student", "feed": "target"})
    before, after = draw_of(config, 5), draw_of(config, 6)
    assert (before.unlabelled, before.restyle_target, before.copy_paste) == ((), False, 0.0)
    assert (after.unlabelled, after.restyle_target, after.copy_paste) == (("target",), True, 0.5)
    assert before.images_per_step < after.images_per_step


def test_the_first_steps_are_coarse():
    config = tiny.config(schedule={"coarse_window": (8, 8), "coarse_share": 0.5})
    assert [draw_of(config, step).size for step in (0, 5, 6, 11)] == [
        (8, 8),
        (8, 8),
        (16, 16),
        (16, 16),
    ]


def test_scans_are_labelled_whole_from_their_epoch_on():
    objective = {
        **tiny.NO_TERMS,
        "supervised_on": ["source"],
        "lambda_pseudo": 1.0,
        "pseudo_by": "volume",
        "pseudo_from_epoch": 1,
        "pseudo_volumes_from_epoch": 3,
    }
    config = tiny.config(objective=objective, test={"network": "student", "feed": "target"})
    found = [config.at(epoch).objective for epoch in range(4)]
    assert [one.lambda_pseudo for one in found] == [0.0, 1.0, 1.0, 1.0]
    assert [one.pseudo_by for one in found[1:]] == ["slice", "slice", "volume"]
    assert [one.inter_streams for one in found] == [(), ("target",), ("target",), ()]
