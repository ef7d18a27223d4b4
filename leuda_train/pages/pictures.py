"""a run -> two PNGs: its image sets and the training curves; predictions beside truth."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure, FigureBase, SubFigure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from leuda_deploy.machine.files import atomic_path
from leuda_deploy.model.card import PALETTE
from leuda_deploy.scans.label_map import read_label_map
from leuda_deploy.scans.recipe import Recipe, SliceAxis
from leuda_deploy.scans.stack import Stack
from leuda_deploy.scans.volume import read_volume
from leuda_train.config.streams import SOURCE_STREAMS, TARGET_STREAMS
from leuda_train.data.cohort import Cohort, Scan
from leuda_train.loop.metrics_log import Row
from leuda_train.pages.charts import plain
from leuda_train.stages.translated_sets import TranslatedSets

TITLES = {
    "source": "source $x^s$",
    "source_as_target": r"$x^{s \to t}$",
    "source_cycled": r"$x^{s \to t \to s}$",
    "target": "target $x^t$",
    "target_as_source": r"$x^{t \to s}$",
    "target_cycled": r"$x^{t \to s \to t}$",
}

SHOWN_SLICES = 5
RUN_ROWS, RUN_COLUMNS = 4, 6  # of slices in run.png
EMPTY = 0.1  # of the contrast of most slices; below, one shows next to nothing
SHARE = "share/"  # what the terms' shares of the gradient are called, see `gradient_shares`


def draw_run(
    path: Path, translated: TranslatedSets, history: list[Row], slice_axis: SliceAxis
) -> None:
    """Write the picture: the image sets that there are and the curves of the stages trained.

    Slices are evenly spread over each domain, row by row, and the same for every set of it.
    """
    figure = Figure(figsize=(13, 12), layout="constrained")
    above, below = _parts(figure, 2, 1, height_ratios=(2.2, 1))
    images = translated.images
    streams = [stream for stream in (*SOURCE_STREAMS, *TARGET_STREAMS) if stream in images]
    width = RUN_COLUMNS // len(streams)
    blocks = _parts(above, 1, len(streams))
    for stream, block in zip(streams, blocks, strict=True):
        block.suptitle(TITLES[stream])
        # the same slices for every set of a domain
        domain = images["source" if stream in SOURCE_STREAMS else "target"]
        chosen = _spread_slices(domain, RUN_ROWS * width)
        for axis, index in zip(block.subplots(RUN_ROWS, width).flat, chosen, strict=True):
            axis.set_axis_off()
            axis.imshow(upright(images[stream][index], slice_axis), cmap="gray")
    histories = {
        "stage 1: translation": translated.history,
        "stage 2: adaptation": history,
    }
    trained = {title: rows for title, rows in histories.items() if rows}
    shares = [row for row in history if any(term.startswith(SHARE) for term in row)]
    count = len(trained) + bool(shares)  # none before the first steps are logged
    panels = [*below.subplots(1, count, squeeze=False)[0]] if count else []
    for axis, (title, rows) in zip(panels, trained.items(), strict=False):
        draw_curves(axis, title, rows)
    if shares:
        draw_curves(panels[-1], "gradient as a share of $L_{seg}$'s", shares, SHARE)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=80, format="png")


def _spread_slices(images: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """Evenly spread (N, h, w) slices that show something: scans are padded with empty ones."""
    contrast = images.std(axis=(1, 2))
    shown = np.flatnonzero(contrast >= EMPTY * np.quantile(contrast, 0.9))
    places = (np.arange(count) + 0.5) / count * (len(shown) - 1)
    found: NDArray[np.intp] = shown[places.round().astype(int)]
    return found


def _parts(figure: FigureBase, rows: int, columns: int, **layout: Any) -> list[SubFigure]:
    """The figure cut up, row by row."""
    return [*np.ravel(figure.subfigures(rows, columns, squeeze=False, **layout))]


def draw_curves(axis: Axes, title: str, history: list[Row], kind: str = "") -> None:
    """A line for each term that is not zero throughout; the objective L lies broad beneath them.

    kind  what the terms' names begin with, up to a "/"; terms of other kinds are left out
    """
    axis.set_title(title)
    axis.set_xlabel("step")
    steps = [row["step"] for row in history]
    for term in history[0]:
        if term == "step" or term.rpartition("/")[0] != kind.rstrip("/"):
            continue
        values = np.array([row.get(term, np.nan) for row in history])
        if not values.any():
            continue
        if term == "L":  # without other terms it is L_seg, and would be hidden by it
            axis.plot(steps, values, label=term, color="black", alpha=0.25, linewidth=6, zorder=1)
        else:
            axis.plot(steps, values, label=term.removeprefix(kind), marker="." if kind else None)
    axis.set_yscale("log")
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def draw_predictions(
    path: Path, evaluation: Mapping[str, Any], cohort: Cohort, recipe: Recipe, predictions: Path
) -> None:
    """Write the picture: the best, median and worst test scan by mean Dice, truth and prediction.

    evaluation   as `evaluate_pairs` returns it, of the cohort's test scans
    predictions  folder of SUBJECT_label.nii.gz, class numbers on the scans' own grids
    """
    ranked = rank_scans(evaluation["volumes"])
    shown = {"best": ranked[-1], "median": ranked[(len(ranked) - 1) // 2], "worst": ranked[0]}
    if len(ranked) < len(shown):
        shown = {"": ranked[0]} if len(ranked) == 1 else {"best": ranked[1], "worst": ranked[0]}
    scans = {scan.subject: scan for scan in cohort.role("target test")}
    axis_of = recipe.slice_axis
    figure = Figure(figsize=(2.2 * SHOWN_SLICES, 4.6 * len(shown) + 0.6), layout="constrained")
    colours = [
        (red / 255, green / 255, blue / 255)
        for red, green, blue in (PALETTE[k % len(PALETTE)] for k in range(256))
    ]
    for block, (rank, (dice, subject)) in zip(
        _parts(figure, len(shown) + 1, 1, height_ratios=[8] * len(shown) + [1]),
        shown.items(),
        strict=False,  # the last one is the legend's
    ):
        images, both = _slices_of(scans[subject], cohort, recipe, predictions)
        block.suptitle(plain(f"{rank} {subject}: mean Dice {dice:.3f}".strip()))
        axes = block.subplots(2, SHOWN_SLICES)
        for row, (name, labels) in enumerate(both.items()):
            axes[row, 0].text(-0.04, 0.5, name, rotation=90, va="center", ha="right",
                              transform=axes[row, 0].transAxes)  # fmt: skip
            for axis, image, label in zip(axes[row], images, labels, strict=True):
                axis.set_axis_off()
                axis.imshow(upright(image, axis_of), cmap="gray", interpolation="nearest")
                axis.imshow(
                    np.ma.masked_equal(upright(label, axis_of), 0), cmap=ListedColormap(colours),
                    vmin=1, vmax=256, alpha=0.55, interpolation="nearest",
                )  # fmt: skip
    figure.legend(
        handles=[
            Patch(color=colours[number - 1], label=plain(name))
            for name, number in cohort.structures.items()
        ],
        loc="lower center",
        ncols=len(cohort.structures),
    )
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=90, format="png")


def upright(image: NDArray[Any], slice_axis: SliceAxis) -> NDArray[Any]:
    """A slice (h, w) of a recipe's stack as a picture is drawn, from above.

    Slices along a world direction have their rows from the front or from above already. Others are
    [x, y] or [x, z] as a rule: turned, what is anterior or superior is up.
    """
    return image if slice_axis in ("superior", "anterior", "right") else image.T[::-1]


def rank_scans(volumes: Mapping[str, Any]) -> list[tuple[float, str]]:
    """(mean Dice, subject), worst first; structures in neither labels nor prediction left out."""
    dice = {
        subject: [score["dice"] for score in scored["as_predicted"] if score["dice"] is not None]
        for subject, scored in volumes.items()
    }
    return sorted((fmean(values) if values else 0.0, subject) for subject, values in dice.items())


def _slices_of(
    scan: Scan, cohort: Cohort, recipe: Recipe, predictions: Path
) -> tuple[NDArray[np.float32], dict[str, NDArray[np.uint8]]]:
    """Slices spread over the true structures: images (n, h, w), and {"truth", "prediction"}."""
    assert scan.label is not None
    volume = read_volume(scan.image)
    own = {number: number for number in cohort.structures.values()}
    predicted = predictions / f"{scan.subject}_label.nii.gz"
    files = {
        "truth": (scan.label, cohort.spec.class_of_raw("target")),
        "prediction": (predicted, own),
    }
    both = {}
    for name, (path, class_of_raw) in files.items():
        label = read_label_map(path, class_of_raw=class_of_raw, like=volume)
        stack = Stack(label.volume, recipe, pixel_spacing_mm=scan.pixel_spacing_mm)
        both[name] = stack.labels(0, stack.depth, classes=len(own))
    found = np.flatnonzero(both["truth"].any(axis=(1, 2)))
    first, last = (found[0], found[-1]) if len(found) else (0, len(both["truth"]) - 1)
    # the very ends of a structure are slivers
    chosen = np.linspace(first, last, SHOWN_SLICES + 2).round().astype(int)[1:-1]
    stack = Stack(volume, recipe, pixel_spacing_mm=scan.pixel_spacing_mm)
    images = np.concatenate([stack.images(k, k + 1) for k in chosen.tolist()])
    return images, {name: labels[chosen] for name, labels in both.items()}
