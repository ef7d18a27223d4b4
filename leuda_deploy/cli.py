"""the `leuda` command, deployment half: parses and delegates. Heavy imports are inside."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from leuda_deploy.errors import LeudaError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Label-efficient unsupervised domain adaptation for segmentation, from scans to the edge.",
)


class EngineOption(StrEnum):
    """What runs the model."""

    AUTO = "auto"
    ORT_CPU = "ort-cpu"
    ORT_CUDA = "ort-cuda"
    OPENVINO = "openvino"
    TENSORRT = "tensorrt"
    TENSORRT_RTX = "tensorrt-rtx"


class InferencePrecision(StrEnum):
    """What the engine computes in."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"


# panels of `leuda infer --help`
ENGINE, RESULTS, MANY = "Engine and memory", "Results", "Many scans"
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, nothing else.")]


@app.callback(invoke_without_command=True)
def _leuda(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    # a callback keeps the commands' names where there are few: `python -m leuda_deploy infer`
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"leuda {installed('leuda')}")
        raise typer.Exit


@app.command()
def infer(
    scan: Annotated[Path, typer.Argument(help="A scan, a DICOM series, or a folder of scans.")],
    model: Annotated[
        Path | None,
        typer.Option(help="Export folder or *.onnx file. Default: the phantom model shipped."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Labels, or a folder. Default: ./SCAN_labels.nii.gz"),
    ] = None,
    engine: Annotated[
        EngineOption,
        typer.Option(
            help="It runs or fails. auto: the fastest that agrees with ONNX Runtime.",
            rich_help_panel=ENGINE,
        ),
    ] = EngineOption.ORT_CPU,
    precision: Annotated[
        InferencePrecision, typer.Option(help="bf16 is for openvino.", rich_help_panel=ENGINE)
    ] = InferencePrecision.AUTO,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads. Default: all.", min=1, rich_help_panel=ENGINE)
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            help="Windows at a time. Default: what a short trial found.",
            min=1,
            rich_help_panel=ENGINE,
        ),
    ] = None,
    mirror: Annotated[
        bool,
        typer.Option(
            "--mirror", help="Average over mirrored windows, slower.", rich_help_panel=ENGINE
        ),
    ] = False,
    max_memory: Annotated[
        str | None,
        typer.Option(
            help="Peak that is never passed, e.g. 1.5G; refused beforehand.", rich_help_panel=ENGINE
        ),
    ] = None,
    max_gpu_memory: Annotated[
        str | None, typer.Option(help="The same on the GPU.", rich_help_panel=ENGINE)
    ] = None,
    overlay: Annotated[
        bool,
        typer.Option(
            "--overlay/--no-overlay",
            help="Also write a PNG beside the labels.",
            rich_help_panel=RESULTS,
        ),
    ] = True,
    uncertainty: Annotated[
        Path | None,
        typer.Option(
            help="Also write an entropy map; a folder for a folder.", rich_help_panel=RESULTS
        ),
    ] = None,
    dicom_seg: Annotated[
        Path | None,
        typer.Option(help="Also write DICOM SEG, for a DICOM series.", rich_help_panel=RESULTS),
    ] = None,
    as_json: JsonOption = False,
    frame: Annotated[
        str | None,
        typer.Option(help="Which frame of a 4D scan, from 0, or all.", rich_help_panel=MANY),
    ] = None,
    jobs: Annotated[
        int, typer.Option(help="Scans at a time, on the CPU.", min=1, rich_help_panel=MANY)
    ] = 1,
    shard: Annotated[
        str, typer.Option(help="i/n: every n-th scan of the folder.", rich_help_panel=MANY)
    ] = "1/1",
    again: Annotated[
        bool, typer.Option("--again", help="Also scans that were done.", rich_help_panel=MANY)
    ] = False,
) -> None:
    """Label scans, each on its own grid.  [dim]Needs: nothing more.[/dim]"""
    from leuda_deploy.inference.segmenter import Segmenter
    from leuda_deploy.inference.settings import Settings
    from leuda_deploy.jobs.find_jobs import Job, find_jobs, holds_dicom, stem, with_frames
    from leuda_deploy.jobs.run_jobs import label_folder, label_scan, run_jobs
    from leuda_deploy.jobs.workers import spread
    from leuda_deploy.machine.memory import parse_bytes
    from leuda_deploy.model.model_file import ModelFile

    if model is None:
        from leuda_deploy.model.default_model import default_model

        model = default_model()
        _say(f"no --model given: using {model}, trained on phantoms, not for patients")
    settings = Settings(
        engine=engine.value,
        precision=precision.value,
        threads=threads,
        batch=batch,
        max_bytes=parse_bytes(max_memory) if max_memory else None,
        max_gpu_bytes=parse_bytes(max_gpu_memory) if max_gpu_memory else None,
        mirror=mirror,
    )
    opened = ModelFile.open(model)
    if scan.is_dir() and not holds_dicom(scan):
        todo = find_jobs(scan, output or Path(), shard=shard, uncertainty=uncertainty, frames=frame)
    else:
        output = output or Path(f"{stem(scan)}_labels.nii.gz")
        job = Job(scan=scan, output=output, uncertainty=uncertainty, seg=dicom_seg)
        todo = with_frames(job, frame)
        if len(todo) == 1:
            segmenter = Segmenter(opened, settings)
            label_scan(todo[0], segmenter, overlay, as_json=as_json, say=_say)
            return
    if jobs > 1:
        outcomes = spread(todo, opened, settings, jobs, overlay=overlay, skip_done=not again)
    else:
        segmenter = Segmenter(opened, settings)
        outcomes = run_jobs(todo, segmenter, overlay=overlay, skip_done=not again, say=_say)
    with closing(outcomes):  # Ctrl-C stops the processes at once, not when Python ends
        whole = label_folder(outcomes, as_json=as_json, say=_say)
    if not whole:
        sys.exit(1)


