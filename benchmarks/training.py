"""The training step against a plain one, against the machine, and as a share of `leuda train`.

    python benchmarks/training.py                    # about 8 minutes on two CPU cores
    python benchmarks/training.py --device cuda --size 256 --widths 64,128,256,512,1024

1. images/s of the step in `leuda_train` and of `parts/plain_step.py`: the same networks and batch,
   each in a process of its own (so that the allocator's settings do not leak), taking turns
2. whether the losses of the two follow each other over 200 steps, on smaller networks
3. floating point operations a second over those of a large matrix product, same precision
4. peak memory of each process
5. where the time goes in a real `leuda train --profile`
6. torch.compile: how many steps until it has paid for itself

Writes benchmarks/results/training.json and training.png.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch
from matplotlib.figure import Figure
from torch.utils.flop_counter import FlopCounterMode

from leuda_train.config.load import load_config, parse_config
from leuda_train.config.schema import TrainConfig
from leuda_train.config.streams import SOURCE_STREAMS, TARGET_STREAMS
from leuda_train.data.aligned_sets import AlignedSets
from leuda_train.data.phantom.phantom_cohort import write_cohort
from leuda_train.data.slices import Slices
from leuda_train.loop.hardware import DTYPES, Hardware, choose_hardware
from leuda_train.loop.loop import Trainer
from leuda_train.networks.cyclegan import Generator
from leuda_train.stages.adapt import Adaptation, draw_of
from leuda_train.stages.translate import Translation

RESULTS = Path(__file__).parent / "results"
CLASSES = 5
# name -> what it is: (kind of loop, precision)
VARIANTS = {
    "plain fp32": ("plain", "fp32"),
    "ours fp32": ("ours", "fp32"),
    "ours": ("ours", "auto"),
    "ours compiled": ("ours", "auto"),
    "CycleGAN": ("cyclegan", "auto"),
}
COMPILED = "ours compiled"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is trained: square images, U-Net widths, images a stream."""

    size: int
    widths: tuple[int, ...]
    batch: int
    device: str

    def config(
        self, precision: str, *, dropout: float = 0.1, compiled: bool = False, **objective: Any
    ) -> TrainConfig:
        """LE-UDA as it comes, at this size, every term on from the first step."""
        content = load_config("small", "le-uda").model_dump(mode="json", exclude_none=True)
        content["recipe"]["window"] = [self.size, self.size]
        del content["schedule"]["coarse_window"]
        content["unet"] = {"widths": list(self.widths), "dropout": [dropout] * len(self.widths)}
        content["schedule"] |= {"batch_labelled": self.batch, "batch_unlabelled": self.batch}
        content["objective"] |= {"warmup_epochs": 0, "ramp_epochs": 1, **objective}
        content["translation"] |= {"batch": self.batch, "width": self.widths[0]}
        content |= {"device": self.device, "precision": precision, "compile": compiled}
        return parse_config(content, "the benchmark")


