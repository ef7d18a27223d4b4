"""`leuda phantom`, `leuda cohort ...`: made scans, or what lies on a disk -> cohort.toml."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from leuda_deploy.cli import app
from leuda_deploy.cli.app import MAKE

cohort = typer.Typer(
    no_args_is_help=True, help="Write cohort.toml for public data, nnU-Net datasets or any folders."
)
app.add_typer(cohort, name="cohort", rich_help_panel=MAKE)

Axis = Literal["right", "anterior", "superior", "array-0", "array-1", "array-2"]
OutputOption = Annotated[Path, typer.Option("--output", "-o", help="The file to write.")]
NameOption = Annotated[str | None, typer.Option(help="Of the cohort. Default: the file's name.")]
LabelledOption = Annotated[
    int | None, typer.Option(min=1, help="Source scans that keep labels, by name. Default: all.")
]
TestOption = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Target scans with labels that are held out, the last by name. "
        "Default: all, or a fifth where all have labels.",
    ),
]
AxisOption = Annotated[
    Axis | None, typer.Option(help="Of the slices. Default: where most scans have thick ones.")
]
SpacingOption = Annotated[
    float | None,
    typer.Option(min=0.01, help="Pixel size of the network's grid, mm. Default: the median."),
]
OUT = Path("cohort.toml")


RootArgument = Annotated[Path, typer.Argument(help="Its download, unpacked.")]
DirectionOption = Annotated[
    str | None, typer.Option(help="mr-to-ct or ct-to-mr; bssfp-to-lge or lge-to-bssfp.")
]
FewOption = Annotated[
    str | None,
    typer.Option(help="Source volumes that keep labels: 1, 4, ..., all. Default: 4; of BTCV 6."),
]


@app.command(rich_help_panel=MAKE)
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


@cohort.command()
def mmwhs(
    root: RootArgument,
    output: OutputOption = OUT,
    direction: DirectionOption = None,
    labelled: FewOption = None,
) -> None:
    """Of MM-WHS 2017: cardiac MR and CT."""
    _write_benchmark("mmwhs", root, output, direction, labelled)


@cohort.command()
def chaos_btcv(
    root: RootArgument,
    output: OutputOption = OUT,
    direction: DirectionOption = None,
    labelled: FewOption = None,
) -> None:
    """Of CHAOS and BTCV: abdominal MR and CT.  [dim]Needs: leuda\\[dicom].[/dim]"""
    _write_benchmark("chaos-btcv", root, output, direction, labelled)


@cohort.command()
def mscmr(
    root: RootArgument,
    output: OutputOption = OUT,
    direction: DirectionOption = None,
    labelled: FewOption = None,
) -> None:
    """Of MS-CMRSeg 2019: cardiac bSSFP and LGE MR."""
    _write_benchmark("mscmr", root, output, direction, labelled)


def _write_benchmark(
    name: str, root: Path, output: Path, direction: str | None, labelled: str | None
) -> None:
    from leuda_deploy.machine.progress import show_progress
    from leuda_train.data.layouts.public import write_benchmark

    with show_progress("files and anatomy") as progress:
        write_benchmark(
            name, root, output, direction=direction, labelled=labelled, progress=progress
        )
    typer.echo(str(output))


@cohort.command()
def nnunet(
    source: Annotated[Path, typer.Argument(help="The labelled domain: a DatasetXXX_Name folder.")],
    target: Annotated[Path, typer.Argument(help="The domain to adapt to: another such folder.")],
    output: OutputOption = OUT,
    name: NameOption = None,
    labelled: LabelledOption = None,
    test: TestOption = None,
    axis: AxisOption = None,
    spacing: SpacingOption = None,
    source_channel: Annotated[
        int | None,
        typer.Option(min=0, help="Where the source has several: which one, 0 for _0000."),
    ] = None,
    target_channel: Annotated[
        int | None, typer.Option(min=0, help="The same of the target.")
    ] = None,
) -> None:
    """Of two datasets as nnU-Net keeps them: imagesTr, labelsTr, dataset.json."""
    from leuda_train.data.layouts.cohort_plan import check_free, write_plan
    from leuda_train.data.layouts.nnunet import plan, read_dataset

    check_free(output)
    made = plan(
        read_dataset(source, source_channel),
        read_dataset(target, target_channel),
        name=name or output.stem,
        labelled=labelled,
        test=test,
        axis=axis,
        spacing_mm=None if spacing is None else (spacing, spacing),
    )
    write_plan(made, output)
    typer.echo(str(output))


@cohort.command("folders")
def of_folders(
    source_images: Annotated[str, typer.Option(help="Glob, e.g. 'mr/*_image.nii.gz'.")],
    source_labels: Annotated[str, typer.Option(help="Glob of the labels of some or all of them.")],
    target_images: Annotated[str, typer.Option(help="Glob of the scans to adapt to.")],
    target_labels: Annotated[
        str | None, typer.Option(help="Glob of the labels of some of them: these are held out.")
    ] = None,
    output: OutputOption = OUT,
    name: NameOption = None,
    source_modality: Annotated[str | None, typer.Option(help="Default: a guess, CT or MR.")] = None,
    target_modality: Annotated[str | None, typer.Option(help="The same of the target.")] = None,
    structure: Annotated[
        list[str] | None,
        typer.Option(help="VALUE=NAME of a label value, e.g. 205=MYO. Default: value_205."),
    ] = None,
    labelled: LabelledOption = None,
    test: TestOption = None,
    axis: AxisOption = None,
    spacing: SpacingOption = None,
    subject: Annotated[
        str | None,
        typer.Option(help="Regular expression whose one group finds the subject in a file name."),
    ] = None,
) -> None:
    """Of any folders, by glob: label values, slices and pixels are looked up in the files."""
    from leuda_deploy.machine.progress import show_progress
    from leuda_train.data.layouts import folders
    from leuda_train.data.layouts.cohort_plan import check_free, write_plan

    check_free(output)
    wishes = folders.Wishes(
        labelled=labelled,
        test=test,
        axis=axis,
        spacing_mm=None if spacing is None else (spacing, spacing),
        names=folders.parse_names(structure or []),
        subject=subject,
    )
    with show_progress("labels") as progress:
        made = folders.plan(
            folders.DomainGlobs(
                images=source_images, labels=source_labels, modality=source_modality
            ),
            folders.DomainGlobs(
                images=target_images, labels=target_labels, modality=target_modality
            ),
            wishes,
            root=Path.cwd(),
            name=name or output.stem,
            progress=progress,
        )
    write_plan(made, output)
    typer.echo(str(output))
