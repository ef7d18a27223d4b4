"""`leuda report`: a folder that leuda wrote -> one page to read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leuda_deploy.cli import app
from leuda_deploy.cli.app import LOOK
from leuda_deploy.errors import InputError, MissingExtraError


@app.command(rich_help_panel=LOOK)
def report(
    folder: Annotated[Path, typer.Argument(help="A run, a comparison or an export.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The page, one file that needs no other.")
    ] = Path("report.html"),
    bench: Annotated[
        Path | None, typer.Option(help="Of an export: what `leuda bench --save` wrote of it.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a file that is no page of leuda.")
    ] = False,
) -> None:
    """Write a page about a run, comparison or export.  [dim]Needs: leuda\\[train].[/dim]"""
    from importlib.util import find_spec

    for module, package in (("jinja2", "Jinja"), ("matplotlib", "matplotlib")):
        if find_spec(module) is None:
            raise MissingExtraError("leuda report", package, "train")
    from leuda_deploy.machine.outputs import Output, plan_outputs
    from leuda_train.pages.find import write_report
    from leuda_train.pages.page import is_page

    if not folder.exists():
        raise InputError(f"no such folder: {folder}")
    page = Output(path=output, what="page", endings=(".html", ".htm"), is_ours=is_page)
    plan_outputs([page], inputs=[bench] if bench else [], force=force)
    write_report(folder, output, bench)
    typer.echo(str(output))
