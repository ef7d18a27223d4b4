"""`leuda evaluate`: label files -> Dice and distances."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leuda_deploy.cli import JsonOption, app
from leuda_deploy.cli.app import MAKE
from leuda_deploy.cli.bench import cohort_readers

if TYPE_CHECKING:
    from leuda_deploy.bench.accuracy import LabelledScans


@app.command(rich_help_panel=MAKE)
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


def labelled_targets(path: Path) -> LabelledScans:
    """The target's test scans of a cohort. Raises InputError."""
    from leuda_deploy.bench.accuracy import Labelled, LabelledScans
    from leuda_train.data.cohort import read_cohort

    cohort = read_cohort(path)
    class_of_raw = cohort.spec.class_of_raw("target")
    scans = [
        Labelled(image=scan.image, label=scan.label, class_of_raw=class_of_raw)
        for scan in cohort.role("target test")
        if scan.label is not None
    ]
    return LabelledScans(scans=scans, structures=[*cohort.structures])


cohort_readers.append(labelled_targets)
