"""the `leuda` command: the deployment half's commands and those that make models."""

from __future__ import annotations

import json
import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leuda_deploy.cli import JsonOption, app, run
from leuda_deploy.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from leuda_deploy.model.model_file import ModelFile
    from leuda_deploy.model.tiling import Tiling


class DeviceOption(StrEnum):
    """Where training runs."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class ExportPrecision(StrEnum):
    """What an exported graph computes in; its inputs and scores are always fp32."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"


class BlendingOption(StrEnum):
    """Weights of the scores where windows overlap."""

    GAUSSIAN = "gaussian"
    CONSTANT = "constant"


class MirrorOption(StrEnum):
    """An axis of the window along which `infer --mirror` may mirror it."""

    ROWS = "rows"
    COLUMNS = "columns"


class PrecisionOption(StrEnum):
    """What networks compute in."""

    AUTO = "auto"
    BF16 = "bf16"
    FP16 = "fp16"
    FP32 = "fp32"


class BenchmarkName(StrEnum):
    """Whose download `leuda cohort` reads."""

    MMWHS = "mmwhs"
    CHAOS_BTCV = "chaos-btcv"
    MSCMR = "mscmr"


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
    benchmark: Annotated[BenchmarkName, typer.Argument(help="Which public data set.")],
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
            benchmark.value,
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
        DeviceOption | None,
        typer.Option(help="Default: the config's, which is auto if it says none."),
    ] = None,
    precision: Annotated[
        PrecisionOption | None,
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
    from leuda_train.loop.ranks import one_voice
    from leuda_train.runs.run import train as train_run

    with one_voice():
        chosen = load_config(config, method, seed=seed, device=device, precision=precision)
        evaluation = train_run(
            cohort,
            chosen,
            out,
            cache=cache,
            stage=show_progress,
            labelled=labelled,
            profile=profile,
            tensorboard=tensorboard,
        )
    if int(os.environ.get("RANK", "0")) > 0:  # torchrun's: the first process prints
        return
    if as_json:
        typer.echo(json.dumps(evaluation, indent=1))
        return
    from rich.console import Console

    from leuda_train.evaluation.scores import table

    if profile and (out / "profile.json").is_file():
        _print_profile(json.loads((out / "profile.json").read_text()))
    console = Console()
    if "summary" in evaluation:
        console.print(table(evaluation))
    console.print(f"ran on   {evaluation['hardware']}")
    console.print(f"look at  {out / 'run.png'}", soft_wrap=True)
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
    from leuda_train.runs.compare import compare as compare_runs
    from leuda_train.runs.compare import table

    counts = [_count(text) for text in labelled.split(",")]
    comparison = compare_runs(
        cohort,
        out,
        methods=methods.split(","),
        labelled=counts,
        seeds=seeds,
        config=config,
        cache=cache,
        stage=show_progress,
    )
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
    ] = ExportPrecision.FP32,
    dynamic_window: Annotated[
        bool, typer.Option("--dynamic-window", help="Other window sizes than the recipe's, too.")
    ] = False,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="The softmax is inside the graph.")
    ] = False,
    overlap: Annotated[
        float, typer.Option(min=0.0, max=0.9, help="Of windows, where a slice has several.")
    ] = 0.5,
    blending: Annotated[
        BlendingOption, typer.Option(help="Of their scores.")
    ] = BlendingOption.GAUSSIAN,
    mirror: Annotated[
        list[MirrorOption] | None,
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
    from leuda_deploy.cli.show import export_summary
    from leuda_deploy.export.add_engines import add_engines
    from leuda_deploy.export.import_onnx import copy_export, package_graph
    from leuda_deploy.export.to_tensorrt import engine_targets
    from leuda_deploy.export.to_triton import to_triton
    from leuda_deploy.proof.probes import probes_of_scans

    targets = (  # refused before the long work
        engine_targets(trt_target.split(","), batch=trt_batch, workspace_mb=trt_workspace_mb)
        if trt
        else []
    )
    from_run = source.suffix != ".onnx"
    if card is not None and (from_run or output is None):
        raise InputError("--card is for an *.onnx file from elsewhere, and needs -o exports/NAME")
    if from_run:
        from leuda_deploy.model.tiling import Tiling

        tiling = Tiling(
            overlap=overlap, blending=blending.value, mirror=tuple(m.value for m in mirror or ())
        )
        model = _export_run(
            source, output, precision, dynamic_window, probabilities, licence, tiling
        )
    else:
        if precision != "fp32" or dynamic_window or probabilities:
            raise InputError("--precision, --dynamic-window and --probabilities need a run")
        if not trt and triton is None and output is None:
            raise InputError(
                f"{source} is an export already: ask for --trt or --triton, or -o exports/NAME"
            )
        model = (
            package_graph(source, card, output) if card and output else copy_export(source, output)
        )
    probes = probes_of_scans(model.card, prove) if prove else None
    if targets and probes is None and from_run:
        from leuda_train.export.export_run import run_probes

        probes = run_probes(source)
    if targets:
        from leuda_deploy.machine.progress import show_progress

        with show_progress("TensorRT") as progress:
            add_engines(model, targets, probes=probes, progress=progress)
    served = to_triton(model, triton) if triton is not None else None
    summary = export_summary(model, served)
    if as_json:
        typer.echo(json.dumps(summary, allow_nan=False))
        return
    for key, value in summary["lines"]:
        typer.echo(f"{key:<9}{value}")


def _export_run(
    run_folder: Path,
    output: Path | None,
    precision: ExportPrecision,
    dynamic_window: bool,
    probabilities: bool,
    licence: str,
    tiling: Tiling,
) -> ModelFile:
    _need_torch("leuda export")
    from leuda_deploy.machine.progress import show_progress
    from leuda_deploy.model.card import GraphOptions
    from leuda_train.export.export_run import export as export_run

    if output is None:
        raise InputError("say where the export goes: -o exports/NAME")
    options = GraphOptions(
        dynamic_window=dynamic_window, output="probabilities" if probabilities else "logits"
    )
    with show_progress(f"ONNX {precision.value}") as progress:
        model, _ = export_run(
            run_folder,
            output,
            licence=licence,
            precision=precision.value,
            options=options,
            tiling=tiling,
            progress=progress,
        )
    return model


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
    from leuda_train.evaluation.scores import evaluate_paths, table

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
    from leuda_train.runs.demo import run_demo

    run_demo(out)


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
