"""a cohort, or phantoms -> a run of the paper's config, trained until this process is ended.

Started again, the run goes on from its last checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from leuda_deploy.machine.files import atomic_path
from leuda_deploy.machine.outside import read_json
from leuda_deploy.machine.progress import show_progress
from leuda_deploy.machine.stop import ending_when_told
from leuda_train.loop.metrics_log import read_metrics
from leuda_train.loop.run_folder import MAX_EVALUATION_BYTES, RunFolder
from parts.plan import TINY, Folder, Setting, day_config
from parts.rows import Rows

MOST_POINTS = 100  # of a loss curve
GRID_MM = 0.7  # of phantoms: their 168 mm are 240 pixels, and the paper's window has 256
TINY_GRID_MM = GRID_MM * 256 / TINY["recipe"]["window"][0]


def training(day: Folder, setting: Setting, rows: Rows) -> None:
    """Train. What was reached is read from the run folder, also if this process is killed."""
    from leuda_train.data.cohort import read_cohort
    from leuda_train.runs.train import train

    with ending_when_told():
        _, given = day.read()
        cohort = given or phantoms(day, setting)
        cache = day.path / "cache"
        train(
            read_cohort(cohort, cache=cache),
            day_config(setting, setting.method),
            day.run,
            cache=cache,
            show=show_progress,
        )


def phantoms(day: Folder, setting: Setting) -> Path:
    """Their cohort.toml, on a grid on which they fill the window."""
    from leuda_train.data.phantom.phantom_cohort import write_cohort

    path = day.path / "phantoms" / "day.toml"
    if not path.is_file():
        few = {"source_labelled": 2, "source_unlabelled": 1, "target_unlabelled": 1}
        with show_progress("phantoms") as progress:
            made = write_cohort(
                path.parent,
                progress=progress,
                **({**few, "target_test": 1} if setting.dry_run else {}),
            )
        grid = TINY_GRID_MM if setting.dry_run else GRID_MM
        before, after = (f"spacing_mm = [{mm}, {mm}]" for mm in (2.5, grid))
        text = made.read_text()
        assert before in text
        with atomic_path(path) as temporary:
            temporary.write_text(text.replace(before, after))
    return path


def reached(day: Folder, setting: Setting) -> dict[str, Any]:
    """How far the run in the folder is, and what it has found; says so if there is none."""
    run = RunFolder(day.run)
    config = day_config(setting, setting.method)
    planned = {config.method: config.schedule.steps}
    if config.uses_translation and config.translation.kind == "cyclegan":
        planned = {f"translation ({config.translation.title})": config.translation.steps, **planned}
    rows, stages = read_metrics(run.metrics), {}
    for stage in dict.fromkeys([*planned, *(row["stage"] for row in rows)]):
        own = [row for row in rows if row["stage"] == stage]
        rates = [row["images_per_s"] for row in own if "images_per_s" in row]
        stages[stage] = {
            "steps": int(own[-1]["step"]) if own else 0,
            "of": planned.get(stage),
            "images_per_s": round(median(rates), 2) if rates else None,
        }
    every = [row for row in rows if "L_seg" in row]
    every = every[:: max(1, -(-len(every) // MOST_POINTS))]
    finished = run.evaluation.is_file()
    evaluation = read_json(run.evaluation, most=MAX_EVALUATION_BYTES) if finished else {}
    summary = evaluation.get("summary", {}).get("as_predicted", {})
    return {
        "method": config.method,
        "stages": stages,
        "L_seg": [[int(row["step"]), round(row["L_seg"], 4)] for row in every],
        "finished": finished,
        "hardware": evaluation.get("hardware"),
        "dice": {name: figures["dice"] for name, figures in summary.get("structures", {}).items()}
        or None,
        "mean_dice": summary.get("mean", {}).get("dice"),
    }
