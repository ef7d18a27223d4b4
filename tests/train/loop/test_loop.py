"""A killed run goes on as if nothing had happened; a bad loss or a bad file stops or warns."""

from __future__ import annotations

import errno
import logging
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from support import tiny
from support.states import assert_bit_equal

from leuda_deploy.errors import MissingExtraError, TrainingError
from leuda_train.loop.loop import Watch, checkpoint, run_steps
from leuda_train.loop.metrics_log import Metrics, read_metrics
from leuda_train.loop.run_folder import RunFolder
from leuda_train.stages import adapt, translate

STEPS = 12


class Counter:
    """A trainer that knows how often it was asked, and can be told to break."""

    images_per_step = 4

    def __init__(self, *, fail_at: int | None = None, value: float = math.nan) -> None:
        self.fail_at, self.value = fail_at, value
        self.done: list[int] = []

    def step(self, step: int) -> dict[str, torch.Tensor]:
        self.done.append(step)
        bad = step == self.fail_at
        return {"L": torch.tensor(float(step)), "L_seg": torch.tensor(self.value if bad else 1.0)}

    def state(self) -> dict[str, object]:
        return {"done": list(self.done)}

    def restore(self, state: dict[str, object]) -> None:
        self.done = list(state["done"])


class KilledError(Exception):
    pass


class DiesAt:
    """A trainer that is killed before a step."""

    def __init__(self, trainer, step: int) -> None:
        self.trainer, self.dies_at = trainer, step
        self.images_per_step = trainer.images_per_step
        self.state, self.restore = trainer.state, trainer.restore

    def step(self, step: int):
        if step == self.dies_at:
            raise KilledError
        return self.trainer.step(step)


def run(trainer, folder, *, steps: int = STEPS, log_every: int = 1, seconds: float = 0.0):
    stage = tiny.stage_run(folder, seconds=seconds)
    return run_steps(trainer, stage, name="test", steps=steps, log_every=log_every)


def adaptation(**changes):
    config = tiny.config(**changes)
    return adapt.Adaptation(tiny.aligned_sets(), config, tiny.CPU, tiny.generator())


def translation():
    return translate.Translation(tiny.make_slices(), tiny.config().translation, tiny.CPU, seed=0)


def scored_adaptation():
    """With scores on the way, and teachers that run in eval mode."""
    test = {"network": "auto", "select": "label-free", "select_epochs": 1}
    return adaptation(test=test, objective={"teacher_batchnorm": "ema"})


@pytest.mark.parametrize("make", [adaptation, scored_adaptation, translation])
def test_a_killed_and_resumed_run_is_bit_equal_to_an_uninterrupted_one(make, tmp_path):
    straight = make()
    history = run(straight, tmp_path / "straight", seconds=60.0)
    with pytest.raises(KilledError):
        run(DiesAt(make(), 7), tmp_path / "killed")
    assert checkpoint.load_latest(tmp_path / "killed")["step"] == 7
    resumed = make()
    assert run(resumed, tmp_path / "killed") == history
    assert_bit_equal(resumed.state(), straight.state())


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage"])
def test_a_damaged_last_checkpoint_falls_back_to_the_one_before(tmp_path, caplog, damage):
    straight = adaptation()
    run(straight, tmp_path / "straight", seconds=60.0)
    with pytest.raises(KilledError):
        run(DiesAt(adaptation(), 7), tmp_path / "killed")
    last = tmp_path / "killed" / "last.pt"
    content = last.read_bytes()
    last.write_bytes({"truncated": content[: len(content) // 2], "empty": b""}.get(damage, b"{}\n"))
    resumed = DiesAt(adaptation(), -1)
    begins: list[int] = []
    resumed.step = lambda step: (begins.append(step), resumed.trainer.step(step))[1]
    with caplog.at_level(logging.WARNING, logger="leuda"):
        run(resumed, tmp_path / "killed")
    assert begins[0] == 6
    (record,) = caplog.records
    assert record.name == "leuda"
    assert "last.pt" in record.message
    assert record.message.endswith("going back to the one before")
    assert_bit_equal(resumed.trainer.state(), straight.state())


def test_two_damaged_checkpoints_mean_starting_anew_with_a_warning_for_each(tmp_path, caplog):
    for name in ("last.pt", "previous.pt"):
        (tmp_path / name).write_bytes(b"not a checkpoint")
    trainer = Counter()
    with caplog.at_level(logging.WARNING, logger="leuda"):
        run(trainer, tmp_path, steps=3, seconds=60.0)
    assert trainer.done == [0, 1, 2]
    assert [r.message.rsplit("; ")[-1] for r in caplog.records] == [
        "going back to the one before",
        "starting anew",
    ]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc] unexpected pos 704 vs 598"),
    ],
)
def test_a_full_disk_is_one_line_and_the_checkpoint_before_stays(tmp_path, monkeypatch, error):
    honest = torch.save

    def full_from_step_3(state, path):
        if state["step"] >= 3:
            Path(path).write_bytes(b"half of it")
            raise error
        honest(state, path)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full_from_step_3)
        with pytest.raises(TrainingError, match=r"new\.pt"):
            run(Counter(), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"last.pt", "previous.pt"}
    trainer = Counter()
    run(trainer, tmp_path)
    assert trainer.done == list(range(STEPS))
    assert checkpoint.load_latest(tmp_path)["step"] == STEPS


