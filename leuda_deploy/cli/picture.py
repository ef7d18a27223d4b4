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
    force: Annotated[
        bool, typer.Option("--force", help="Replace a file that stands there; never the scan.")
    ] = False,
) -> None:
    """Draw a scan with its labels: a picture, or a movie.  [dim]Needs: nothing more.[/dim]"""
    from leuda_deploy.jobs.picture.movie import write_movie
    from leuda_deploy.jobs.picture.overlay import draw_overlay
    from leuda_deploy.jobs.picture.shown_files import read_shown
    from leuda_deploy.machine.outputs import Output, plan_outputs

    kind = output.suffix.lower()
    if kind not in (".png", ".webp", ".gif"):
        raise InputError(f"-o ends in .png, .webp or .gif, not {output.name!r}")
    drawn = Output(path=output, what="picture")
    plan_outputs([drawn], inputs=[path for path in (scan, labels) if path], force=force)
    shown = read_shown(scan, labels, modality)
    (draw_overlay if kind == ".png" else write_movie)(output, shown)
    typer.echo(str(output))