def make_sets(size: int, count: int = 32) -> AlignedSets:
    """Smooth random images with labels that follow from them; enough for a loss to fall."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.normal(size=(2, count, 8, 8)).astype(np.float32))
    source, target = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic").numpy()
    images = {}
    for family, first in ((SOURCE_STREAMS, source), (TARGET_STREAMS, -target)):
        for number, stream in enumerate(family):
            noise = rng.normal(scale=0.1, size=first.shape).astype(np.float32)
            images[stream] = first * (-1) ** (number == 1) + noise
    labels = np.digitize(source, [-0.8, 0.0, 0.8, 1.4]).astype(np.uint8)
    return AlignedSets(
        images=images,
        classes=CLASSES,
        labels=labels,
        labelled_rows=np.arange(count // 2),
        source_scans=np.arange(count) // 16,
        target_scans=np.arange(count) // 16,
    )


def make_slices(sets: AlignedSets) -> Slices:
    """The same images, as stage 1 sees them."""
    source, target = sets.images["source"], sets.images["target"]
    return Slices(
        key="benchmark",
        source=source,
        source_labels=sets.labels,
        labelled_rows=sets.labelled_rows,
        target=target,
        target_labels=None,
        target_scans=np.zeros(len(target), int),
        target_intensities=(),
    )


def make_trainer(kind: str, config: TrainConfig, hardware: Hardware) -> Trainer:
    """Ours: stage 2 or stage 1."""
    sets = make_sets(config.recipe.window[0])
    if kind == "cyclegan":
        return Translation(make_slices(sets), config.translation, hardware, seed=0)
    return Adaptation(sets, config, hardware, Generator(4, 1))


def stepper(kind: str, config: TrainConfig) -> tuple[Callable[[int], Any], torch.device]:
    """A function that does step n, and where."""
    if kind == "plain":
        from parts.plain_step import PlainLoop

        device = torch.device(config.device)
        return PlainLoop(make_sets(config.recipe.window[0]), config, device).step, device
    hardware = choose_hardware(config.device, config.precision)
    return make_trainer(kind, config, hardware).step, hardware.device


def wait_for(device: torch.device) -> None:
    """Until the device has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def peak_mib(device: torch.device) -> float:
    """Of this process: the device's memory, or on CPUs the resident set."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


# --- in a process of its own


def work(kind: str, config: TrainConfig, threads: int) -> None:
    """Answer each line on stdin, a number of steps, with the seconds they took."""
    torch.set_num_threads(threads)
    step, device = stepper(kind, config)
    done = 0
    for line in sys.stdin:
        began = time.perf_counter()
        for _ in range(int(line)):
            step(done)
            done += 1
        wait_for(device)
        answer = {"seconds": time.perf_counter() - began, "peak_mib": peak_mib(device)}
        print(json.dumps(answer), flush=True)


class Worker:
    """The other end of `work`."""

    def __init__(self, kind: str, config: TrainConfig, threads: int) -> None:
        command = [sys.executable, __file__, "--work", kind, "--threads", str(threads)]
        command += ["--config-json", config.model_dump_json(exclude_none=True)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def steps(self, count: int) -> dict[str, float]:
        """Do so many; seconds and peak memory."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a worker failed; see above")
        answer: dict[str, float] = json.loads(line)
        return answer

    def end(self) -> None:
        """No more questions."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


# --- the measurements


def compare_speed(setting: Setting, threads: int, rounds: int) -> dict[str, Any]:
    """images/s and peak memory of every variant; they take turns, a few seconds each."""
    configs = {
        name: setting.config(precision, compiled=name == COMPILED)
        for name, (_, precision) in VARIANTS.items()
    }
    workers = {name: Worker(kind, configs[name], threads) for name, (kind, _) in VARIANTS.items()}
    steps, warm_up = {}, {}
    for name, worker in workers.items():  # warm-up, and how many steps a turn
        warm_up[name] = worker.steps(2)["seconds"]
        steps[name] = max(1, round(4.0 / worker.steps(1)["seconds"]))
        say(f"{name}: warm-up {warm_up[name]:.1f} s, {steps[name]} steps a turn")
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in workers}
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        for name, worker in workers.items():
            turns[name].append(worker.steps(steps[name]))
    found = {}
    for name, worker in workers.items():
        worker.end()
        config = configs[name]
        cyclegan = VARIANTS[name][0] == "cyclegan"
        images = 2 * config.translation.batch if cyclegan else draw_of(config, 0).images_per_step
        seconds = [turn["seconds"] / steps[name] for turn in turns[name]]
        found[name] = {
            "images_per_step": images,
            "images_per_s": round(images / statistics.median(seconds), 2),
            "step_ms": {
                "median": round(1000 * statistics.median(seconds), 1),
                "min": round(1000 * min(seconds), 1),
                "max": round(1000 * max(seconds), 1),
            },
            "first_two_steps_s": round(warm_up[name], 1),
            "turns": rounds,
            "steps_a_turn": steps[name],
            "peak_mib": turns[name][-1]["peak_mib"],
        }
    return found


def break_even(speed: dict[str, Any]) -> dict[str, Any]:
    """How many steps torch.compile needs to win back what its first steps took; None: never."""
    eager, compiled = speed["ours"], speed[COMPILED]
    cost_s = compiled["first_two_steps_s"] - eager["first_two_steps_s"]
    gain_s = (eager["step_ms"]["median"] - compiled["step_ms"]["median"]) / 1000
    return {
        "times_eager": round(eager["step_ms"]["median"] / compiled["step_ms"]["median"], 3),
        "compilation_s": round(cost_s, 1),
        "steps": round(cost_s / gain_s) if gain_s > 0 else None,
    }


def follow_losses(device: str, steps: int) -> dict[str, Any]:
    """Both over the same steps: the plain loop, ours by stream in fp32, and ours as it is used."""
    small = Setting(size=48, widths=(8, 16, 32), batch=4, device=device)
    runs = {
        "plain fp32": ("plain", small.config("fp32", dropout=0.0)),
        "ours fp32, batch norm by stream": (
            "ours",
            small.config("fp32", dropout=0.0, batchnorm_over="stream"),
        ),
        "ours": ("ours", small.config("auto", dropout=0.0)),
    }
    curves: dict[str, list[float]] = {}
    for name, (kind, config) in runs.items():
        step, _ = stepper(kind, config)
        curves[name] = [round(float(step(number)["L_seg"]), 5) for number in range(steps)]
        say(f"{name}: L_seg {curves[name][0]:.3f} -> {curves[name][-1]:.3f}")
    plain = np.array(curves["plain fp32"])
    gap = {}
    for name, curve in curves.items():
        if name != "plain fp32":
            difference = np.abs(np.array(curve) - plain)
            gap[name] = {
                "first_20_steps_max": round(float(difference[:20].max()), 5),
                "all_steps_mean": round(float(difference.mean()), 5),
                "mean_of_last_50": round(float(np.mean(curve[-50:])), 4),
            }
    gap["plain fp32"] = {"mean_of_last_50": round(float(plain[-50:].mean()), 4)}
    return {"size": 48, "widths": [8, 16, 32], "steps": steps, "L_seg": curves, "gap": gap}


def matmul_peak(hardware: Hardware) -> float:
    """Floating point operations a second of a large product, the best of many."""
    size = 8192 if hardware.device.type == "cuda" else 2048
    a, b = torch.randn(2, size, size, device=hardware.device).to(DTYPES[hardware.precision])
    best = float("inf")
    for _ in range(50):
        wait_for(hardware.device)
        began = time.perf_counter()
        torch.mm(a, b)
        wait_for(hardware.device)
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def utilisation(setting: Setting, speed: dict[str, Any]) -> dict[str, Any]:
    """Operations of one step (counted in convolutions and products) over the machine's peak."""
    found, peaks = {}, {}
    for name in ("ours fp32", "ours", "CycleGAN"):
        kind, precision = VARIANTS[name]
        config = setting.config(precision)
        hardware = choose_hardware(config.device, config.precision)
        trainer = make_trainer(kind, config, hardware)
        with FlopCounterMode(display=False) as counter:
            trainer.step(0)
        if hardware.precision not in peaks:
            peaks[hardware.precision] = matmul_peak(hardware)
        peak = peaks[hardware.precision]
        achieved = counter.get_total_flops() / (speed[name]["step_ms"]["median"] / 1000)
        found[name] = {
            "precision": hardware.precision,
            "gflop_per_step": round(counter.get_total_flops() / 1e9, 1),
            "achieved_gflop_per_s": round(achieved / 1e9, 1),
            "matmul_peak_gflop_per_s": round(peak / 1e9, 1),
            "share_of_peak": round(achieved / peak, 3),
        }
        say(f"{name}: {found[name]['share_of_peak']:.0%} of the peak of a matrix product")
    return found


