"""A run that was killed before names changed is resumed by today's code."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch
from support import tiny
from support.states import flat

from leuda_train.loop.loop import run_steps
from leuda_train.stages.adapt import Adaptation
from leuda_train.stages.translate import Translation

OLD = Path(__file__).parents[2] / "data" / "checkpoints-with-old-names"
SAVED_STEPS, STEPS = 5, 8


def adaptation() -> Adaptation:
    return Adaptation(tiny.aligned_sets(), tiny.config(), tiny.CPU, tiny.generator())


def translation() -> Translation:
    return Translation(tiny.make_slices(), tiny.config().translation, tiny.CPU, seed=0)


MAKE = {"adaptation": adaptation, "translation": translation}


@pytest.fixture(params=MAKE)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """A stage, and a folder with its checkpoint from before."""
    content = gzip.decompress((OLD / f"{request.param}.pt.gz").read_bytes())
    (tmp_path / "last.pt").write_bytes(content)
    return request.param, tmp_path


def test_everything_in_an_old_checkpoint_is_restored(old):
    stage, folder = old
    saved = torch.load(folder / "last.pt")
    assert any("critic" in key for key in saved["trainer"])
    trainer = MAKE[stage]()
    run_steps(trainer, tiny.stage_run(folder), name=stage, steps=SAVED_STEPS)
    # in the same order, whatever it is called; what came since is fresh
    since = ("/class_prior", "/pseudo", "/source_pseudo")
    found = flat(trainer.state()).items()
    restored = [value for place, value in found if not place.startswith(since)]
    for value, expected in zip(restored, flat(saved["trainer"]).values(), strict=True):
        if isinstance(expected, torch.Tensor):
            assert torch.equal(value, expected)
        else:
            assert value == expected


def test_a_run_from_before_goes_on_under_the_names_of_today(old):
    stage, folder = old
    run = tiny.stage_run(folder)
    history = run_steps(MAKE[stage](), run, name=stage, steps=STEPS, log_every=1)
    assert [row["step"] for row in history] == list(range(1, STEPS + 1))
    # no term has another name now; the discriminators' scores by stream are new
    assert all(set(row) <= set(history[-1]) for row in history)
    assert all("/" in term for term in set(history[-1]) - set(history[0]))
    assert not any("critic" in term for term in history[0])
    if stage == "translation":  # nothing but names has changed there since
        before = json.loads((OLD / "translation.json").read_text())
        for row, expected in zip(history, before, strict=True):
            assert list(row.values()) == pytest.approx(list(expected.values()), rel=1e-4)
