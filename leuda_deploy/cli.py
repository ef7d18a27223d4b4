"""the `leuda` command, deployment half: parses and delegates. Heavy imports are inside."""

from __future__ import annotations

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


class EngineOption(StrEnum):
    """What runs the model."""

    AUTO = "auto"
    ORT_CPU = "ort-cpu"
    ORT_CUDA = "ort-cuda"
    OPENVINO = "openvino"


class InferencePrecision(StrEnum):
    """What the engine computes in."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"


JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, nothing else.")]


@app.callback()
def _leuda() -> None:
    # makes `infer` a command of its own where it is the only one: `python -m leuda_deploy infer`
    pass


@app.command()
def infer(
    scan: Annotated[Path, typer.Argument(help="A scan, or a folder of scans.")],
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
        typer.Option(help="auto: the fastest that agrees with ONNX Runtime; a name runs or fails."),
    ] = EngineOption.AUTO,
    precision: Annotated[
        InferencePrecision, typer.Option(help="bf16 is for openvino.")
    ] = InferencePrecision.AUTO,
    frame: Annotated[int | None, typer.Option(help="Which frame of a 4D scan.", min=0)] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads. Default: all.", min=1)] = None,
    batch: Annotated[
        int | None,
        typer.Option(help="Windows at a time. Default: what a short trial found.", min=1),
    ] = None,
    max_memory: Annotated[
        str | None, typer.Option(help="Peak that is never passed, e.g. 1.5G; refused beforehand.")
    ] = None,
    max_gpu_memory: Annotated[str | None, typer.Option(help="The same on the GPU.")] = None,
    uncertainty: Annotated[
        Path | None, typer.Option(help="Also write an entropy map; a folder for a folder.")
    ] = None,
    shard: Annotated[str, typer.Option(help="i/n: every n-th scan of the folder.")] = "1/1",
    again: Annotated[bool, typer.Option("--again", help="Also scans that were done.")] = False,
    overlay: Annotated[
        bool, typer.Option("--overlay/--no-overlay", help="Also write a PNG beside the labels.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Label scans, each on its own grid.  [dim]Needs: nothing more.[/dim]"""
    from leuda_deploy.memory import parse_bytes
    from leuda_deploy.scans import Job, find_jobs, label_folder, label_scan, stem
    from leuda_deploy.segmenter import Segmenter

    if model is None:
        from leuda_deploy.shipped import default_model

        model = default_model()
        _say(f"no --model given: using the shipped phantom model {model}")
    segmenter = Segmenter(
        model,
        engine=engine.value,
        precision=precision.value,
        threads=threads,
        batch=batch,
        max_bytes=parse_bytes(max_memory) if max_memory else None,
        max_gpu_bytes=parse_bytes(max_gpu_memory) if max_gpu_memory else None,
        say=_say,
    )
    if scan.is_dir():
        jobs = find_jobs(scan, output or Path(), shard=shard, uncertainty=uncertainty, frame=frame)
        if not label_folder(jobs, segmenter, overlay, again=again, as_json=as_json, say=_say):
            sys.exit(1)
    else:
        output = output or Path(f"{stem(scan)}_labels.nii.gz")
        job = Job(scan=scan, output=output, uncertainty=uncertainty, frame=frame)
        label_scan(job, segmenter, overlay, as_json=as_json, say=_say)


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
