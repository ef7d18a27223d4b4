"""The training commands: what they need, what they pass on, and what they print."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support import tiny
from support.command import leuda, leuda_here

from leuda_train.data.cohort import read_cohort
from leuda_train.runs import train as training

# what an interpreter without the package does; a None in sys.modules alone confuses scipy
WITHOUT_TORCH = """
import sys
from importlib.machinery import PathFinder

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name == "torch" else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
"""
BLOCKED_TORCH = "import sys; sys.modules['torch'] = None"


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "cohort.toml", "--out", "run"),
        ("export", "run", "-o", "out"),
        ("demo", "--out", "demo"),
    ],
)
@pytest.mark.parametrize("prelude", [WITHOUT_TORCH, BLOCKED_TORCH], ids=["missing", "blocked"])
def test_without_torch_training_commands_say_how_to_install_it(arguments, prelude):
    done = leuda(*arguments, prelude=prelude)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "pip install 'leuda[train]'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_training_half_cannot_be_imported_there():
    done = leuda("--help", prelude=WITHOUT_TORCH + "import leuda_train.objective.step")
    assert "No module named 'torch'" in done.stderr


def test_phantom_works_without_torch(tmp_path):
    few = (
        "import functools, leuda_train.data.phantom.phantom_cohort as p\n"
        "p.write_cohort = functools.partial(p.write_cohort, source_labelled=1,"
        " source_unlabelled=0, target_unlabelled=0, target_test=0)\n"
    )
    done = leuda("phantom", tmp_path / "data", prelude=WITHOUT_TORCH + few)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "data" / "cohort.toml")
    assert (tmp_path / "data" / "mr_labelled" / "mr_1001_image.nii.gz").is_file()


def test_evaluate_works_without_torch(tmp_path):
    cohort = tiny.write_tiny_cohort(tmp_path / "data")
    predicted = np.zeros((18, 16, 3), dtype=np.uint8)
    predicted[2:6, 3:9], predicted[8:12, 3:9] = 1, 2
    tiny.write_scan(tmp_path / "found" / "c3_label.nii.gz", predicted)
    truth = tmp_path / "data" / "ct_test" / "c3_label.nii.gz"
    found = tmp_path / "found" / "c3_label.nii.gz"
    done = leuda("evaluate", found, truth, "--cohort", cohort, "--json", prelude=WITHOUT_TORCH)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)["summary"]["as_predicted"]
    assert summary["mean"]["dice"] == 1.0


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        (("train", "missing.toml", "--out", "run"), "missing.toml"),
        (("train", "missing.toml", "--out", "run", "--config", "nonesuch"), "'nonesuch'"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_exit_code_2(arguments, wrong):
    done = leuda(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert wrong in done.stderr
    assert done.stderr.count("\n") == 1
    assert not Path("run").exists()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, object]:
    """What `leuda train` asks of the training half, which does nothing."""
    monkeypatch.chdir(tmp_path)
    seen: dict[str, object] = {}

    def train(cohort, config, out, *, show, **settings):
        seen.update(cohort=cohort, config=config, out=out, **settings)
        return {"method": config.method, "hardware": "a test"}

    monkeypatch.setattr(training, "train", train)
    return seen


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    return tiny.write_tiny_cohort(tmp_path / "data")


def write_config(path: Path) -> Path:
    import tomli_w

    content = tiny.content(seed=5)
    del content["name"], content["method"]
    path.write_text(tomli_w.dumps(content))
    return path


def test_options_not_given_leave_the_config_and_the_cohort_as_they_are(asked, cohort, tmp_path):
    config = write_config(tmp_path / "mine.toml")
    done = leuda_here("train", cohort, "--out", "r", "--config", config)
    assert done.returncode == 0, done.stderr
    chosen = asked["config"]
    assert (chosen.device, chosen.precision, chosen.seed) == ("cpu", "fp32", 5)
    assert (asked["out"], asked["cache"]) == (Path("r"), None)
    assert asked["cohort"] == read_cohort(cohort)


def test_options_given_replace_the_configs_values(asked, cohort, tmp_path):
    config = write_config(tmp_path / "mine.toml")
    options = ["--seed", "9", "--precision", "bf16", "--device", "auto", "--cache", "c"]
    options += ["--labelled", "1", "--json"]
    arguments = ["train", cohort, "--out", "r", "--config", config, *options]
    done = leuda_here(*arguments)
    assert done.returncode == 0, done.stderr
    chosen = asked["config"]
    assert (chosen.device, chosen.precision, chosen.seed) == ("auto", "bf16", 9)
    assert asked["cache"] == Path("c")
    assert asked["cohort"] == read_cohort(cohort).with_labelled(1)
    assert json.loads(done.stdout) == {"method": "le-uda-plus", "hardware": "a test"}


def test_after_training_the_next_command_is_printed(asked, cohort):
    done = leuda_here("train", cohort, "--out", "runs/r")
    assert "leuda export runs/r -o exports/r" in done.stdout


def test_a_process_that_is_not_the_first_prints_nothing(asked, cohort, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    done = leuda_here("train", cohort, "--out", "runs/r")
    assert (done.returncode, done.stdout) == (0, "")
    assert asked["out"] == Path("runs/r")
