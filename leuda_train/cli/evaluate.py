"""`leuda evaluate`: label files -> Dice and distances."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from leuda_deploy.cli import JsonOption, app


@app.command()
def evaluate(
    predicted: Annotated[Path, typer.Argument(help="Label file, or folder of them.")],
    truth: Annotated[Path, typer.Argument(help="Label file, or folder of them.")],
    cohort: Annotated[
        Path | None,
        typer.Option(help="cohort.toml, if the truth has the target's raw label values."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Dice and distances in mm, by structure and volume.  [dim]Needs: nothing more.[/dim]"""
    from leuda_train.evaluation.label_files import evaluate_paths
    from leuda_train.evaluation.table import table

    structures = mapping = None
    if cohort is not None:
        from leuda_train.data.cohort import read_spec

        spec = read_spec(cohort)
        structures, mapping = spec.structures, spec.class_of_raw("target")
    report = evaluate_paths(predicted, truth, structures=structures, map_true=mapping)
    if as_json:
        typer.echo(json.dumps(report, indent=1, allow_nan=False))
    else:
        from rich.console import Console

        Console().print(table(report))
    if report["failed"]:
        sys.exit(1)
