"""`leuda picture`: a scan and its labels -> a picture or a short movie of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leuda_deploy.cli.app import app
from leuda_deploy.errors import InputError


@app.command()
def picture(
    scan: Annotated[Path, typer.Argument(help="A scan.")],
    labels: Annotated[
        Path | None, typer.Argument(help="Its labels, e.g. of `leuda infer` or a reader's.")
    ] = None,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="*.png: three planes; *.webp or *.gif: a movie of the slices."
        ),
    ] = Path("picture.png"),
    modality: Annotated[
        str, typer.Option(help="CT in Hounsfield units is shown in the soft tissue window.")
    ] = "",
) -> None:
    """Draw a scan with its labels: a picture, or a movie.  [dim]Needs: nothing more.[/dim]"""
    from leuda_deploy.jobs.overlay import draw_overlay, write_movie
    from leuda_deploy.jobs.shown_files import read_shown

    kind = output.suffix.lower()
    if kind not in (".png", ".webp", ".gif"):
        raise InputError(f"-o ends in .png, .webp or .gif, not {output.name!r}")
    for given in filter(None, (scan, labels)):
        if output.exists() and given.exists() and output.samefile(given):
            raise InputError(f"{output} is what is to be drawn; choose another -o")
    shown = read_shown(scan, labels, modality)
    (draw_overlay if kind == ".png" else write_movie)(output, shown)
    typer.echo(str(output))
