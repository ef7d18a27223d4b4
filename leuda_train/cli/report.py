"""`leuda report`: a folder that leuda wrote -> one page to read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leuda_deploy.cli import app
from leuda_deploy.errors import InputError, MissingExtraError


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A run, a comparison or an export.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The page, one file that needs no other.")
    ] = Path("report.html"),
    bench: Annotated[
        Path | None, typer.Option(help="Of an export: what `leuda bench --save` wrote of it.")
    ] = None,
) -> None:
    """Write a page about a run, comparison or export.  [dim]Needs: leuda\\[train].[/dim]"""
    from importlib.util import find_spec

    for module, package in (("jinja2", "Jinja"), ("matplotlib", "matplotlib")):
        if find_spec(module) is None:
            raise MissingExtraError("leuda report", package, "train")
    from leuda_train.pages.find import write_report

    if not folder.exists():
        raise InputError(f"no such folder: {folder}")
    if output.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"-o ends in .html, not {output.name!r}")
    write_report(folder, output, bench)
    typer.echo(str(output))
