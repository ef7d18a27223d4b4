"""nothing -> phantoms, four trained methods, an exported model, labels, a picture and a table.

The main job end to end. Whatever is there already is reused; a killed demo goes on where it was.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from leuda_deploy.engines.threads import usable_cores
from leuda_deploy.errors import InputError
from leuda_deploy.inference.segmenter import Segmenter
from leuda_deploy.jobs.find_jobs import Job
from leuda_deploy.jobs.outputs import plan_job_outputs
from leuda_deploy.jobs.run_jobs import run_job
from leuda_deploy.machine.files import write_json
from leuda_deploy.machine.outputs import Output, plan_outputs
from leuda_deploy.machine.outside import read_json
from leuda_deploy.machine.progress import Progress, ShowProgress, show_nothing
from leuda_deploy.model.export_folder import check_replaceable
from leuda_train.config.load import load_config
from leuda_train.data.cohort import read_cohort
from leuda_train.data.phantom.phantom_cohort import write_cohort
from leuda_train.export.export_run import export_run
from leuda_train.loop.run_folder import RunFolder
from leuda_train.runs.resume import check_free
from leuda_train.runs.side_by_side import Training, train_lanes

METHODS = ("source-only", "le-uda", "le-uda-plus", "supervised")
LANES = (("le-uda",), ("source-only", "supervised", "le-uda-plus"))  # at once, on two cores or more
WORK = {  # of each stage, in seconds of one core: for the time left
    "translation": 130,
    "source-only": 50,
    "supervised": 50,
    "le-uda-plus": 70,
    "le-uda": 115,
    "test scans": 10,
}
PRODUCT = "le-uda-plus"
SEED = 0
SUMMARY = "summary.json"


def read_demo(out: Path) -> dict[str, Any] | None:
    """The summary of a finished demo all of whose results are still there; else None."""
    path = out / SUMMARY
    if not (path.is_file() and _is_summary(path)):
        return None
    summary: dict[str, Any] = read_json(path)
    return summary if all(Path(there).exists() for there in summary["look_at"].values()) else None


def run_demo(out: Path, show: ShowProgress = show_nothing) -> dict[str, Any]:
    """Do everything, under `out`; returns and keeps summary.json.

    Raises InputError, before any work, if files stand there that leuda did not write.
    """
    _check_free(out)
    seconds: dict[str, float] = {}

    @contextmanager
    def timed(name: str, title: str) -> Iterator[Progress]:
        began = time.monotonic()
        with show(title) as progress:
            yield progress
        seconds[name] = round(time.monotonic() - began, 1)

    with timed("phantom", "1/4 phantom scans") as progress:
        cohort_file = write_cohort(out / "cohort", seed=SEED, progress=progress)
    cohort = read_cohort(cohort_file, cache=out / "cache")
    lanes = LANES if _has_two_cores() else ((*LANES[1][:1], *LANES[0], *LANES[1][1:]),)
    with timed("training", "2/4 four methods" + ", two at a time" * (len(lanes) - 1)) as progress:
        evaluations = train_lanes(
            [
                [
                    Training(
                        cohort=cohort,
                        config=load_config("demo", method, seed=SEED),
                        out=out / method,
                        cache=out / "cache",
                    )
                    for method in lane
                ]
                for lane in lanes
            ],
            WORK,
            progress,
        )
    product = RunFolder(out / PRODUCT)
    with timed("export", "3/4 export: PyTorch -> ONNX, compared on real slices") as progress:
        model, parity = export_run(product.path, out / "model", licence="MIT", progress=progress)
    # without torch's help
    scan = sorted((cohort_file.parent / "ct_test").glob("*_image.nii.gz"))[0]
    with timed("infer", "4/4 inference on a held-out CT"):
        report = run_job(Job(scan=scan, output=out / "labels.nii.gz"), Segmenter(model))
    seconds["total"] = round(sum(seconds.values()), 1)
    summary = {
        "dice": {method: _dice(evaluation) for method, evaluation in evaluations.items()},
        "parity": {"max_abs": parity.max_abs, "windows": parity.windows},
        "seconds": seconds,
        "hardware": evaluations[PRODUCT]["hardware"],
        "seed": SEED,
        "look_at": {
            "all of it, as a page": str(product.page),
            "labels on a new scan": str(report.overlay),
            "image sets and curves": str(product.run_picture),
            "truth and prediction": str(product.predictions_picture),
            "labels": report.labels,
            "model": str(model.path),
            "summary": str(out / SUMMARY),
        },
    }
    write_json(out / SUMMARY, summary)
    return summary


def _check_free(out: Path) -> None:
    summary = Output(path=out / SUMMARY, what="summary", option="--out", is_ours=_is_summary)
    plan_outputs([summary])
    plan_job_outputs([Job(scan=out / "cohort", output=out / "labels.nii.gz")], overlay=True)
    check_replaceable(out / "model")
    for method in METHODS:
        check_free(RunFolder(out / method))


def _is_summary(path: Path) -> bool:
    try:
        content = read_json(path)
    except InputError:
        return False
    return isinstance(content, dict) and {"look_at", "parity", "seed"} <= set(content)


def _has_two_cores() -> bool:
    """Whether methods can be trained side by side: on a GPU they only get in each other's way."""
    return not torch.cuda.is_available() and usable_cores() > 1


def _dice(evaluation: dict[str, Any]) -> dict[str, float]:
    """Dice by structure and their mean, as predicted."""
    summary = evaluation["summary"]["as_predicted"]
    rows = {**summary["structures"], "mean": summary["mean"]}
    return {name: round(row["dice"], 4) for name, row in rows.items()}


def table(summary: dict[str, Any]) -> Table:
    """Dice by structure and method, for a terminal."""
    dice = summary["dice"]
    shown = Table(title="Dice on held-out target scans", title_justify="left")
    shown.add_column("structure")
    for method in METHODS:
        shown.add_column(method, justify="right")
    for structure in dice[PRODUCT]:
        shown.add_row(structure, *(f"{dice[method][structure]:.3f}" for method in METHODS))
    return shown