def profile_run(device: str, threads: int) -> dict[str, Any]:
    """Shares of wall time in `leuda train` on phantoms, with the small config cut short."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_cohort(folder / "cohort", source_unlabelled=2, target_unlabelled=2, target_test=1)
        content = load_config("small", "le-uda").model_dump(mode="json", exclude_none=True)
        content["translation"]["steps"] = 40
        content["schedule"] |= {"epochs": 2, "steps_per_epoch": 30, "coarse_share": 0.0}
        del content["method"], content["name"]
        (folder / "short.toml").write_text(tomli_w.dumps(content))
        command = [sys.executable, "-m", "leuda_train", "train"]
        command += [str(folder / "cohort" / "cohort.toml"), "--out", str(folder / "run")]
        command += ["--config", str(folder / "short.toml"), "--device", device, "--profile"]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
        profiles: dict[str, Any] = json.loads((folder / "run" / "profile.json").read_text())
    for profile in profiles.values():
        share = profile["share"]
        profile["data_and_logging"] = round(share["data"] + share["other"], 4)
    return profiles


def draw(path: Path, report: dict[str, Any]) -> None:
    """Speed and the curves of the losses, side by side."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    speed = {k: v for k, v in report["speed"].items() if k != "CycleGAN"}
    bars = left.barh(list(speed), [v["images_per_s"] for v in speed.values()], color="#0072B2")
    left.bar_label(bars, fmt="%.1f")
    left.invert_yaxis()
    left.set_xlabel("images/s")
    left.set_title(report["setting"]["words"], fontsize=9)
    for name, curve in report["losses"]["L_seg"].items():
        right.plot(curve, label=name, linewidth=1)
    right.set_xlabel("step")
    right.set_ylabel("L_seg")
    right.legend(fontsize=8)
    figure.savefig(path, dpi=100)


