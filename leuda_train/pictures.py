"""a run -> one PNG: the six image sets beside each other, and the training curves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from leuda_deploy.volume import atomic_path
from leuda_train.config import SOURCE_STREAMS, TARGET_STREAMS
from leuda_train.loop import Row
from leuda_train.slices import Slices
from leuda_train.translate import Translation

TITLES = {
    "source": "source $x^s$",
    "source_as_target": r"$x^{s \to t}$",
    "source_cycled": r"$x^{s \to t \to s}$",
    "target": "target $x^t$",
    "target_as_source": r"$x^{t \to s}$",
    "target_cycled": r"$x^{t \to s \to t}$",
}


def draw_run(
    path: Path, slices: Slices, translation: Translation | None, history: list[Row]
) -> None:
    """Write the picture. Rows are slices evenly spread over each domain."""
    rows = 4
    figure = Figure(figsize=(13, 12), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(2.2, 1))
    images = (
        translation.images
        if translation is not None
        else {
            "source": slices.source,
            "target": slices.target,
        }
    )
    axes = above.subplots(rows, 6)
    for column, stream in enumerate((*SOURCE_STREAMS, *TARGET_STREAMS)):
        axes[0, column].set_title(TITLES[stream])
        for row in range(rows):
            axis = axes[row, column]
            axis.set_axis_off()
            if stream in images:
                count = len(images[stream])
                index = round((row + 0.5) / rows * (count - 1))
                axis.imshow(images[stream][index], cmap="gray")
    panels = below.subplots(1, 2)
    _curves(panels[0], "stage 1: translation", translation.history if translation else [])
    _curves(panels[1], "stage 2: adaptation", history)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=80, format="png")


def _curves(axis: object, title: str, history: list[Row]) -> None:
    axis.set_title(title)
    axis.set_xlabel("step")
    if not history:
        axis.text(0.5, 0.5, "not part of this method", ha="center", transform=axis.transAxes)
        return
    steps = [row["step"] for row in history]
    for term in history[0]:
        values = np.array([row[term] for row in history])
        if term != "step" and values.any():
            axis.plot(steps, values, label=term)
    axis.set_yscale("log")
    axis.legend(fontsize=8)
