"""`leuda train`, `leuda compare`: command line -> run folders."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from leuda_deploy.cli import JsonOption, app, say
from leuda_deploy.cli.app import MAKE
from leuda_deploy.errors import InputError, printable
from leuda_train.cli.need import need_torch

if TYPE_CHECKING:
    from leuda_deploy.machine.progress import ShowProgress
    from leuda_train.config.schema import TrainConfig

Device = Literal["auto", "cpu", "cuda"]
TrainingPrecision = Literal["auto", "bf16", "fp16", "fp32"]


def complete_config(begun: str) -> list[str]:
    """Built-in configs, for the shell."""
    from leuda_train.config.load import built_in

    return [name for name in built_in("configs") if name.startswith(begun)]


def complete_method(begun: str) -> list[str]:
    """Built-in methods, for the shell."""
    from leuda_train.config.load import built_in

    return [name for name in built_in("methods") if name.startswith(begun)]


@app.command(rich_help_panel=MAKE)
def train(
    cohort: Annotated[Path, typer.Argument(help="cohort.toml")],
    out: Annotated[Path, typer.Option(help="Run folder; started again, it resumes.")],
    config: Annotated[
        str,
        typer.Option(
            help="demo, mini, small, paper-cardiac, ... (docs), or a TOML file.",
            autocompletion=complete_config,
        ),
    ] = "paper-cardiac",
    method: Annotated[
        str,
        typer.Option(
            help="Name of a built-in method, e.g. le-uda, or a TOML file.",
            autocompletion=complete_method,
        ),
    ] = "le-uda-plus",
    labelled: Annotated[
        int | None, typer.Option(min=1, help="Keep the labels of the first N scans alone.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Default: the config's.")] = None,
    device: Annotated[
        Device | None,
        typer.Option(help="Default: the config's, which is auto if it says none."),
    ] = None,
    precision: Annotated[
        TrainingPrecision | None,
        typer.Option(help="auto: bf16 where the hardware has it. Default: the config's, or auto."),
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Slices and translations. Default: OUT/../cache")
    ] = None,
    gpus: Annotated[
        int | None, typer.Option(min=1, help="A process a GPU; or start it with torchrun.")
    ] = None,
    max_memory: Annotated[
        str | None,
        typer.Option(help="Most memory to train in, e.g. 8G; slower if it is scarce."),
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Say where the time went; also OUT/profile.json.")
    ] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also write OUT/tensorboard/.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train: slices, translation, LE-UDA, evaluation.  [dim]Needs: leuda\\[train].[/dim]"""
    need_torch("leuda train")
    if gpus is not None:
        from leuda_train.loop.launch import arguments_of_this_process, launch

        raise typer.Exit(launch(gpus, arguments_of_this_process()))
    from leuda_train.config.load import load_config
    from leuda_train.data.cohort import read_cohort
    from leuda_train.loop.ranks import is_first_process, one_voice
    from leuda_train.runs import train as training

    with one_voice(), saying_how_to_go_on():
        chosen = load_config(
            config, method, seed=seed, device=device, precision=precision, max_memory=max_memory
        )
        scans = read_cohort(cohort, cache=cache or out.parent / "cache")
        evaluation = training.train(
            scans if labelled is None else scans.with_labelled(labelled),
            chosen,
            out,
            cache=cache,
            show=shown(out, chosen),
            profile=profile,
            tensorboard=tensorboard,
        )
    if is_first_process():
        print_trained(out, evaluation, profile=profile, as_json=as_json)


@contextmanager
def saying_how_to_go_on() -> Iterator[None]:
    """One line if training is stopped by hand; of several processes the first one says it."""
    from leuda_train.loop.ranks import is_first_process

    try:
        yield
    except KeyboardInterrupt:
        if is_first_process():
            say("stopped; the same command goes on from the last checkpoint")
        raise