def test_no_checkpoint_means_starting_without_a_word(tmp_path, caplog):
    assert checkpoint.load_latest(tmp_path) is None
    assert caplog.records == []


@pytest.mark.parametrize("keep", [0.0, 0.05, 0.3, 0.6, 0.9, 0.99])
def test_a_file_cut_anywhere_is_one_clear_error(tmp_path, keep):
    path = tmp_path / "state.pt"
    checkpoint.save(path, {"weights": torch.randn(100), "step": 3})
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(TrainingError, match=r"state\.pt"):
        checkpoint.load(path)


def test_a_checkpoint_runs_no_code(tmp_path):
    path = tmp_path / "state.pt"
    torch.save({"trainer": Counter()}, path)
    with pytest.raises(TrainingError):
        checkpoint.load(path)


def test_a_missing_file_is_one_clear_error(tmp_path):
    with pytest.raises(TrainingError, match=r"state\.pt"):
        checkpoint.load(tmp_path / "state.pt")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_names_its_term_and_keeps_the_checkpoint(tmp_path, value):
    with pytest.raises(TrainingError, match=r"L_seg.*\b6\b"):
        run(Counter(fail_at=5, value=value), tmp_path)
    assert checkpoint.load_latest(tmp_path)["step"] == 5


def test_a_loss_that_is_not_finite_between_two_log_rows_is_found_at_the_next(tmp_path):
    with pytest.raises(TrainingError, match=r"L_seg.*\b8\b"):
        run(Counter(fail_at=5), tmp_path, log_every=4)
    assert checkpoint.load_latest(tmp_path)["step"] == 4


def test_history_has_a_row_every_so_many_steps_with_averages_over_them(tmp_path):
    history = run(Counter(), tmp_path, steps=10, log_every=4)
    assert history == [
        {"step": 4, "L": 1.5, "L_seg": 1.0},
        {"step": 8, "L": 5.5, "L_seg": 1.0},
        {"step": 10, "L": 8.5, "L_seg": 1.0},
    ]


def test_a_finished_run_does_nothing_more(tmp_path):
    history = run(Counter(), tmp_path)
    again = Counter()
    assert run(again, tmp_path) == history
    assert again.done == list(range(STEPS))  # restored, not done again


def test_checkpoints_are_written_no_more_often_than_asked(tmp_path, monkeypatch):
    trainer, saved = Counter(), []
    monkeypatch.setattr("leuda_train.loop.loop.time.monotonic", lambda: 1.0 * len(trainer.done))
    monkeypatch.setattr(checkpoint, "save_latest", lambda _, state: saved.append(state["step"]))
    run(trainer, tmp_path, seconds=5.0)  # a step takes a second
    assert saved == [5, 10]


