"""`leuda doctor`: this machine -> what works, what does not, and the command that mends it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from leuda_deploy.cli.app import JsonOption, app


@app.command()
def doctor(
    model: Annotated[
        Path | None,
        typer.Option(help="Export folder or *.onnx file to try. Default: the phantom model."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what works on this machine; exit 0 if infer runs.  [dim]Needs: nothing more.[/dim]"""
    from leuda_deploy.bench.doctor import diagnose
    from leuda_deploy.cli.show import diagnosis_lines
    from leuda_deploy.model.default_model import default_model
    from leuda_deploy.model.model_file import ModelFile

    found = diagnose(ModelFile.open(model or default_model()))
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=1))
    else:
        typer.echo("\n".join(diagnosis_lines(found)))
    raise typer.Exit(0 if found.fit else 1)
