"""`leuda view`: a scan with its labels, or a folder of them -> a page in the browser."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leuda_deploy.cli.app import app, say

if TYPE_CHECKING:
    from leuda_deploy.view.content import Content
    from leuda_deploy.view.marks import Marks


@app.command()
def view(
    scan: Annotated[
        Path,
        typer.Argument(
            help="A scan, a folder with one DICOM series, or a folder of scans or results."
        ),
    ],
    labels: Annotated[
        list[Path] | None,
        typer.Argument(help="One or two label files. Default: those beside the scan."),
    ] = None,
    uncertainty: Annotated[
        Path | None, typer.Option(help="Entropy map. Default: the one that the report names.")
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(
            help="TOML file with a table \\[classes] that names label values, e.g. cohort.toml."
        ),
    ] = None,
    frame: Annotated[
        int | None, typer.Option(help="Frame of a 4D scan, counted from 0.", min=0)
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(help="Write one HTML file with all in it, and open nothing."),
    ] = None,
    marks: Annotated[
        Path | None,
        typer.Option(help="Where marks of a folder are kept. Default: FOLDER/marks.csv"),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Let --html replace a file that stands there.")
    ] = False,
    port: Annotated[int, typer.Option(help="0: a free one.", min=0, max=65535)] = 0,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the browser.")
    ] = True,
) -> None:
    """Look at a scan and its labels in the browser.  [dim]Needs: nothing more.[/dim]"""
    from leuda_deploy.errors import InputError
    from leuda_deploy.jobs.find_jobs import is_series
    from leuda_deploy.view.content import Content, check_scenes
    from leuda_deploy.view.marks import Marks
    from leuda_deploy.view.scene import find_scenes, make_scene, read_class_values

    folder = scan.is_dir() and not is_series(scan)
    if folder and (labels or uncertainty or frame is not None):
        raise InputError(f"{scan} is a folder: labels, map and frame are for a single scan")
    if marks is not None and not folder:
        raise InputError("--marks is for a folder; a single scan is not marked")
    scenes = (
        find_scenes(scan)
        if folder
        else [make_scene(scan, tuple(labels or ()), uncertainty=uncertainty, frame=frame)]
    )
    check_scenes(scenes)
    content = Content(scenes, read_class_values(classes) if classes else {})
    if html is not None:
        from leuda_deploy.machine.outputs import Output, plan_outputs
        from leuda_deploy.view.one_file import write_page

        page = Output(path=html, what="page", option="--html", endings=(".html",))
        plan_outputs([page], inputs=[scan, *scenes[0].labels], force=force)
        smaller = write_page(html, content)
        if smaller.note:
            say(smaller.note)
        typer.echo(str(html))
        return
    _serve(content, Marks(marks or scan / "marks.csv") if folder else None, port, browser)


def _serve(content: Content, marks: Marks | None, port: int, browser: bool) -> None:
    """Until Ctrl-C."""
    import webbrowser

    from leuda_deploy.view.server import PageServer

    with PageServer(content, marks, port=port) as server:
        typer.echo(server.url)
        say("for this computer alone; end with Ctrl-C")
        if browser:
            webbrowser.open(server.url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            say("closed")
