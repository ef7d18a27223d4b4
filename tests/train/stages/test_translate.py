"""Stage 1: each phase trains its own networks, and the six sets are made once and reused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support import tiny

from leuda_train.data.slices import Slices
from leuda_train.stages.translate import Translation, learning_rate, load_translation


def test_each_phase_trains_its_own_networks_and_no_other():
    trainer = Translation(tiny.make_slices(), tiny.config().translation, tiny.CPU, seed=0)
    nets = trainer.nets
    discriminators = torch.nn.ModuleList([nets.target_discriminator, nets.source_discriminator])
    generators = torch.nn.ModuleList([nets.to_target, nets.to_source])

    def values(module: torch.nn.Module) -> list[torch.Tensor]:
        return [p.detach().clone() for p in module.parameters()]

    before, middle = (values(discriminators), values(generators)), []

    def look(*_: object) -> None:
        assert all(p.grad is None for p in discriminators.parameters())
        middle.extend((values(discriminators), values(generators)))

    trainer.generators.register_step_post_hook(look)
    trainer.step(0)
    equal = lambda a, b: all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert equal(before[0], middle[0])
    assert not equal(before[1], middle[1])
    assert not equal(middle[0], values(discriminators))
    assert equal(middle[1], values(generators))


def test_learning_rate_is_constant_for_half_the_steps_then_falls_to_zero():
    found = [learning_rate(step, 100, 2e-4) for step in (0, 50, 75, 99)]
    assert found == pytest.approx([2e-4, 2e-4, 1e-4, 4e-6])


def load(cache: Path, slices: Slices, seed: int = 0):
    config = tiny.config(translation={"steps": 3}).translation
    return load_translation(slices, config, seed, tiny.stage_run(cache))


def test_the_six_sets_are_what_the_kept_generators_make_of_the_slices(tmp_path):
    slices = tiny.make_slices(17)  # more than one chunk
    made = load(tmp_path, slices)
    assert list(made.images) == [
        "source",
        "target",
        "source_as_target",
        "source_cycled",
        "target_as_source",
        "target_cycled",
    ]
    assert all(image.shape == (17, 16, 16) for image in made.images.values())
    with torch.no_grad():
        expected = made.to_source(torch.from_numpy(slices.target)[:, None])[:, 0].numpy()
        cycled = torch.from_numpy(made.images["source_as_target"].copy())[:, None]
        cycled = made.to_source(cycled)[:, 0].numpy()
    np.testing.assert_allclose(made.images["target_as_source"], expected, atol=1e-5)
    np.testing.assert_allclose(made.images["source_cycled"], cycled, atol=1e-5)
    assert [row["step"] for row in made.history] == [3]


def test_a_translation_is_made_once_and_reused(tmp_path):
    load(tmp_path, tiny.make_slices())
    (folder,) = tmp_path.glob("translation-*")
    times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    again = load(tmp_path, tiny.make_slices())
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == times
    assert again.history == json.loads((folder / "history.json").read_text())
    assert tiny.made(tmp_path) == [folder]
    load(tmp_path, tiny.make_slices(), seed=1)
    assert len(list(tmp_path.glob("translation-*"))) == 2


def test_runs_with_more_or_fewer_labels_share_one_translation(tmp_path):
    slices = tiny.make_slices()
    first = load(tmp_path, slices)
    fewer = replace(slices, key="other", labelled_rows=slices.labelled_rows[:1])
    again = load(tmp_path, replace(fewer, source_labels=fewer.source_labels + 1))
    assert len(list(tmp_path.glob("translation-*"))) == 1
    np.testing.assert_array_equal(
        again.images["target_as_source"], first.images["target_as_source"]
    )
    load(tmp_path, replace(slices, target=slices.target[::-1].copy()))
    assert len(list(tmp_path.glob("translation-*"))) == 2
