"""`leuda infer`: command line -> label files. Heavy imports are inside the command."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from leuda_deploy.cli.app import JsonOption, app, say
from leuda_deploy.cli.log import log_to_stderr

if TYPE_CHECKING:
    from collections.abc import Iterable

    from leuda_deploy.jobs.report import Report
    from leuda_deploy.jobs.run_jobs import Outcome

# the panels of `leuda infer --help`
ENGINE, RESULTS, MANY = "Engine and memory", "Results", "Many scans"


@app.command()
def infer(
    scan: Annotated[
        Path,
        typer.Argument(help="A scan, a folder with one DICOM series, or a folder of scans."),
    ],
    model: Annotated[
        Path | None,
        typer.Option(
            help="Export folder or *.onnx file. Default: the phantom model that comes with leuda."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Label file, or a folder for many scans. Default: ./SCAN_labels.nii.gz",
        ),
    ] = None,
    engine: Annotated[
        Literal["auto", "ort-cpu", "ort-cuda", "openvino", "tensorrt", "tensorrt-rtx"],
        typer.Option(
            help="What runs the model; an error if it cannot. auto: the fastest that agrees with "
            "ONNX Runtime.",
            rich_help_panel=ENGINE,
        ),
    ] = "ort-cpu",
    precision: Annotated[
        Literal["auto", "fp32", "bf16"],
        typer.Option(
            help="What the engine computes in. bf16 is for openvino.", rich_help_panel=ENGINE
        ),
    ] = "auto",
    threads: Annotated[
        int | None, typer.Option(help="CPU threads. Default: all.", min=1, rich_help_panel=ENGINE)
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            help="Windows at a time. Default: the best in a short trial on this machine.",
            min=1,
            rich_help_panel=ENGINE,
        ),
    ] = None,
    mirror: Annotated[
        bool,
        typer.Option(
            "--mirror",
            help="Average the scores of mirrored windows. Slower.",
            rich_help_panel=ENGINE,
        ),
    ] = False,
    max_memory: Annotated[
        str | None,
        typer.Option(
            help="Most memory to use, e.g. 1.5G. A scan that needs more is refused at once.",
            rich_help_panel=ENGINE,
        ),
    ] = None,
    max_gpu_memory: Annotated[
        str | None, typer.Option(help="Most GPU memory to use.", rich_help_panel=ENGINE)
    ] = None,
    overlay: Annotated[
        bool,
        typer.Option(
            "--overlay/--no-overlay",
            help="Also write a picture (PNG) beside the labels.",
            rich_help_panel=RESULTS,
        ),
    ] = True,
    uncertainty: Annotated[
        Path | None,
        typer.Option(
            help="Also write an entropy map to this file; for many scans, to this folder.",
            rich_help_panel=RESULTS,
        ),
    ] = None,
    dicom_seg: Annotated[
        Path | None,
        typer.Option(
            help="Also write DICOM SEG to this file. Only for a DICOM series.",
            rich_help_panel=RESULTS,
        ),
    ] = None,
    as_json: JsonOption = False,
    frame: Annotated[
        str | None,
        typer.Option(help="Frame of a 4D scan, counted from 0, or all.", rich_help_panel=MANY),
    ] = None,
    jobs: Annotated[
        int,
        typer.Option(
            help="Scans labelled at the same time. CPU only.", min=1, rich_help_panel=MANY
        ),
    ] = 1,
    shard: Annotated[
        str,
        typer.Option(
            help="i/n: only every n-th scan of the folder, from the i-th on.", rich_help_panel=MANY
        ),
    ] = "1/1",
    again: Annotated[
        bool,
        typer.Option("--again", help="Also label scans that are done.", rich_help_panel=MANY),
    ] = False,
) -> None:
    """Label scans, each on its own grid.  [dim]Needs: nothing more.[/dim]"""
    from leuda_deploy.inference.segmenter import Segmenter
    from leuda_deploy.inference.settings import Settings
    from leuda_deploy.jobs.find_jobs import Job, find_jobs, holds_dicom, stem, with_frames
    from leuda_deploy.jobs.run_jobs import run_job, run_jobs
    from leuda_deploy.jobs.workers import Orders, run_in_processes
    from leuda_deploy.machine.memory import parse_bytes
    from leuda_deploy.machine.progress import show_progress
    from leuda_deploy.model.model_file import ModelFile

    settings = Settings(
        engine=engine,
        precision=precision,
        threads=threads,
        batch=batch,
        max_bytes=parse_bytes(max_memory) if max_memory else None,
        max_gpu_bytes=parse_bytes(max_gpu_memory) if max_gpu_memory else None,
        mirror=mirror,
    )
    if model is None:
        from leuda_deploy.model.default_model import default_model

        model = default_model()
        say(f"no --model given: using {model}, trained on phantoms, not for patients")
    opened = ModelFile.open(model)
    if scan.is_dir() and not holds_dicom(scan):
        todo = find_jobs(scan, output or Path(), shard=shard, uncertainty=uncertainty, frames=frame)
    else:
        output = output or Path(f"{stem(scan)}_labels.nii.gz")
        job = Job(scan=scan, output=output, uncertainty=uncertainty, seg=dicom_seg)
        todo = with_frames(job, frame)
        if len(todo) == 1:
            report = run_job(
                todo[0], Segmenter(opened, settings), overlay=overlay, show=show_progress
            )
            _print_report(report, as_json)
            return
    if jobs > 1:
        orders = Orders(
            model=opened,
            settings=settings,
            overlay=overlay,
            skip_done=not again,
            set_up=log_to_stderr,
            show=show_progress,
        )
        outcomes = run_in_processes(todo, orders, jobs)
    else:
        segmenter = Segmenter(opened, settings)
        outcomes = run_jobs(
            todo, segmenter, overlay=overlay, skip_done=not again, show=show_progress
        )
    with closing(outcomes):  # Ctrl-C stops the processes at once, not when Python ends
        whole = _print_outcomes(outcomes, as_json)
    if not whole:
        sys.exit(1)


def _print_report(report: Report, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(report.as_dict(), indent=1))
        return
    from rich.console import Console

    from leuda_deploy.cli.show import show_report

    show_report(report, Console())


def _print_outcomes(coming: Iterable[Outcome], as_json: bool) -> bool:
    """Errors at once, a summary at the end; whether every scan is done."""
    outcomes = []
    for outcome in coming:
        outcomes.append(outcome)
        if outcome.error is not None:
            say(f"error: {outcome.error}")
    if as_json:
        typer.echo(json.dumps([outcome.as_dict() for outcome in outcomes], indent=1))
    else:
        from rich.console import Console

        from leuda_deploy.cli.show import show_outcomes

        show_outcomes(outcomes, Console())
    return all(outcome.error is None for outcome in outcomes)