def shown(out: Path, config: TrainConfig) -> ShowProgress:
    """One panel for the whole run in a terminal; elsewhere a line now and then."""
    if not sys.stderr.isatty():
        from leuda_deploy.machine.progress import show_progress

        return show_progress
    from leuda_train.cli.panel import TrainingPanel
    from leuda_train.loop.run_folder import RunFolder

    steps = {}
    if config.uses_translation and config.translation.kind == "cyclegan":
        steps[f"translation ({config.translation.title})"] = config.translation.steps
    steps[config.method] = config.schedule.epochs * config.schedule.steps_per_epoch
    if config.distil is not None:
        steps["distillation"] = config.distil_steps
    return TrainingPanel(folder=RunFolder(out), steps=steps)


def print_trained(
    out: Path, evaluation: dict[str, Any], *, profile: bool = False, as_json: bool
) -> None:
    """What a finished run says, and what may come next."""
    if as_json:
        typer.echo(json.dumps(evaluation, indent=1))
        return
    from rich.console import Console

    from leuda_train.evaluation.table import table
    from leuda_train.loop.run_folder import RunFolder

    folder = RunFolder(out)
    if profile and folder.profile.is_file():
        _print_profile(json.loads(folder.profile.read_text()))
    console = Console()
    if "summary" in evaluation:
        console.print(table(evaluation))
    console.print(f"ran on   {evaluation['hardware']}")
    if by_teacher := evaluation.get("source_scans_by_teacher"):
        console.print(
            f"learned  also {by_teacher['learned_from']} of {by_teacher['of']} unlabelled source "
            "scans, labelled by the teacher"
        )
    for name in evaluation.get("lost", []):
        drift = evaluation["drift"][name]
        console.print(
            f"lost     {printable(name)}: {drift['kept']:.0%} of its first labels are still found, "
            f"{drift['growth']:.2f} times the size; so the first model itself is what is kept",
            soft_wrap=True,
            markup=False,
        )
    console.print(
        f"look at  {folder.page if folder.page.is_file() else folder.run_picture}", soft_wrap=True
    )
    console.print(f"next     leuda export {out} -o exports/{out.name}", soft_wrap=True)


def _print_profile(profiles: dict[str, Any]) -> None:
    for stage_name, found in profiles.items():
        shares = ", ".join(f"{phase} {share:.1%}" for phase, share in found["share"].items())
        typer.echo(f"{stage_name}: {found['images_per_s']:.1f} images/s; {shares}")


@app.command(rich_help_panel=MAKE)
def compare(
    cohort: Annotated[Path, typer.Argument(help="cohort.toml")],
    out: Annotated[Path, typer.Option(help="Folder of the runs and the table.")],
    methods: Annotated[
        str, typer.Option(help="Comma-separated methods or TOML files.")
    ] = "source-only,cyclegan,mt-uda,le-uda,le-uda-plus,supervised",
    labelled: Annotated[
        str, typer.Option(help="Numbers of labelled source scans: 1,4,all")
    ] = "all",
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each.")] = 3,
    config: Annotated[str, typer.Option(help="As for train.")] = "paper-cardiac",
    cache: Annotated[Path | None, typer.Option(help="As for train.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Run methods on one cohort and write one table.  [dim]Needs: leuda\\[train].[/dim]"""
    need_torch("leuda compare")
    from rich.console import Console

    from leuda_deploy.machine.progress import show_progress
    from leuda_train.data.cohort import read_cohort
    from leuda_train.runs.compare import Comparison, table
    from leuda_train.runs.compare import compare as compare_runs

    asked = Comparison(
        methods=methods.split(","),
        labelled=[_count(text) for text in labelled.split(",")],
        seeds=seeds,
        config=config,
    )
    cache = cache or out / "cache"
    scans = read_cohort(cohort, cache=cache)
    comparison = compare_runs(scans, out, asked, cache=cache, show=show_progress)
    if as_json:
        typer.echo(json.dumps(comparison, indent=1))
    else:
        console = Console()
        console.print(table(comparison))
        console.print(f"look at  {out / 'comparison.png'}", soft_wrap=True)
    if comparison["failed"]:
        raise typer.Exit(1)


def _count(text: str) -> int | None:
    """A number of labelled scans, or None for all of them."""
    if text == "all":
        return None
    if not text.isdigit() or int(text) < 1:
        raise InputError(f"--labelled takes numbers and 'all', not {text!r}")
    return int(text)
