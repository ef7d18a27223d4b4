"""Two processes that share every batch end where one with the joint batch ends."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tomli_w
import torch
from support import joint_training, tiny
from support.command import leuda
from support.states import assert_bit_equal, flat

from leuda_deploy.errors import InputError, TrainingError
from leuda_train.loop import ranks
from leuda_train.loop.launch import launch, without_gpus
from leuda_train.loop.metrics_log import read_metrics
from leuda_train.loop.ranks import ALONE, Ranks
from leuda_train.networks.batchnorm import normalised_by, with_joint_batchnorm
from leuda_train.networks.unet import UNet
from leuda_train.runs.run import check_shares

TESTS = Path(__file__).parents[2]
JOINT_TRAINING = TESTS / "support" / "joint_training.py"
STAGES = {"le-uda": 20, "self-training": 10, "by stream": 5, "translation": 10, "distillation": 5}


def torchrun(*arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Two processes on CPUs, by torch's launcher."""
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    paths = [str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        [sys.executable, *start, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=check,
        timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every stage, trained by two processes."""
    out = tmp_path_factory.mktemp("two processes")
    jobs = [f"{stage}:{steps}" for stage, steps in STAGES.items()]
    torchrun(JOINT_TRAINING, out, *jobs)
    return out


# A bias before a normalisation cancels out: its gradient is rounding alone, which Adam blows up
# to its step size. It moves nothing but the running mean behind it, which is compared without it.
# Scores count pixels.
CANCELS = re.compile(
    r"score|(encoder|decoder)\.\d\.[04]\.bias|running_mean"  # U-Net
    r"|to_\w+/layers\.(1|4|7|11|14|10\.layers\.[15])\.bias|discriminator/2\.bias"  # CycleGAN
)


def assert_close(found: object, expected: object, tolerance: float) -> None:
    """Weights, statistics and losses, to within the tolerance times their size."""
    found, expected = flat(found), flat(expected)
    assert found.keys() == expected.keys()
    compared = 0
    for place, value in found.items():
        if isinstance(value, torch.Tensor | float) and not CANCELS.search(place):
            if "optimizer" in place or "/generators/" in place or "/discriminators/" in place:
                continue  # its moments are numbered, not named; the weights show what it did
            value, other = torch.as_tensor(value), torch.as_tensor(expected[place])
            scale = max(1.0, float(other.abs().max()))
            assert float((value - other).abs().max()) < tolerance * scale, place
            compared += 1
    assert compared > 20


def running_means(state: object) -> dict[str, torch.Tensor]:
    """Of every normalisation of a U-Net, less the bias in front of it, which is free to drift."""
    every = flat(state)
    return {
        place: value - every[f"{found[1]}.{int(found[2]) - 1}.bias"]
        for place, value in every.items()
        if (found := re.fullmatch(r"(.*)\.(\d+)\.running_mean", place))
    }


@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_train_what_one_does_with_the_joint_batch(trained, tmp_path, stage):
    first, second = (torch.load(trained / f"{stage}-{rank}.pt") for rank in (0, 1))
    assert_bit_equal(first[0], second[0])  # the same networks in both, teachers too
    alone = joint_training.end(stage, STAGES[stage], tmp_path, ALONE)
    assert_close(first, alone, 1e-4)
    means, expected = running_means(first), running_means(alone)
    assert means.keys() == expected.keys()
    assert len(means) > 5 or stage == "translation"
    for place, mean in means.items():  # as far as a few steps of Adam move the bias
        assert float((mean - expected[place]).abs().max()) < 0.02, place
    begun, _ = joint_training.end(stage, 0, tmp_path / "none", ALONE)
    with pytest.raises(AssertionError):  # or the comparison would see nothing
        assert_close(first[0], begun, 1e-4)


@pytest.mark.parametrize("stage", ["le-uda", "translation"])
def test_one_process_goes_on_with_what_two_began(trained, tmp_path, stage):
    steps = STAGES[stage] + 3
    resumed, history = joint_training.end(stage, steps, trained / "checkpoints" / stage, ALONE)
    alone, expected = joint_training.end(stage, steps, tmp_path, ALONE)
    assert len(history) == len(expected) == steps
    # what rounding differs by grows from step to step, and a CycleGAN's steps are the larger ones
    assert_close(resumed, alone, 1e-3 if stage == "translation" else 1e-4)


def test_if_the_first_process_fails_those_that_wait_for_it_end(tmp_path):
    done = torchrun(JOINT_TRAINING, tmp_path, "the first fails", check=False)
    assert done.returncode == 1
    assert "as the test wants it" in done.stderr


def by_our_launcher(*arguments: object) -> subprocess.CompletedProcess[str]:
    """`leuda ARGUMENTS` on a machine that claims to have two GPUs; its processes are real."""
    two_gpus = "import torch; torch.cuda.device_count = lambda: 2"
    return leuda(*arguments, prelude=two_gpus, PYTHONPATH=str(TESTS.parent))


def test_what_the_user_can_mend_is_said_by_the_first_process_alone(tmp_path):
    (tmp_path / "bad.toml").write_text("nonsense = 3\n")
    asked = ("train", tmp_path / "bad.toml", "--out", tmp_path / "run", "--config", "demo")
    line = f"error: {tmp_path / 'bad.toml'}: unknown key 'nonsense'"
    done = torchrun("-m", "leuda_train", *asked, check=False)
    assert done.stderr.count("error:") == 1
    assert line in done.stderr
    assert done.stderr.count("Traceback") == 1  # torchrun's own
    done = by_our_launcher(*asked, "--gpus", "2")
    assert done.returncode == 2
    assert done.stderr.startswith(line)
    assert done.stderr.count("\n") == 1


def test_an_error_of_the_first_process_is_no_traceback_of_those_that_wait_for_it(tmp_path):
    cohort = tiny.write_tiny_cohort(tmp_path / "data")
    config = tmp_path / "mine.toml"
    content = tiny.content()
    del content["name"], content["method"]
    config.write_text(tomli_w.dumps(content))
    (tmp_path / "taken").write_text("no folder")
    asked = ["train", cohort, "--out", tmp_path / "run", "--cache", tmp_path / "taken"]
    done = by_our_launcher(*asked, "--config", config, "--gpus", "2")
    assert done.returncode == 2
    assert re.fullmatch(r"(.* takes about .*\n)*error: .*taken.*\n", done.stderr)


def test_a_process_that_fails_alone_says_so_in_the_end(monkeypatch):
    monkeypatch.setattr(ranks, "ECHO_SECONDS", 0.5)
    for rank, waits in (("0", False), ("1", True)):
        monkeypatch.setenv("RANK", rank)
        began = time.monotonic()
        with pytest.raises(InputError, match="mine alone"), ranks.one_voice():
            raise InputError("mine alone")
        assert (time.monotonic() - began >= 0.5) == waits


def test_a_process_that_a_signal_ended_is_one_clear_error(monkeypatch, tmp_path, capfd):
    package = tmp_path / "leuda_train"  # what is run in the processes, instead of ours
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text("import os\nos.kill(os.getpid(), 9)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(TrainingError, match="SIGKILL"):
        launch(2, [])
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_two_processes_make_one_run_folder(tmp_path):
    cohort = tiny.write_tiny_cohort(tmp_path / "data")
    content = tiny.content(translation={"steps": 4, "batch": 1})
    del content["name"], content["method"]
    (tmp_path / "mine.toml").write_text(tomli_w.dumps(content))
    options = ["--out", tmp_path / "run", "--config", tmp_path / "mine.toml", "--profile"]
    options += ["--method", "le-uda"]
    done = torchrun("-m", "leuda_train", "train", cohort, *options)
    assert done.stdout.count("look at ") == 1
    assert "batch = 1 cannot be shared by 2 processes: one trains, the others wait" in done.stderr
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert evaluation["hardware"].startswith("2 x CPU")
    profile = json.loads((tmp_path / "run" / "profile.json").read_text())
    assert set(profile) == {"translation", "le-uda"}
    assert profile["le-uda"]["share"]["exchange"] > 0
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [(row["stage"], row["step"]) for row in rows] == [
        ("translation", 4),
        ("le-uda", 10),
        ("le-uda", 12),
    ]
    assert list(tmp_path.rglob(".tmp-*")) == []


def test_a_batch_that_cannot_be_shared_evenly_is_refused():
    with pytest.raises(InputError, match=r"schedule\.batch_unlabelled"):
        check_shares(tiny.config(schedule={"batch_unlabelled": 3}), Ranks(1, 2))
    check_shares(tiny.config(), Ranks(1, 2))


def test_shares_together_are_the_joint_batch():
    joint = torch.arange(24).reshape(2, 6, 2)
    for dim, size in ((0, 2), (1, 3), (2, 2)):
        shares = [Ranks(rank, size).share(joint, dim) for rank in range(size)]
        assert torch.equal(torch.cat(shares, dim), joint)


def test_by_stream_batch_norm_is_a_pass_a_stream():
    torch.manual_seed(0)
    plain = UNet(3, (4, 8), (0.0, 0.0))
    batched = with_joint_batchnorm(copy.deepcopy(plain), ALONE)
    streams = [torch.randn(count, 1, 16, 16) + shift for count, shift in ((3, 0), (2, 2), (4, -1))]
    expected = [plain(stream)[0] for stream in streams]
    with normalised_by(batched, [3, 2, 4]):
        found = batched(torch.cat(streams))[0]
    torch.testing.assert_close(found, torch.cat(expected), atol=1e-5, rtol=1e-5)
    torch.cat(expected).square().mean().backward()
    found.square().mean().backward()
    for (name, a), b in zip(plain.named_parameters(), batched.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-4, msg=name)
    for (name, a), b in zip(plain.named_buffers(), batched.buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=name)
    together = batched(torch.cat(streams))[0]  # outside, the pass is one
    assert not torch.allclose(together, found, atol=1e-2)
    batched.eval(), plain.eval()
    plain.load_state_dict(batched.state_dict())
    assert torch.equal(batched(streams[0])[0], plain(streams[0])[0])


def test_more_gpus_than_there_are_is_one_clear_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match="--gpus 2"):
        launch(2, ["train", "cohort.toml"])


def test_the_processes_get_the_command_without_its_gpus():
    given = ["train", "c.toml", "--gpus", "4", "--out", "run", "--gpus=2", "--seed", "4"]
    assert without_gpus(given) == ["train", "c.toml", "--out", "run", "--seed", "4"]