def say(line: str) -> None:
    """How far it is."""
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    """Measure, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--widths", default="32,64,128,256,512")
    parser.add_argument("--batch", type=int, default=4, help="images a stream")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200, help="whose losses are compared")
    parser.add_argument("--results", type=Path, default=RESULTS / "training.json")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--config-json", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work, TrainConfig.model_validate_json(options.config_json), options.threads)
        return 0

    torch.set_num_threads(options.threads)
    widths = tuple(map(int, options.widths.split(",")))
    setting = Setting(size=options.size, widths=widths, batch=options.batch, device=options.device)
    say("1/4 speed and memory")
    speed = compare_speed(setting, options.threads, options.rounds)
    say("2/4 operations")
    operations = utilisation(setting, speed)
    say("3/4 losses")
    losses = follow_losses(options.device, options.steps)
    say("4/4 leuda train --profile")
    profiles = profile_run(options.device, options.threads)
    words = f"{options.size} x {options.size}, widths {options.widths}, {options.batch} a stream"
    gain = speed["ours"]["images_per_s"] / speed["plain fp32"]["images_per_s"]
    report = {
        "setting": {"words": words, "threads": options.threads, "device": options.device},
        "hardware": str(choose_hardware(options.device, "auto")),
        "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
        "speed": speed,
        "times_plain": round(gain, 2),
        "compile_pays_after": break_even(speed),
        "operations": operations,
        "losses": losses,
        "profile_of_leuda_train": profiles,
    }
    options.results.parent.mkdir(parents=True, exist_ok=True)
    options.results.write_text(json.dumps(report, indent=1) + "\n")
    draw(options.results.with_suffix(".png"), report)
    summary = {k: report[k] for k in ("setting", "hardware", "times_plain", "compile_pays_after")}
    summary["images_per_s"] = {name: found["images_per_s"] for name, found in speed.items()}
    summary["peak_mib"] = {name: found["peak_mib"] for name, found in speed.items()}
    print(json.dumps(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
