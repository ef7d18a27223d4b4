"""the paper's abdominal config at full size -> memory of a training step: predicted, and taken.

    python benchmarks/promises/training_memory.py

Each case trains in a process of its own on random images, all terms on: one step, then one that
also takes each term's gradient by itself (the CycleGAN: three steps). "levels": how many keep no
activations. Processor seconds are those of the second-last step, on one thread. Cases that the
results file has already are not run again; what is predicted is always reckoned anew.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from parts.speed import every_term_on
from training import CLASSES, make_sets, make_slices

from leuda_deploy.machine.files import write_json
from leuda_deploy.machine.outside import read_json
from leuda_train.config.load import load_config
from leuda_train.config.schema import TrainConfig
from leuda_train.loop.hardware import choose_hardware
from leuda_train.loop.profile import PeakMemory
from leuda_train.networks.cyclegan import Generator
from leuda_train.stages.adapt import Adaptation
from leuda_train.stages.memory import need_of
from leuda_train.stages.translate import STAGE, Translation

RESULTS = Path(__file__).parents[1] / "results" / "training_memory.json"
PAPER, TURN = "paper-abdominal", 2  # steps from one look at the gradients to the next
# method, stage, levels
CASES = (
    ("le-uda-plus", "le-uda-plus", 0),
    ("le-uda-plus", "le-uda-plus", 5),
    ("le-uda", STAGE, 0),
    ("le-uda", STAGE, 1),
    ("le-uda", "le-uda", 0),
    ("le-uda", "le-uda", 5),
)


def config_of(method: str, device: str, precision: str) -> TrainConfig:
    """The config with every term on, and gradient shares at the second step."""
    config = every_term_on(load_config(PAPER, method, device=device, precision=precision))
    schedule = config.schedule.model_copy(update={"shares_every": TURN})
    return config.model_copy(update={"schedule": schedule})


def work(case: dict[str, Any]) -> None:
    """Train a case in this process; print what it took."""
    config = config_of(case["method"], case["device"], case["precision"])
    hardware = choose_hardware(config.device, config.precision)
    sets, levels = make_sets(config.recipe.window[0]), case["levels"]
    need_of(case["stage"], config, CLASSES, hardware, levels)  # as `leuda train` does beforehand
    peak = PeakMemory(hardware.device)
    trainer: Translation | Adaptation
    if case["stage"] == STAGE:
        trainer = Translation(make_slices(sets), config.translation, hardware, 0, levels)
    else:
        trainer = Adaptation(sets, config, hardware, Generator(4, 1), recomputed=levels)
    seconds, last = [], 3 if case["stage"] == STAGE else TURN
    for step in range(last):
        began = time.process_time()
        trainer.step(step)
        seconds.append(time.process_time() - began)
        print(f"step {step + 1} of {last}: {peak.bytes()}", file=sys.stderr, flush=True)
    found = {"measured": peak.bytes(), "processor_s": round(seconds[-2], 1)}
    print(json.dumps(found | {"hardware": str(hardware)}))


def main() -> None:
    """Run what is missing; write all of it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="auto", choices=["auto", "bf16", "fp16", "fp32"])
    parser.add_argument("--cases", type=int, default=len(CASES), help="the first N alone")
    parser.add_argument("--save", type=Path, default=RESULTS)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.work:
        work(json.loads(options.work))
        return
    hardware = choose_hardware(options.device, options.precision)
    known = read_json(options.save)["cases"] if options.save.is_file() else []
    for method, stage, levels in CASES[: options.cases]:
        case = {"method": method, "stage": stage, "levels": levels}
        case |= {"device": options.device, "precision": hardware.precision}
        if any(case.items() <= row.items() for row in known):
            continue
        command = [sys.executable, __file__, "--work", json.dumps(case)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True, env=environment
        )
        known.append(case | json.loads(done.stdout.splitlines()[-1]))
        save(options.save, known)
    save(options.save, known)


def save(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write the cases, each beside what is predicted for it."""
    for row in rows:
        config = config_of(row["method"], row["device"], row["precision"])
        hardware = choose_hardware(config.device, config.precision)
        began = time.process_time()
        need = need_of(row["stage"], config, CLASSES, hardware, row["levels"])
        row["predicted"] = {**asdict(need), "peak": need.peak}
        row["prediction_processor_s"] = round(time.process_time() - began, 1)
        row["predicted_over_measured"] = round(need.peak / row["measured"], 3)
    write_json(path, {"command": "python benchmarks/promises/training_memory.py", "cases": rows})


if __name__ == "__main__":
    main()
