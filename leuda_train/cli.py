"""the `leuda` command: the deployment half's commands and those that make models.

Long because the options of seven commands, with their help, are most of it.
"""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from leuda_deploy.cli import JsonOption, app, run
from leuda_deploy.errors import InputError, MissingExtraError

# what `typer` shows as choices
Benchmark = Literal["mmwhs", "chaos-btcv", "mscmr"]
Device = Literal["auto", "cpu", "cuda"]
TrainingPrecision = Literal["auto", "bf16", "fp16", "fp32"]
ExportPrecision = Literal["fp32", "fp16", "bf16", "int8"]
Blending = Literal["gaussian", "constant"]


class Axis(StrEnum):  # typer takes no list of a Literal
    """Of the window, along which `infer --mirror` may mirror it."""

    ROWS = "rows"
    COLUMNS = "columns"


@app.command()
def phantom(
    out: Annotated[Path, typer.Argument(help="Folder for the cohort.")],
    seed: Annotated[int, typer.Option(min=0, help="Other seeds, other patients.")] = 0,
) -> None:
    """Write a cohort of MR and CT heart phantoms.  [dim]Needs: nothing more.[/dim]"""
    from leuda_deploy.machine.progress import show_progress
    from leuda_train.data.phantom.phantom_cohort import write_cohort

    with show_progress("phantoms") as progress:
        path = write_cohort(out, seed=seed, progress=progress)
    typer.echo(str(path))


@app.command()
def cohort(
    benchmark: Annotated[Benchmark, typer.Argument(help="Which public data set.")],
    root: Annotated[Path, typer.Argument(help="Its download, unpacked.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")] = Path(
        "cohort.toml"
    ),
    direction: Annotated[
        str | None, typer.Option(help="mr-to-ct or ct-to-mr; bssfp-to-lge or lge-to-bssfp.")
    ] = None,
    labelled: Annotated[
        str | None,
        typer.Option(
            help="Source volumes that keep their labels: 1, 4, ... or all. Default: see the README."
        ),
    ] = None,
) -> None:
    """Write cohort.toml for a public benchmark.  [dim]Needs: leuda\\[dicom] for CHAOS.[/dim]"""
    from leuda_deploy.machine.progress import show_progress
    from leuda_train.data.public import write_benchmark

    with show_progress("files and anatomy") as progress:
        write_benchmark(
            benchmark,
            root,
            output,
            direction=direction,
            labelled=labelled,
            progress=progress,
        )
    typer.echo(str(output))