@app.command()
def bench(
    model: Annotated[
        Path | None, typer.Option(help="Export folder or *.onnx. Default: the one shipped.")
    ] = None,
    engine: Annotated[str, typer.Option(help="all, or engines' names: ort-cpu,openvino.")] = "all",
    shape: Annotated[str, typer.Option(help="Voxels of the made scan.")] = "512x512x100",
    rounds: Annotated[int, typer.Option(help="Warm rounds.", min=1)] = 5,
    threads: Annotated[int | None, typer.Option(help="CPU threads. Default: all.", min=1)] = None,
    save: Annotated[
        Path | None, typer.Option(help="Write the JSON there, and a PNG beside it.")
    ] = None,
    against: Annotated[Path | None, typer.Option(help="An earlier JSON to compare with.")] = None,
    limit: Annotated[float, typer.Option(help="Allowed ratio to it.", min=1.0)] = 1.2,
    as_json: JsonOption = False,
) -> None:
    """Time and memory by engine and stage, on this machine.  [dim]Needs: nothing more.[/dim]"""
    import json

    from leuda_deploy.bench.bench import bench as run_bench
    from leuda_deploy.bench.bench import parse_shape, regressions, show_bench
    from leuda_deploy.model.default_model import default_model

    voxels = parse_shape(shape)
    result = run_bench(model or default_model(), engine, voxels, rounds=rounds, threads=threads)
    slower = regressions(result, against, limit) if against else []
    if save:
        from leuda_deploy.bench.chart import draw_bench

        save.write_text(json.dumps(result, indent=1) + "\n")
        draw_bench(save.with_suffix(".png"), result)
    if as_json:
        typer.echo(json.dumps(result, indent=1))
    else:
        from rich.console import Console

        show_bench(result, Console())
    for line in slower:
        _say(f"error: {line}")
    if slower:
        sys.exit(1)


@app.command()
def verify(
    export: Annotated[Path, typer.Argument(help="Export folder or *.onnx file.")],
    prove: Annotated[
        list[Path] | None,
        typer.Option(help="Run engines that fit this GPU on this scan; mark those that agree."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check an export: whole, what it is, does it fit here.  [dim]Needs: nothing more.[/dim]"""
    from leuda_deploy.export.verify import verify as verify_export

    found = verify_export(export)
    if prove:
        from leuda_deploy.export.add_engines import prove_engine
        from leuda_deploy.model.model_file import ModelFile
        from leuda_deploy.proof.probes import probes_of_scans

        fitting = [engine.name for engine in found.engines if not engine.misfits]
        if not fitting:
            raise LeudaError(f"{export} has no engine that fits this machine: nothing to prove")
        model = ModelFile.open(export)
        probes = probes_of_scans(model.card, prove)
        for name in fitting:
            prove_engine(model, name, probes)
        found = verify_export(export)
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=1))
        return
    typer.echo(f"whole    {found.model}, {found.files} files as their manifest says")
    typer.echo(f"model    {found.name}: {found.precision}, feed {found.feed}, {found.licence}")
    typer.echo(f"labels   {', '.join(found.structures)}; window {found.window}")
    typer.echo(f"sha256   {found.model_sha256} (the file)")
    typer.echo(f"         {found.content_sha256} (graph, weights and card)")
    typer.echo(f"machine  {found.gpu or 'no NVIDIA GPU'}")
    for engine in found.engines:
        typer.echo(f"engine   {engine.name}: {engine.family}, {engine.target}, {engine.precision}")
        for misfit in engine.misfits:
            typer.echo(f"         does not fit: {misfit}")
        if engine.misfits:
            typer.echo(f"         {engine.remedy}")
        else:
            state = "proven" if engine.proven else f"to prove: leuda verify {export} --prove SCAN"
            typer.echo(f"         fits; {state}")


def _say(line: str) -> None:
    typer.echo(line, err=True)


def run(command: typer.Typer) -> None:
    """Run a command line; what the user can mend is one line on stderr and exit code 2."""
    try:
        command()
    except (LeudaError, OSError) as error:  # OSError: e.g. no room, or no right to write there
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        sys.exit(2)


def main() -> None:
    """`python -m leuda_deploy`: the runtime alone."""
    run(app)
