"""the `leuda` command, deployment half: parses and delegates. Heavy imports are inside."""

from __future__ import annotations

import json
import sys
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


class ProviderName(StrEnum):
    """Where ONNX Runtime runs."""

    CPU = "cpu"
    CUDA = "cuda"


JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, nothing else.")]


@app.callback()
def _leuda() -> None:
    # makes `infer` a command of its own where it is the only one: `python -m leuda_deploy infer`
    pass


@app.command()
def infer(
    scan: Annotated[Path, typer.Argument(help="Any volume that nibabel reads.")],
    model: Annotated[
        Path | None,
        typer.Option(help="Export folder or *.onnx file. Default: the phantom model shipped."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Labels. Default: ./SCAN_labels.nii.gz"),
    ] = None,
    provider: Annotated[
        ProviderName, typer.Option(help="Runs there or fails; never elsewhere.")
    ] = ProviderName.CPU,
    frame: Annotated[int | None, typer.Option(help="Which frame of a 4D scan.", min=0)] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads. Default: all.", min=1)] = None,
    batch: Annotated[int, typer.Option(help="Windows at a time.", min=1)] = 8,
    overlay: Annotated[
        bool, typer.Option("--overlay/--no-overlay", help="Also write a PNG beside the labels.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Label a scan, on the scan's own grid.  [dim]Needs: nothing more.[/dim]"""
    from leuda_deploy.engines import OnnxEngine
    from leuda_deploy.report import infer_file, show_report
    from leuda_deploy.shipped import default_model

    if model is None:
        model = default_model()
        typer.echo(f"no --model given: using the shipped phantom model {model}", err=True)
    engine = OnnxEngine(model, provider=provider.value, threads=threads)
    output = output or Path(f"{_stem(scan)}_labels.nii.gz")
    report = infer_file(scan, engine, output, frame=frame, batch=batch, overlay=overlay)
    if as_json:
        typer.echo(json.dumps(report.as_dict(), indent=1))
    else:
        from rich.console import Console

        show_report(report, Console())


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
    from leuda_deploy.verify import verify as verify_export

    found = verify_export(export)
    if prove:
        from leuda_deploy.ship import probes_of_scans, prove_engine

        fitting = [engine.name for engine in found.engines if not engine.misfits]
        if not fitting:
            raise LeudaError(f"{export} has no engine that fits this machine: nothing to prove")
        probes = probes_of_scans(export, prove)
        for name in fitting:
            prove_engine(export, name, probes)
        found = verify_export(export)
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=1))
        return
    typer.echo(f"whole    {found.model}, {found.files} files as their manifest says")
    typer.echo(f"model    {found.name}: {found.precision}, feed {found.feed}, {found.licence}")
    typer.echo(f"labels   {', '.join(found.structures)}; window {found.window}")
    typer.echo(f"machine  {found.gpu or 'no NVIDIA GPU'}")
    for engine in found.engines:
        typer.echo(f"engine   {engine.name}: {engine.family}, {engine.target}, {engine.precision}")
        for misfit in engine.misfits:
            typer.echo(f"         does not fit: {misfit}")
        if engine.misfits:
            typer.echo(f"         build it again: {engine.rebuild}")
        else:
            state = "proven" if engine.proven else f"to prove: leuda verify {export} --prove SCAN"
            typer.echo(f"         fits; {state}")


def _stem(scan: Path) -> str:
    name = scan.name
    for extension in (".gz", ".nii", ".hdr", ".img", ".mgz", ".mgh"):
        name = name.removesuffix(extension)
    return name


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