@app.command()
def train(
    cohort: Annotated[Path, typer.Argument(help="cohort.toml")],
    out: Annotated[Path, typer.Option(help="Run folder; started again, it resumes.")],
    config: Annotated[
        str, typer.Option(help="demo, small, paper-cardiac, paper-abdominal, or a TOML file.")
    ] = "paper-cardiac",
    method: Annotated[
        str, typer.Option(help="le-uda-plus, le-uda, source-only, ... (README), or a TOML file.")
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
    profile: Annotated[
        bool, typer.Option("--profile", help="Say where the time went; also OUT/profile.json.")
    ] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also write OUT/tensorboard/.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train: slices, translation, LE-UDA, evaluation.  [dim]Needs: leuda\\[train].[/dim]"""
    _need_torch("leuda train")
    if gpus is not None:
        from leuda_train.loop.launch import arguments_of_this_process, launch

        raise typer.Exit(launch(gpus, arguments_of_this_process()))
    from leuda_deploy.machine.progress import show_progress
    from leuda_train.config.load import load_config
    from leuda_train.data.cohort import read_cohort
    from leuda_train.loop.ranks import is_first_process, one_voice
    from leuda_train.runs import train as training

    with one_voice():
        chosen = load_config(config, method, seed=seed, device=device, precision=precision)
        scans = read_cohort(cohort)
        evaluation = training.train(
            scans if labelled is None else scans.with_labelled(labelled),
            chosen,
            out,
            cache=cache,
            show=show_progress,
            profile=profile,
            tensorboard=tensorboard,
        )
    if is_first_process():
        _print_trained(out, evaluation, profile=profile, as_json=as_json)


def _print_trained(out: Path, evaluation: dict[str, Any], *, profile: bool, as_json: bool) -> None:
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
    console.print(f"look at  {folder.run_picture}", soft_wrap=True)
    console.print(f"next     leuda export {out} -o exports/{out.name}", soft_wrap=True)


def _print_profile(profiles: dict[str, Any]) -> None:
    for stage_name, found in profiles.items():
        shares = ", ".join(f"{phase} {share:.1%}" for phase, share in found["share"].items())
        typer.echo(f"{stage_name}: {found['images_per_s']:.1f} images/s; {shares}")


@app.command()
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
    _need_torch("leuda compare")
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
    comparison = compare_runs(read_cohort(cohort), out, asked, cache=cache, show=show_progress)
    if as_json:
        typer.echo(json.dumps(comparison, indent=1))
        return
    console = Console()
    console.print(table(comparison))
    console.print(f"look at  {out / 'comparison.png'}", soft_wrap=True)


def _count(text: str) -> int | None:
    """A number of labelled scans, or None for all of them."""
    if text == "all":
        return None
    if not text.isdigit() or int(text) < 1:
        raise InputError(f"--labelled takes numbers and 'all', not {text!r}")
    return int(text)


@app.command()
def export(
    source: Annotated[Path, typer.Argument(help="A finished run, or an exported *.onnx file.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="exports/NAME. Default: the *.onnx file's own folder."),
    ] = None,
    card: Annotated[
        Path | None,
        typer.Option(
            help="Of an *.onnx from elsewhere: its model card, as exports/NAME/card.json."
        ),
    ] = None,
    precision: Annotated[
        ExportPrecision, typer.Option(help="Written into the graph, and proven.")
    ] = "fp32",
    dynamic_window: Annotated[
        bool, typer.Option("--dynamic-window", help="Other window sizes than the recipe's, too.")
    ] = False,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="The softmax is inside the graph.")
    ] = False,
    overlap: Annotated[
        float, typer.Option(min=0.0, max=0.9, help="Of windows, where a slice has several.")
    ] = 0.5,
    blending: Annotated[Blending, typer.Option(help="Of their scores.")] = "gaussian",
    mirror: Annotated[
        list[Axis] | None,
        typer.Option(help="A mirrored window means the same (no left and right): allow --mirror."),
    ] = None,
    trt: Annotated[bool, typer.Option("--trt", help="Also build a TensorRT engine.")] = False,
    trt_target: Annotated[
        str,
        typer.Option(help="this-machine, or ahead of time, without a GPU: rtx-ampere,rtx-ada,..."),
    ] = "this-machine",
    trt_batch: Annotated[int, typer.Option(min=1, help="Largest batch of the engine.")] = 8,
    trt_workspace_mb: Annotated[int, typer.Option(min=1, help="The builder's memory.")] = 1024,
    prove: Annotated[
        list[Path] | None,
        typer.Option(help="Scans to compare an engine on. Default for a run: its own slices."),
    ] = None,
    triton: Annotated[
        Path | None, typer.Option(help="Also write it into this Triton model repository.")
    ] = None,
    licence: Annotated[str, typer.Option(help="Licence of the weights.")] = "not stated",
    as_json: JsonOption = False,
) -> None:
    """Write a model and prove it, or refuse.  [dim]A run needs: leuda\\[train].[/dim]"""
    if source.suffix != ".onnx":
        _need_torch("leuda export")
    from leuda_deploy.cli.show import export_summary
    from leuda_deploy.export.to_tensorrt import engine_targets
    from leuda_deploy.machine.progress import show_progress
    from leuda_deploy.model.card import GraphOptions
    from leuda_deploy.model.tiling import Tiling
    from leuda_train.export.request import ExportRequest, export_as_asked

    targets = (  # refused before the long work
        engine_targets(trt_target.split(","), batch=trt_batch, workspace_mb=trt_workspace_mb)
        if trt
        else []
    )
    request = ExportRequest(
        source=source,
        output=output,
        card=card,
        precision=precision,
        graph=GraphOptions(
            dynamic_window=dynamic_window, output="probabilities" if probabilities else "logits"
        ),
        tiling=Tiling(
            overlap=overlap, blending=blending, mirror=tuple(axis.value for axis in mirror or ())
        ),
        licence=licence,
        targets=tuple(targets),
        prove=tuple(prove or ()),
        triton=triton,
    )
    summary = export_summary(*export_as_asked(request, show_progress))
    if as_json:
        typer.echo(json.dumps(summary, allow_nan=False))
        return
    for key, value in summary["lines"]:
        typer.echo(f"{key:<9}{value}")


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


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Everything goes there.")] = Path("runs/demo"),
) -> None:
    """The whole job on phantoms, in minutes on a CPU.  [dim]Needs: leuda\\[train].[/dim]"""
    _need_torch("leuda demo")
    from rich.console import Console

    from leuda_deploy.machine.progress import show_progress
    from leuda_train.runs.demo import read_demo, run_demo, table

    console = Console()
    summary = read_demo(out)
    if summary is not None:
        console.print(f"reusing {out}; delete it to start over", soft_wrap=True)
    else:
        summary = run_demo(out, show_progress)
    console.print(table(summary))
    console.print(f"{summary['seconds']['total']:.0f} s on {summary['hardware']}", soft_wrap=True)
    for what, path in summary["look_at"].items():
        console.print(f"{what:<22}{path}", soft_wrap=True)


def _need_torch(what: str) -> None:
    """Raises MissingExtraError, with the install command, where the train extra is missing."""
    from importlib.util import find_spec

    for module, package in (
        ("torch", "PyTorch"),
        ("onnxscript", "onnxscript"),
        ("tomli_w", "tomli-w"),
        ("matplotlib", "matplotlib"),
    ):
        if find_spec(module) is None:
            raise MissingExtraError(what, package, "train")


def main() -> None:
    """The `leuda` command."""
    run(app)
