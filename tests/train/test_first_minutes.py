"""What a newcomer meets: `leuda` alone, completion, and the panel of a run in a terminal."""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path

import pytest
from rich.console import Console
from support.command import leuda_here

from leuda_deploy.cli.app import HAND_OVER, LOOK, MAKE, USE
from leuda_deploy.cli.start import next_steps
from leuda_deploy.errors import ConfigError
from leuda_train.cli.panel import TrainingPanel, clock, sparkline
from leuda_train.cli.train import complete_config, complete_method, saying_how_to_go_on
from leuda_train.config.load import load_config
from leuda_train.loop.run_folder import RunFolder


def put(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_next_steps_follow_from_what_is_there(tmp_path: Path) -> None:
    def commands() -> list[str]:
        return [step.command for step in next_steps(tmp_path)]

    assert commands()[0] == "leuda demo"
    put(tmp_path / "data" / "cohort.toml", tmp_path / "data" / "ct_image.nii.gz")
    assert commands()[0] == "leuda train data/cohort.toml --out runs/first"
    put(*(tmp_path / "runs" / "first" / name for name in ("evaluation.json", "model.pt")))
    assert commands() == [
        "leuda export runs/first -o exports/first",
        "leuda report runs/first",
        "leuda train data/cohort.toml --out runs/second",
    ]
    put(*(tmp_path / "exports" / "first" / name for name in ("manifest.json", "model.onnx")))
    assert commands() == [
        "leuda infer data/ct_image.nii.gz --model exports/first",
        "leuda report runs/first",
        "leuda train data/cohort.toml --out runs/second",
    ]
    put(*(tmp_path / "my out" / f"ct_labels{ending}" for ending in (".nii.gz", ".json")))
    assert commands()[0] == "leuda view 'my out'"


def test_next_steps_name_the_newest_run_and_take_no_name_for_an_option(tmp_path: Path) -> None:
    for age, name in enumerate(("new", "old")):
        put(*(tmp_path / "runs" / name / file for file in ("evaluation.json", "model.pt")))
        os.utime(tmp_path / "runs" / name / "evaluation.json", (100 - age, 100 - age))
    put(tmp_path / "-rf.nii.gz")
    commands = [step.command for step in next_steps(tmp_path)]
    assert commands[0] == "leuda export runs/new -o exports/new"
    shutil.rmtree(tmp_path / "runs")
    assert next_steps(tmp_path)[-1].command == "leuda infer ./-rf.nii.gz"


def test_leuda_alone_says_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = leuda_here()
    assert done.returncode == 0
    assert done.stdout.count("leuda ") >= 4
    assert "leuda demo" in done.stdout
    shown = leuda_here("--help").stdout
    assert "--install-completion" in shown
    for part in (MAKE, HAND_OVER, USE, LOOK):
        assert part in shown


def test_names_are_completed_and_guessed() -> None:
    assert complete_method("le-uda-plus-s") == ["le-uda-plus-source-labels"]
    assert "demo" in complete_config("")
    with pytest.raises(ConfigError, match="did you mean le-uda-plus"):
        load_config("demo", "le-uda-pls")


def test_the_panel_shows_stages_losses_and_the_time_left(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    rows = [
        {"stage": "le-uda", "step": step, "L": 1 / step, "L_D": 0.0, "images_per_s": 7.5}
        for step in (10, 20)
    ]
    folder.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    console = Console(file=io.StringIO(), force_terminal=True, width=110)
    panel = TrainingPanel(folder=folder, steps={"le-uda": 100, "distillation": 50}, console=console)
    with panel("le-uda") as progress:
        assert panel.seconds_left() == (None, None)
        progress(20, 100, "")
        panel.began -= 40.0  # as if twenty steps had taken so long
        own, every = panel.seconds_left()
        assert own == pytest.approx(160, rel=0.05)
        assert every == pytest.approx(260, rel=0.05)
        console.print(panel.draw())
    said = console.file.getvalue()
    for part in ("stage 1 of 2: le-uda", "20/100", "7.5 images/s", sparkline([0.1, 0.05])):
        assert part in said, part
    assert "L_D" not in said  # zero throughout


def test_the_panel_leaves_nothing_in_a_low_window(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80, height=4)
    panel = TrainingPanel(folder=RunFolder(tmp_path), steps={"le-uda": 100}, console=console)
    with panel("le-uda") as progress:
        progress(20, 100, "")
        console.file.seek(0)
        console.file.truncate()
    assert "stage 1" not in console.file.getvalue()


def test_training_that_is_stopped_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), saying_how_to_go_on():
        raise KeyboardInterrupt
    assert "the same command goes on" in capsys.readouterr().err


def test_figures_of_the_panel() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([1.0, 1.0]) == "▁▁"
    assert len(sparkline(range(100), width=10)) == 10
    assert sparkline([100.0, 10.0, 1.0]) == "█▅▁"  # a loss: its late, small steps are seen too
    assert [clock(s) for s in (5, 65, 3665)] == ["0:05", "1:05", "1:01:05"]