def test_metrics_are_written_as_they_come_and_a_resumed_stage_drops_what_is_past_its_checkpoint(
    tmp_path,
):
    metrics = Metrics(RunFolder(tmp_path))
    metrics.begin("other", [{"step": 7, "L": 1.0}])

    def watched(trainer):
        watch = Watch(progress=tiny.quiet, metrics=metrics)
        stage = tiny.stage_run(tmp_path / "c", seconds=0.0, watch=watch)
        return run_steps(trainer, stage, name="test", steps=8, log_every=2)

    with pytest.raises(KilledError):
        watched(DiesAt(Counter(), 5))
    (tmp_path / "c" / "last.pt").unlink()  # back to step 2
    with metrics.path.open("a") as file:
        file.write('{"stage": "test", "step": 6, "L')  # cut off by the kill
    assert [row["step"] for row in read_metrics(metrics.path)] == [7, 2, 4]
    history = watched(Counter())
    rows = read_metrics(metrics.path)
    assert rows[0] == {"stage": "other", "step": 7, "L": 1.0}
    assert all(row.pop("images_per_s") > 0 for row in rows[1:])
    assert rows[1:] == [{"stage": "test", **row} for row in history]
    assert [row["step"] for row in rows[1:]] == [2, 4, 6, 8]


def test_tensorboard_is_written_if_it_is_there_and_else_named_with_its_extra(tmp_path, monkeypatch):
    said: list[tuple[object, ...]] = []

    class SummaryWriter:
        def __init__(self, folder: str) -> None:
            assert folder == str(tmp_path / "tensorboard" / "test")
            assert not Path(folder).exists()  # of a killed run, rows after its checkpoint
            Path(folder).mkdir(parents=True)

        def add_scalar(self, *row) -> None:
            said.append(row)

        def flush(self) -> None:
            said.append(("flush",))

        def close(self) -> None:
            said.append(("close",))

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    metrics = Metrics(RunFolder(tmp_path), tensorboard=True)
    metrics.begin("test", [])
    metrics.add("test", {"step": 4, "L": 0.5}, 12.0)
    assert said == [("L", 0.5, 4), ("images_per_s", 12.0, 4), ("flush",)]
    metrics.close()
    said.clear()
    resumed = Metrics(RunFolder(tmp_path), tensorboard=True)
    resumed.begin("test", [{"step": 4, "L": 0.5}])
    assert said == [("L", 0.5, 4), ("images_per_s", 12.0, 4), ("flush",)]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtraError, match=r"leuda\[tensorboard\]"):
        Metrics(RunFolder(tmp_path), tensorboard=True)


def test_a_profile_shares_out_the_wall_time(tmp_path):
    watch = Watch(progress=tiny.quiet, profiles={})
    run_steps(adaptation(), tiny.stage_run(tmp_path, watch=watch), name="x", steps=3)
    found = watch.profiles["x"]
    assert found["images_per_s"] == pytest.approx(3 * 16 / found["seconds"], rel=0.01)
    assert sum(found["share"].values()) == pytest.approx(1.0, abs=1e-3)
    for name in ("data", "forward", "backward", "optimizer", "EMA"):
        assert found["share"][name] > 0, name


def test_the_progress_line_says_images_a_second(tmp_path):
    notes: list[str] = []
    watch = Watch(progress=lambda done, total, note: notes.append(note))
    stage = tiny.stage_run(tmp_path, watch=watch)
    run_steps(Counter(), stage, name="x", steps=2, log_every=1)
    assert all(note.endswith(" images/s") for note in notes)


def test_a_flipped_bit_in_a_checkpoint_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    weights = torch.arange(1000.0)
    checkpoint.save(path, {"weights": weights})
    content = bytearray(path.read_bytes())
    content[content.index(weights.numpy().tobytes()) + 100] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(TrainingError):
        checkpoint.load(path)


def test_a_state_that_is_not_finite_is_named() -> None:
    state = {"student": {"a": torch.ones(3)}, "pools": [torch.ones(2), torch.tensor([torch.nan])]}
    assert checkpoint.first_not_finite(state) == "pools.1"
    assert checkpoint.first_not_finite({"a": torch.ones(2), "b": 3, "c": "text"}) is None
