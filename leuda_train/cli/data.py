"""`leuda phantom`: command line -> scans and their cohort.toml."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leuda_deploy.cli import app


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
