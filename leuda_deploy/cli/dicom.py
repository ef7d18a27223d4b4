"""`leuda series`: a folder, zip or DICOMDIR -> what series there are, and what each is good for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leuda_deploy.cli.app import USE, JsonOption, app
from leuda_deploy.errors import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from leuda_deploy.scans.dicom import FoundSeries, SeriesRules


# what a fault means for somebody who looks for a series
WHY_NOT = {
    "modality": "no CT or MR",
    "axes": "one image alone",
    "unlike slices": "images of several kinds, e.g. a localiser",
    "no real numbers": "no grey images",
    "partial": "not whole: --allow-partial",
    "missing slice": "slices are missing: --allow-partial",
    "repeated slice": "several images at some places",
    "frames": "frames that do not say where they lie",
    "sheared": "slices are shifted too far",
}


@app.command(rich_help_panel=USE)
def series(
    source: Annotated[
        Path,
        typer.Argument(help="A folder, looked through at any depth, a zip, a DICOMDIR or a file."),
    ],
    model: Annotated[
        Path | None,
        typer.Option(help="Export folder or *.onnx file: mark the series that it would label."),
    ] = None,
    rules: Annotated[
        Path | None, typer.Option(help="TOML file of rules, in place of those of the model.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the DICOM series of a study.  [dim]Needs: leuda\\[dicom].[/dim]"""
    from leuda_deploy.errors import ScanError
    from leuda_deploy.machine.progress import show_progress
    from leuda_deploy.scans.dicom import SeriesRules, choose_series, find_series, read_rules

    asked = SeriesRules() if rules is None else read_rules(rules)
    if rules is None and model is not None:
        from leuda_deploy.model.model_file import ModelFile

        asked = ModelFile.open(model).card.series
    with show_progress(f"looking through {source}") as progress:
        found = find_series(source, progress=progress)
    if not found:
        raise ScanError("missing", f"no DICOM files in {source}")
    try:
        chosen, why = choose_series(found, asked, source=source), None
    except ScanError as error:
        chosen, why = None, str(error)
    if as_json:
        listed = [
            each.as_dict() | {"against": asked.against(each), "chosen": each is chosen}
            for each in found
        ]
        typer.echo(json.dumps({"series": listed, "why_none": why}, indent=1))
        return
    _print(found, asked, chosen)
    typer.echo(f"none is chosen: {why}" if chosen is None else f"chosen: {chosen.name}")


def _print(found: Sequence[FoundSeries], rules: SeriesRules, chosen: FoundSeries | None) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("", "no.", "modality", "description")
    table.add_column("images", justify="right")
    table.add_column("mm")
    table.add_column("plane")
    table.add_column("good for", overflow="fold")
    for each in found:
        spacing = each.as_dict()["spacing_mm"]
        cells = (
            "*" if each is chosen else "",
            "" if each.number is None else str(each.number),
            each.modality,
            each.description,
            str(len(each.images) or ""),
            " x ".join(f"{size:.3g}" for size in spacing or ()),
            each.orientation,
            good_for(each, rules),
        )
        table.add_row(*(Text(printable(cell)) for cell in cells))
    Console(soft_wrap=True).print(table)


def good_for(found: FoundSeries, rules: SeriesRules) -> str:
    """What a series can be used for, or why not, in a few words."""
    if not found.images and not found.faults:
        return "no images"
    if found.fault is not None:
        return WHY_NOT.get(found.fault.fault, found.fault.fault)
    if (against := rules.against(found)) is not None:
        return f"labels, but for the rules: {against}"
    facts = found.as_dict()
    notes = []
    if facts["tilt_degrees"]:
        notes.append(f"mended: tilted by {facts['tilt_degrees']:.1f} degrees")
    if facts["uneven"]:
        notes.append("mended: uneven slice distances")
    if facts["phases"] > 1:
        notes.append(f"{facts['phases']} phases: --frame N")
    return "labels" + (f" ({'; '.join(notes)})" if notes else "")
