"""nothing -> phantoms, four trained methods, an exported model, labels, a picture and a table.

The main job end to end. Whatever is there already is reused; a killed demo goes on where it was.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from leuda_deploy.inference.segmenter import Segmenter
from leuda_deploy.jobs.find_jobs import Job
from leuda_deploy.jobs.run_jobs import run_job
from leuda_deploy.machine.files import atomic_path
from leuda_deploy.machine.progress import Progress, show_progress
from leuda_train.config.load import load_config
from leuda_train.data.phantom.phantom_cohort import write_cohort
from leuda_train.export.export_run import export
from leuda_train.runs.run import train

METHODS = ("source-only", "le-uda", "le-uda-plus", "supervised")
PRODUCT = "le-uda-plus"
SEED = 0


def run_demo(out: Path) -> dict[str, Any]:
    """Everything under `out`; returns, prints and keeps summary.json."""
    console = Console()
    summary_file = out / "summary.json"
    summary: dict[str, Any] = {}
    if summary_file.is_file():
        summary = json.loads(summary_file.read_text())
    if summary and all(Path(path).exists() for path in summary["look_at"].values()):
        console.print(f"reusing {out}; delete it to start over", soft_wrap=True)
    else:
        summary = _do_all(out, console)
        with atomic_path(summary_file) as temporary:
            temporary.write_text(json.dumps(summary, indent=1))
    console.print(_table(summary))
    console.print(f"{summary['seconds']['total']:.0f} s on {summary['hardware']}", soft_wrap=True)
    for what, path in summary["look_at"].items():
        console.print(f"{what:<22}{path}", soft_wrap=True)
    return summary


def _do_all(out: Path, console: Console) -> dict[str, Any]:
    seconds: dict[str, float] = {}

    @contextmanager
    def timed(name: str) -> Iterator[Progress]:
        began = time.monotonic()
        with show_progress(name) as report:
            yield report
        seconds[name] = round(time.monotonic() - began, 1)

    console.print("1/4 phantom scans")
    with timed("phantom") as progress:
        cohort = write_cohort(out / "cohort", seed=SEED, progress=progress)

    evaluations = {}
    for number, method in enumerate(METHODS, start=1):
        console.print(f"2/4 training {method} ({number} of {len(METHODS)})")
        config = load_config("demo", method, seed=SEED)
        evaluations[method] = train(
            cohort, config, out / method, cache=out / "cache", stage=show_progress
        )
        seconds[f"train {method}"] = evaluations[method]["seconds"]

    console.print("3/4 export: PyTorch -> ONNX, compared on real slices")
    with timed("export"):
        model, parity = export(out / PRODUCT, out / "model", licence="MIT")
    console.print(
        f"  largest |Δlogit| {parity.max_abs:.2g} of their spread over {parity.windows} windows"
    )

    console.print("4/4 inference on a held-out CT, without torch's help")
    scan = sorted((cohort.parent / "ct_test").glob("*_image.nii.gz"))[0]
    with timed("infer"):
        report = run_job(Job(scan=scan, output=out / "labels.nii.gz"), Segmenter(model))
    seconds["total"] = round(sum(seconds.values()), 1)
    return {
        "dice": {method: _dice(evaluation) for method, evaluation in evaluations.items()},
        "seconds": seconds,
        "hardware": evaluations[PRODUCT]["hardware"],
        "seed": SEED,
        "look_at": {
            "labels on a new scan": str(report.overlay),
            "image sets and curves": str(out / PRODUCT / "run.png"),
            "truth and prediction": str(out / PRODUCT / "predictions.png"),
            "labels": report.labels,
            "model": str(model.path),
            "summary": str(out / "summary.json"),
        },
    }


def _dice(evaluation: dict[str, Any]) -> dict[str, float]:
    """Dice by structure and their mean, as predicted."""
    summary = evaluation["summary"]["as_predicted"]
    rows = {**summary["structures"], "mean": summary["mean"]}
    return {name: round(row["dice"], 4) for name, row in rows.items()}


def _table(summary: dict[str, Any]) -> Table:
    dice = summary["dice"]
    table = Table(title="Dice on held-out target scans", title_justify="left")
    table.add_column("structure")
    for method in METHODS:
        table.add_column(method, justify="right")
    for structure in dice[PRODUCT]:
        table.add_row(structure, *(f"{dice[method][structure]:.3f}" for method in METHODS))
    return table
