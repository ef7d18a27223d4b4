"""`leuda verify` and `leuda doctor`: is an export whole, does it fit here, what works here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leuda_deploy.cli.app import HAND_OVER, USE, JsonOption, app

if TYPE_CHECKING:
    from leuda_deploy.proof.trial import Trial


@app.command(rich_help_panel=HAND_OVER)
def verify(
    export: Annotated[Path, typer.Argument(help="Export folder or *.onnx file.")],
    prove: Annotated[
        list[Path] | None,
        typer.Option(
            help="Scan on which to compare each engine here with ONNX Runtime: what infer would "
            "try at its first scan. TensorRT engines that agree may run from then on."
        ),
    ] = None,
    key: Annotated[
        Path | None, typer.Option(help="Public key (PEM): refuse an export that it has not signed.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check an export: whole, what it is, does it fit here.  [dim]Needs: nothing more.[/dim]"""
    from leuda_deploy.cli.show import trial_lines, verified_lines
    from leuda_deploy.export.add_engines import prove_here
    from leuda_deploy.export.verify import verify as verify_export

    found = verify_export(export, key=key)
    trials: tuple[Trial, ...] = ()
    if prove:
        trials = prove_here(found, prove)
        found = verify_export(export)  # a proof is written down: it is to be signed anew
    if as_json:
        content = found.as_dict() | {"trials": [trial.model_dump() for trial in trials]}
        typer.echo(json.dumps(content, indent=1))
    else:
        typer.echo("\n".join([*verified_lines(found, export), *trial_lines(trials)]))


@app.command(rich_help_panel=USE)
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
    from leuda_deploy.model.export_folder import default_model
    from leuda_deploy.model.model_file import ModelFile

    found = diagnose(ModelFile.open(model or default_model()))
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=1))
    else:
        typer.echo("\n".join(diagnosis_lines(found)))
    raise typer.Exit(0 if found.fit else 1)
