"""`leuda card init`: an ONNX graph from elsewhere -> its model card."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from leuda_deploy.cli import app
from leuda_deploy.cli.app import HAND_OVER

card = typer.Typer(
    no_args_is_help=True, help="Write the model card of an ONNX file from elsewhere."
)
app.add_typer(card, name="card", rich_help_panel=HAND_OVER)

Axis = Literal["right", "anterior", "superior", "array-0", "array-1", "array-2"]
Normalisation = Literal["zscore", "minmax"]


@card.command()
def init(
    graph: Annotated[Path, typer.Argument(help="An *.onnx file, 2D or 3D.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The card to write.")] = Path(
        "card.json"
    ),
    name: Annotated[
        str | None, typer.Option(help="Of the model. Default: the file's name.")
    ] = None,
    modality: Annotated[str | None, typer.Option(help="Of the scans, e.g. CT.")] = None,
    structures: Annotated[
        str | None, typer.Option(help="Names of the classes after background: liver,spleen")
    ] = None,
    regions: Annotated[
        bool | None,
        typer.Option(
            "--regions/--classes",
            help="Structures may overlap, large ones first: a score each, none of background. "
            "Default: if the graph has a single score, or a sigmoid.",
        ),
    ] = None,
    channels: Annotated[
        str | None,
        typer.Option(help="Of a graph that reads several scans together: T1,T2,FLAIR"),
    ] = None,
    axis: Annotated[
        Axis | None,
        typer.Option(help="Along which slices are stacked; array-2: the scan is not turned."),
    ] = None,
    spacing: Annotated[
        str | None, typer.Option(help="Pixels in mm, ROWS,COLUMNS or one number; or native.")
    ] = None,
    slice_spacing: Annotated[
        str | None, typer.Option(help="Of a 3D graph: from slice to slice in mm; or native.")
    ] = None,
    window: Annotated[
        str | None,
        typer.Option(help="Of a graph that takes any: ROWS,COLUMNS or SLICES,ROWS,COLUMNS."),
    ] = None,
    clip: Annotated[str, typer.Option(help="Percentiles of the scan that are clipped.")] = "0,98",
    normalisation: Annotated[
        Normalisation, typer.Option(help="Mean 0 and deviation 1; or -1 to 1.")
    ] = "zscore",
    fixed: Annotated[
        str | None,
        typer.Option(help="In place of both, LOW,HIGH,SHIFT,SCALE: clip, subtract, divide."),
    ] = None,
    licence: Annotated[str, typer.Option(help="Of the weights.")] = "not stated",
    force: Annotated[
        bool, typer.Option("--force", help="Replace a file that stands there.")
    ] = False,
) -> None:
    """Write a card: what the graph says, and what options or you say. Asks in a terminal."""
    from leuda_deploy.errors import InputError
    from leuda_deploy.machine.files import atomic_path
    from leuda_deploy.machine.outputs import Output, plan_outputs
    from leuda_deploy.scans.recipe import FixedIntensity
    from leuda_train.export.elsewhere.card_of_graph import Said, card_of, facts_of

    plan_outputs(
        [Output(path=output, what="card", endings=(".json",))], inputs=[graph], force=force
    )
    sides = None if window is None else tuple(map(round, _numbers("--window", window, 2, 3)))
    facts = facts_of(graph, sides)
    missing: list[str] = []

    def ask(given: str | None, option: str, question: str, default: str | None = None) -> str:
        if given is not None:
            return given
        if sys.stdin.isatty():
            answer: str = typer.prompt(question, default=default, err=True)
            return answer
        missing.append(option)
        return ""

    said_modality = ask(modality, "--modality", "Modality of the scans", "CT")
    overlapping = facts.regions if regions is None else regions
    count = facts.scores - (not overlapping)
    said_names = ask(structures, "--structures", f"Names of its {count} structures, with commas")
    said_channels = ""
    if facts.channels > 1:
        question = f"Names of the {facts.channels} scans that it reads, with commas"
        said_channels = ask(channels, "--channels", question)
    said_axis = ask(axis, "--axis", f"Axis of the slices ({', '.join(AXES)})", "superior")
    said_spacing = ask(spacing, "--spacing", "Pixels of the network's grid in mm, or native")
    between = "native"
    if len(facts.window) == 3:
        between = ask(slice_spacing, "--slice-spacing", "From slice to slice in mm, or native")
    if missing:
        raise InputError(f"{graph} does not say it all; add {' '.join(missing)}")
    if said_axis not in AXES:
        raise InputError(f"--axis {said_axis}: one of {', '.join(AXES)}")
    of_fixed = None
    if fixed is not None:
        low, high, shift, scale = _numbers("--fixed", fixed, 4)
        if not (low < high and scale > 0):
            raise InputError(f"--fixed {fixed}: LOW has to be less than HIGH, SCALE more than 0")
        of_fixed = FixedIntensity(low=low, high=high, shift=shift, scale=scale)
    pixels = [] if said_spacing == "native" else _numbers("--spacing", said_spacing, 1, 2)
    low, high = _numbers("--clip", clip, 2)
    made = card_of(
        facts,
        Said(
            name=name or graph.stem,
            modality=said_modality,
            structures=[part.strip() for part in said_names.split(",")],
            regions=regions,
            channels=[
                part.strip() for part in (said_channels or channels or "").split(",") if part
            ],
            axis=AXES[said_axis],
            spacing_mm=(pixels[0], pixels[-1]) if pixels else "native",
            slice_spacing_mm=(
                "native" if between == "native" else _numbers("--slice-spacing", between, 1)[0]
            ),
            clip=(low, high),
            normalisation=normalisation,
            fixed=of_fixed,
            licence=licence,
        ),
    )
    with atomic_path(output) as temporary:
        temporary.write_text(made.model_dump_json(indent=1), encoding="utf-8")
    typer.echo(str(output))


AXES: dict[str, Axis] = {
    "right": "right",
    "anterior": "anterior",
    "superior": "superior",
    "array-0": "array-0",
    "array-1": "array-1",
    "array-2": "array-2",
}


def _numbers(option: str, text: str, *counts: int) -> list[float]:
    """Numbers with commas between. Raises InputError unless they are as many as allowed."""
    from leuda_deploy.errors import InputError

    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in counts or not all(map(math.isfinite, numbers)):
        raise InputError(
            f"{option} {text}: expected {' or '.join(map(str, counts))} number(s) with commas"
        )
    return numbers
