"""the paper's config -> images a second and peak memory of a training step, by method."""

from __future__ import annotations

import gc
import statistics
import time

import torch
from training import make_trainer, peak_mib, wait_for

from leuda_train.config.load import parse_config
from leuda_train.config.schema import TrainConfig
from leuda_train.loop.hardware import choose_hardware
from parts.plan import Folder, Setting, day_config
from parts.rows import Row, Rows

# row -> method, kind of loop
KINDS = {
    "le-uda": ("le-uda", "ours"),
    "le-uda-plus": ("le-uda-plus", "ours"),
    "CycleGAN (stage 1 of le-uda)": ("le-uda", "cyclegan"),
}
TURNS, TURN_SECONDS = 5, 4.0


def throughput(day: Folder, setting: Setting, rows: Rows) -> None:
    """Each in the precision that leuda chooses; on a GPU in fp32, too."""
    for precision in ("auto",) if setting.dry_run else ("auto", "fp32"):
        for title, (method, kind) in KINDS.items():
            rows.measure(f"{title}, {precision}", step_speed, setting, method, kind, precision)


def every_term_on(config: TrainConfig) -> TrainConfig:
    """The config with each term of L as it is late in a run, from the first step on."""
    content = config.model_dump(mode="json", exclude_none=True)
    content["objective"] |= {"warmup_epochs": 0, "ramp_epochs": 1, "pseudo_from_epoch": 0}
    content["objective"] |= {"pseudo_volumes_from_epoch": 0}
    return parse_config(content, config.method)


def step_speed(setting: Setting, method: str, kind: str, precision: str) -> Row:
    """Turns of a few seconds each, after a warm-up."""
    config = every_term_on(day_config(setting, method, precision))
    hardware = choose_hardware(config.device, config.precision)
    gc.collect()
    if hardware.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    trainer = make_trainer(kind, config, hardware)

    def steps(first: int, count: int) -> float:
        began = time.perf_counter()
        for number in range(first, first + count):
            trainer.step(number)
        wait_for(hardware.device)
        return time.perf_counter() - began

    warm_up = steps(0, 2)
    turn = 1 if setting.dry_run else max(1, round(TURN_SECONDS / steps(2, 1)))
    turns = 1 if setting.dry_run else TURNS
    seconds = [steps(3 + number * turn, turn) / turn for number in range(turns)]
    return {
        "method": method,
        "stage": config.translation.title if kind == "cyclegan" else config.method,
        "hardware": str(hardware),
        "window": list(config.recipe.window),
        "images_per_step": trainer.images_per_step,
        "images_per_s": round(trainer.images_per_step / statistics.median(seconds), 2),
        "step_ms": {
            "median": round(1000 * statistics.median(seconds), 2),
            "min": round(1000 * min(seconds), 2),
            "max": round(1000 * max(seconds), 2),
        },
        "turns": turns,
        "steps_a_turn": turn,
        "first_two_steps_s": round(warm_up, 2),
        # of the GPU; on a CPU of the whole process, with what ran before
        "peak_mib": peak_mib(hardware.device),
    }
