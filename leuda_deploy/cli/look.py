"""`leuda picture` and `leuda view`: scans and their labels -> a picture, a movie, or a page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leuda_deploy.cli.app import LOOK, app, say
from leuda_deploy.errors import InputError

if TYPE_CHECKING:
    from leuda_deploy.view.content import Content
    from leuda_deploy.view.marks import Marks


ClassesOption = Annotated[
    Path | None,
    typer.Option(
        help="TOML file with a table \\[classes] that names label values, e.g. cohort.toml."
    ),
]


@app.command(rich_help_panel=LOOK)
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
    classes: ClassesOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a file that stands there; never the scan.")
    ] = False,
) -> None:
    """Draw a scan with its labels: a picture, or a movie.  [dim]Needs: nothing more.[/dim]"""
    from leuda_deploy.jobs.picture.movie import write_movie
    from leuda_deploy.jobs.picture.overlay import draw_overlay
    from leuda_deploy.jobs.picture.shown_files import read_shown
    from leuda_deploy.machine.outputs import Output, plan_outputs
    from leuda_deploy.view.scene import read_class_values

    kind = output.suffix.lower()
    if kind not in (".png", ".webp", ".gif"):
        raise InputError(f"-o ends in .png, .webp or .gif, not {output.name!r}")
    drawn = Output(path=output, what="picture")
    plan_outputs([drawn], inputs=[path for path in (scan, labels) if path], force=force)
    shown = read_shown(scan, labels, modality, read_class_values(classes) if classes else {})
    (draw_overlay if kind == ".png" else write_movie)(output, shown)
    typer.echo(str(output))


@app.command(rich_help_panel=LOOK)
def view(
    scan: Annotated[
        Path,
        typer.Argument(
            help="A scan, a folder with one DICOM series, or a folder of scans or results."
        ),
    ],
    labels: Annotated[
        list[Path] | None,
        typer.Argument(
            help="One or two label files, or folders of them beside a folder of scans; two are "
            "compared. Default: those beside the scan."
        ),
    ] = None,
    uncertainty: Annotated[
        Path | None, typer.Option(help="Entropy map. Default: the one that the report names.")
    ] = None,
    classes: ClassesOption = None,
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
    if folder and (uncertainty or frame is not None):
        raise InputError(f"{scan} is a folder: map and frame are for a single scan")
    if marks is not None and not folder:
        raise InputError("--marks is for a folder; a single scan is not marked")
    scenes = (
        find_scenes(scan, labels or ())
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
