"""`leuda phantom`, `leuda cohort`: command line -> scans and their cohort.toml."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from leuda_deploy.cli import app

Benchmark = Literal["mmwhs", "chaos-btcv", "mscmr"]


@app.command()
def phantom(
    out: Annotated[Path, typer.Argument(help="Folder for the cohort.")],
    seed: Annotated[int, typer.Option(min=0, help="Other seeds, other patients.")] = 0,
) -> None:
    """Write a cohort of MR and CT heart phantoms.  [dim]Needs: nothing more.[/dim]"""
    from leuda_deploy.machine.progress import show_progress
    from leuda_train.data.phantom.phantom_cohort import write_cohort

    with show_progress("phantoms") as progress:
        path = write_cohort(out, seed=seed, progress=progress)
    typer.echo(str(path))


@app.command()
def cohort(
    benchmark: Annotated[Benchmark, typer.Argument(help="Which public data set.")],
    root: Annotated[Path, typer.Argument(help="Its download, unpacked.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")] = Path(
        "cohort.toml"
    ),
    direction: Annotated[
        str | None, typer.Option(help="mr-to-ct or ct-to-mr; bssfp-to-lge or lge-to-bssfp.")
    ] = None,
    labelled: Annotated[
        str | None,
        typer.Option(
            help="Source volumes that keep labels: 1, 4, ..., all. Default: 4; of BTCV 6."
        ),
    ] = None,
) -> None:
    """Write cohort.toml for a public benchmark.  [dim]Needs: leuda\\[dicom] for CHAOS.[/dim]"""
    from leuda_deploy.machine.progress import show_progress
    from leuda_train.data.public import write_benchmark

    with show_progress("files and anatomy") as progress:
        write_benchmark(
            benchmark,
            root,
            output,
            direction=direction,
            labelled=labelled,
            progress=progress,
        )
    typer.echo(str(output))
