"""Who may go on in a run folder, with what, and what is refused with one clear line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import tiny

from leuda_deploy.errors import InputError, TrainingError
from leuda_train.data.cohort import read_cohort
from leuda_train.export.product_file import load_product
from leuda_train.loop import checkpoint
from leuda_train.loop.run_folder import RunFolder
from leuda_train.runs import results
from leuda_train.runs.resume import Beginning, check_precision, check_same_run, claimed
from leuda_train.runs.run import write_config
from leuda_train.runs.train import train
from leuda_train.stages.adapt import Adaptation
from leuda_train.stages.memory import need_of
from leuda_train.stages.translate import STAGE


@pytest.fixture(scope="module")
def cohort_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_tiny_cohort(tmp_path_factory.mktemp("cohort"))


def test_one_process_at_a_time_trains_into_a_folder(tmp_path):
    folder = RunFolder(tmp_path / "run")
    with claimed(folder):
        with pytest.raises(InputError, match="another") as caught, claimed(folder):
            raise AssertionError("both are in")
        assert str(folder.path) in str(caught.value)
    assert not folder.lock.exists()
    with pytest.raises(RuntimeError), claimed(folder):
        raise RuntimeError  # a run that failed
    with claimed(folder):
        pass


@pytest.mark.parametrize(
    ("changed", "while_training", "afterwards"),
    [
        ({"device": "auto"}, True, True),
        ({"compile": True}, True, True),
        ({"schedule": {"checkpoint_seconds": 7.0}}, True, True),
        ({"precision": "bf16"}, True, False),
        ({"schedule": {"learning_rate": 5e-4}}, True, False),
        ({"adversarial": {"learning_rate": 1e-4}}, True, False),
        ({"schedule": {"epochs": 5}}, False, False),
        ({"seed": 1}, False, False),
        ({"distil": {"width": 1.0, "steps": 4, "learning_rate": 1e-3}}, False, False),
    ],
)
def test_what_may_be_another_when_a_run_is_started_again(
    cohort_file, tmp_path, changed, while_training, afterwards
):
    folder, cohort = RunFolder(tmp_path), read_cohort(cohort_file)
    write_config(folder, tiny.config(), cohort)
    for allowed in (while_training, afterwards):
        if allowed:
            check_same_run(folder, tiny.config(**changed), cohort)
        else:
            with pytest.raises(InputError, match=str(next(iter(changed)))):
                check_same_run(folder, tiny.config(**changed), cohort)
        folder.evaluation.touch()


def test_another_cohort_is_refused(cohort_file, tmp_path):
    folder, cohort = RunFolder(tmp_path), read_cohort(cohort_file)
    write_config(folder, tiny.config(), cohort)
    with pytest.raises(InputError, match=r"config\.toml"):
        check_same_run(folder, tiny.config(), cohort.with_labelled(1))


@pytest.mark.parametrize(
    ("began", "now", "asked", "allowed"),
    [
        ("bf16", "bf16", "auto", True),
        ("bf16", "fp32", "auto", False),  # another machine, without a word
        ("bf16", "fp32", "fp32", True),
        ("fp32", "bf16", "bf16", False),
        ("bf16", "fp16", "fp16", False),
    ],
)
def test_stage_2_changes_its_precision_to_fp32_alone_and_if_asked(began, now, asked, allowed):
    beginning = Beginning(precision=began, translation="t", translation_precision=began)
    hardware = replace(tiny.CPU, precision=now)
    if allowed:
        check_precision(beginning, tiny.config(precision=asked), hardware)
    else:
        with pytest.raises(InputError, match=f"{began}.*{now}"):
            check_precision(beginning, tiny.config(precision=asked), hardware)
    check_precision(None, tiny.config(precision=asked), hardware)


class KilledError(Exception):
    pass


@pytest.mark.slow
def test_stage_2_goes_on_with_the_translation_it_began_with(cohort_file, tmp_path, monkeypatch):
    cohort, run = read_cohort(cohort_file), tmp_path / "run"
    honest = Adaptation.step

    def dies(self, step):
        if step == 11:
            raise KilledError
        return honest(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Adaptation, "step", dies)
        with pytest.raises(KilledError):
            train(cohort, tiny.config(), run)
    saved = checkpoint.load_latest(run / "checkpoints")
    assert saved["step"] == 10
    assert saved["began_with"]["precision"] == "fp32"

    (generators,) = (tmp_path / "cache").glob("translation-*/generators.pt")
    ours = generators.read_bytes()
    other = checkpoint.load(generators)
    next(iter(other["to_target"].values())).add_(1e-3)
    torch.save(other, generators)
    with pytest.raises(TrainingError, match=saved["began_with"]["translation"]):
        train(cohort, tiny.config(), run)

    generators.write_bytes(ours)
    slower = tiny.config(schedule={"learning_rate": 5e-4})

    def no_disk(*_):
        raise OSError("no space left")

    with monkeypatch.context() as patch:  # scores do not wait for pictures
        patch.setattr(results, "draw_run", no_disk)
        with pytest.raises(OSError, match="no space"):
            train(cohort, slower, run)
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert evaluation["summary"]["as_predicted"]["mean"]["dice"] is not None
    assert train(cohort, slower, run) == evaluation
    _, facts, _ = load_product(run)
    assert facts.config["schedule"]["learning_rate"] == 5e-4
    assert not (run / "checkpoints").exists()


def test_a_translation_that_is_there_is_asked_for_no_memory(cohort_file, tmp_path):
    """The limit is CycleGAN's to keep only where it is trained."""
    cohort, cache = read_cohort(cohort_file), tmp_path / "cache"
    wide = {"translation": {"width": 32, "blocks": 4, "steps": 2}, "schedule": {"epochs": 1}}
    config = tiny.config(**wide)
    least = need_of(STAGE, config, 3, tiny.CPU, 1).peak
    limit = need_of("le-uda", config, 3, tiny.CPU).peak
    assert limit < least
    tight = tiny.config(**wide, max_memory=f"{limit}")
    with pytest.raises(InputError, match=STAGE):
        train(cohort, tight, tmp_path / "refused", cache=cache)
    assert not (tmp_path / "refused" / "config.toml").exists()
    train(cohort, config, tmp_path / "first", cache=cache)
    with pytest.raises(InputError, match=STAGE):  # of another seed
        train(cohort, tight.model_copy(update={"seed": 1}), tmp_path / "other", cache=cache)
    train(cohort, tight, tmp_path / "second", cache=cache)
    stages = {
        name: set(json.loads((tmp_path / name / "memory.json").read_text())["stages"])
        for name in ("first", "second")
    }
    assert stages == {"first": {STAGE, "le-uda"}, "second": {"le-uda"}}
