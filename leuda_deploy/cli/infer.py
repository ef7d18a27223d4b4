"""`leuda infer`: command line -> label files. Heavy imports are inside the command.

Long because each option stands here with its help.
"""

from __future__ import annotations

import json
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from leuda_deploy.cli.app import USE, JsonOption, app, say
from leuda_deploy.cli.log import log_to_stderr

if TYPE_CHECKING:
    from collections.abc import Iterable

    from leuda_deploy.jobs.report import Report
    from leuda_deploy.jobs.run_jobs import Outcome
    from leuda_deploy.machine.outputs import Output

# the panels of `leuda infer --help`
ENGINE, RESULTS, MANY, DICOM = "Engine and memory", "Results", "Many scans", "DICOM"


@app.command(rich_help_panel=USE)
def infer(
    scan: Annotated[
        Path,
        typer.Argument(help="A scan, a folder or zip with a DICOM study, or a folder of scans."),
    ],
    model: Annotated[
        Path | None,
        typer.Option(
            help="Export folder or *.onnx file. Default: the phantom model that comes with leuda."
        ),
    ] = None,
    channel: Annotated[
        list[Path] | None,
        typer.Option(
            help="The next channel of a model that reads several scans together, in the order of "
            "its card; once for each but the first. CASE_0000 and a 4D SCAN need none.",
        ),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(help="Public key (PEM): refuse a model whose export it has not signed."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Label file (*.nii.gz, *.nii, *.seg.nrrd), or a folder. "
            "Default: ./SCAN_labels.nii.gz",
        ),
    ] = None,
    label_format: Annotated[
        Literal["nii.gz", "nii", "seg.nrrd"],
        typer.Option(
            "--format",
            help="Of label files in a folder; seg.nrrd has names and colours for 3D Slicer.",
            rich_help_panel=RESULTS,
        ),
    ] = "nii.gz",
    engine: Annotated[
        Literal["auto", "ort-cpu", "ort-cuda", "openvino", "tensorrt", "tensorrt-rtx"],
        typer.Option(
            help="What runs the model; an error if it cannot. auto: TensorRT, CUDA, or the fastest "
            "on the CPU, the first that agrees with ONNX Runtime here.",
            rich_help_panel=ENGINE,
        ),
    ] = "auto",
    precision: Annotated[
        Literal["auto", "fp32", "bf16"],
        typer.Option(
            help="What the engine computes in. bf16 is for openvino.", rich_help_panel=ENGINE
        ),
    ] = "auto",
    threads: Annotated[
        int | None,
        typer.Option(
            help="CPU threads. Default: the cores that it may use.", min=1, rich_help_panel=ENGINE
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            help="Windows at a time. Default: the best in a short trial on this machine.",
            min=1,
            rich_help_panel=ENGINE,
        ),
    ] = None,
    search: Annotated[
        Literal["auto", "full"],
        typer.Option(
            help="auto: score a slice now and then, and all around what is found, where the "
            "model's export proved that. full: every slice.",
            rich_help_panel=ENGINE,
        ),
    ] = "auto",
    tiling: Annotated[
        Literal["auto", "windows"],
        typer.Option(
            help="auto: score slices whole and leave out air, where the model's export proved "
            "that. windows: lay windows over all of each slice.",
            rich_help_panel=ENGINE,
        ),
    ] = "auto",
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
    clean_up: Annotated[
        bool,
        typer.Option(
            "--clean-up/--no-clean-up",
            help="Take away islands, by the rules in the model's card.",
            rich_help_panel=RESULTS,
        ),
    ] = True,
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
    regions: Annotated[
        Path | None,
        typer.Option(
            help="Also write a mask of each structure that may overlap others to this folder.",
            rich_help_panel=RESULTS,
        ),
    ] = None,
    dicom_seg: Annotated[
        Path | None,
        typer.Option(
            help="Also write DICOM SEG of a DICOM series to this file; for many scans, to this "
            "folder.",
            rich_help_panel=RESULTS,
        ),
    ] = None,
    dicom_sr: Annotated[
        Path | None,
        typer.Option(
            help="Also write a structured report of a DICOM series, which refers to its SEG.",
            rich_help_panel=RESULTS,
        ),
    ] = None,
    rtstruct: Annotated[
        Path | None,
        typer.Option(
            help="Also write the outlines of a DICOM series as an RT Structure Set.",
            rich_help_panel=RESULTS,
        ),
    ] = None,
    seg_type: Annotated[
        Literal["binary", "labelmap"],
        typer.Option(
            help="How DICOM SEG holds its segments. labelmap is of 2024: few viewers read it yet.",
            rich_help_panel=RESULTS,
        ),
    ] = "binary",
    as_json: JsonOption = False,
    frame: Annotated[
        str | None,
        typer.Option(
            help="Frame of a 4D scan or phase of a series, from 0; or all.", rich_help_panel=MANY
        ),
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
    series: Annotated[
        str | None,
        typer.Option(
            help="UID or number of a DICOM series: the folder is one study, and this is meant.",
            rich_help_panel=DICOM,
        ),
    ] = None,
    rules: Annotated[
        Path | None,
        typer.Option(
            help="TOML file of rules for the series of a study, in place of those of the model.",
            rich_help_panel=DICOM,
        ),
    ] = None,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Refuse a DICOM series that must be resampled to an orthogonal grid.",
            rich_help_panel=DICOM,
        ),
    ] = False,
    allow_partial: Annotated[
        bool,
        typer.Option(
            "--allow-partial",
            help="Label what is there of a DICOM series that is not whole.",
            rich_help_panel=DICOM,
        ),
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Replace files that leuda did not write. Scans are never replaced.",
            rich_help_panel=RESULTS,
        ),
    ] = False,
) -> None:
    """Label scans, each on its own grid.  [dim]Needs: nothing more.[/dim]"""
    from leuda_deploy.inference.segmenter import Segmenter
    from leuda_deploy.inference.settings import Settings
    from leuda_deploy.jobs.dicom_out.findings import uncoded_line
    from leuda_deploy.jobs.find_jobs import Wanted
    from leuda_deploy.jobs.jobs_of import for_model, jobs_of
    from leuda_deploy.jobs.outputs import plan_job_outputs
    from leuda_deploy.jobs.prepare import Wishes
    from leuda_deploy.jobs.run_jobs import run_job, run_jobs, volumes_output
    from leuda_deploy.jobs.workers import Orders, run_in_processes
    from leuda_deploy.machine.memory import parse_bytes
    from leuda_deploy.machine.outputs import plan_outputs
    from leuda_deploy.machine.progress import show_progress
    from leuda_deploy.model.model_file import ModelFile
    from leuda_deploy.scans.dicom.rules import SeriesChoice, read_rules

    settings = Settings(
        engine=engine,
        precision=precision,
        threads=threads,
        batch=batch,
        max_bytes=parse_bytes(max_memory) if max_memory else None,
        max_gpu_bytes=parse_bytes(max_gpu_memory) if max_gpu_memory else None,
        mirror=mirror,
        search=search,
        tiling=tiling,
        clean_up=clean_up,
    )
    choice = SeriesChoice(
        wanted=series,
        rules=None if rules is None else read_rules(rules),
        allow_partial=allow_partial,
    )
    wishes = Wishes(force=force, series=choice, strict=strict, seg_type=seg_type)
    dicom = {"dicom_seg": dicom_seg, "dicom_sr": dicom_sr, "rtstruct": rtstruct}
    wanted = Wanted(
        output=output,
        uncertainty=uncertainty,
        dicom={what: path for what, path in dicom.items() if path is not None},
        ending=f".{label_format}",
    )
    todo, alone = jobs_of(scan, wanted, shard=shard, frames=frame, series=choice)
    if model is None:
        from leuda_deploy.model.export_folder import default_model

        model = default_model()
        say(f"no --model given: using {model}, trained on phantoms, not for patients")
    opened = ModelFile.open(model) if key is None else ModelFile.open_signed(model, key)
    todo = for_model(todo, opened.card, others=channel or (), regions=regions)
    if wanted.dicom and (line := uncoded_line(opened.card)):
        say(line)
    table = None if alone else volumes_output(todo[0].output.parent, shard)
    read = [*opened.files, *(path for path in (key, rules) if path is not None)]
    plan_job_outputs(todo, overlay=overlay, force=force, inputs=read)
    if table is not None:
        plan_outputs([table], inputs=[scan, *read], force=force)
    if alone:
        segmenter = Segmenter(opened, settings)
        report = run_job(todo[0], segmenter, overlay=overlay, show=show_progress, wishes=wishes)
        _print_report(report, as_json)
        if _lacks_something(report):
            sys.exit(1)
        return
    if jobs > 1:
        orders = Orders(
            model=opened,
            settings=settings,
            overlay=overlay,
            skip_done=not again,
            set_up=log_to_stderr,
            show=show_progress,
            wishes=wishes,
        )
        outcomes = run_in_processes(todo, orders, jobs)
    else:
        segmenter = Segmenter(opened, settings)
        outcomes = run_jobs(
            todo,
            segmenter,
            overlay=overlay,
            skip_done=not again,
            show=show_progress,
            wishes=wishes,
        )
    with closing(outcomes):  # Ctrl-C stops the processes at once, not when Python ends
        whole = _print_outcomes(outcomes, as_json, table)
    if not whole:
        sys.exit(1)


def _lacks_something(report: Report) -> bool:
    """Whether a file that was asked for could not be written."""
    return bool(report.not_written)


def _print_report(report: Report, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(report.as_dict(), indent=1))
        return
    from rich.console import Console

    from leuda_deploy.cli.show import show_report

    show_report(report, Console())


def _print_outcomes(coming: Iterable[Outcome], as_json: bool, table: Output | None) -> bool:
    """Errors at once, a summary and a table at the end; whether every scan is done."""
    outcomes = []
    for outcome in coming:
        outcomes.append(outcome)
        if outcome.error is not None:
            say(f"error: {outcome.error}")
    if table is not None:
        from leuda_deploy.jobs.run_jobs import write_volumes

        write_volumes(table.path, outcomes)
    if as_json:
        typer.echo(json.dumps([outcome.as_dict() for outcome in outcomes], indent=1))
    else:
        from rich.console import Console

        from leuda_deploy.cli.show import show_outcomes

        show_outcomes(outcomes, Console())
    return all(
        outcome.error is None and not (outcome.report and _lacks_something(outcome.report))
        for outcome in outcomes
    )
