"""`leuda adapt`: a finished run, and unlabelled target scans -> a run of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leuda_deploy.cli import JsonOption, app
from leuda_deploy.cli.app import MAKE
from leuda_train.cli.need import need_torch
from leuda_train.cli.train import (
    Device,
    TrainingPrecision,
    print_trained,
    saying_how_to_go_on,
    shown,
)


@app.command(rich_help_panel=MAKE)
def adapt(
    model: Annotated[Path, typer.Argument(help="A finished run, or its model.pt alone.")],
    cohort: Annotated[Path, typer.Argument(help="cohort.toml without \\[source].")],
    out: Annotated[Path, typer.Option(help="Run folder; started again, it resumes.")],
    config: Annotated[
        str | None,
        typer.Option(help="How long: as for train. Default: that of the finished run."),
    ] = None,
    method: Annotated[
        str, typer.Option(help="source-free, or a TOML file with supervised_on = [].")
    ] = "source-free",
    seed: Annotated[int | None, typer.Option(min=0, help="Default: the config's.")] = None,
    device: Annotated[
        Device | None,
        typer.Option(help="Default: auto."),
    ] = None,
    precision: Annotated[
        TrainingPrecision | None,
        typer.Option(help="auto: bf16 where the hardware has it. Default: auto."),
    ] = None,
    cache: Annotated[Path | None, typer.Option(help="Slices. Default: OUT/../cache")] = None,
    gpus: Annotated[
        int | None, typer.Option(min=1, help="A process a GPU; or start it with torchrun.")
    ] = None,
    max_memory: Annotated[str | None, typer.Option(help="As for train.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Go on without the source scans, on unlabelled target scans alone.

    [dim]Needs: leuda\\[train].[/dim]
    """
    need_torch("leuda adapt")
    if gpus is not None:
        from leuda_train.loop.launch import arguments_of_this_process, launch

        raise typer.Exit(launch(gpus, arguments_of_this_process()))
    from leuda_train.data.cohort import read_cohort
    from leuda_train.export.first_model import read_first_model
    from leuda_train.loop.ranks import is_first_process, one_voice
    from leuda_train.runs import train as training

    with one_voice(), saying_how_to_go_on():
        first = read_first_model(model)
        chosen = first.config(
            config, method, seed=seed, device=device, precision=precision, max_memory=max_memory
        )
        scans = read_cohort(cohort, cache=cache or out.parent / "cache")
        evaluation = training.train(
            scans, chosen, out, first=first, cache=cache, show=shown(out, chosen)
        )
    if is_first_process():
        print_trained(out, evaluation, as_json=as_json)
