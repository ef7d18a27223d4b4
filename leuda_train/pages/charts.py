"""numbers -> inline SVG that takes the page's ink, so that it reads in light, in dark and in print.

Series differ in colour, in their marker and in their dashes: colours alone are not told apart by
everyone, nor on paper.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from hashlib import sha256
from itertools import cycle

import matplotlib as mpl
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

INK = "#123456"  # replaced by the page's own ink
# Okabe and Ito's, those that have contrast on white and on black
COLOURS = ("#0089d6", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#7a7aff", "#8c6d5a", "#888888")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1)), (0, (8, 2)))
MOST_POINTS = 300  # of a curve
Curve = tuple[Sequence[float], Sequence[float]]  # x, y


def plain(name: str) -> str:
    """A name as it is drawn.

    matplotlib takes what stands between two "$" for a formula, and keeps what begins with "_" out
    of legends: there, a blank goes before it.
    """
    return f"{' ' if name.startswith('_') else ''}{name}".replace("$", r"\$")


def curves(
    title: str, found: Mapping[str, Curve], *, x: str, y: str, log: bool = False
) -> Markup | None:
    """A line a series; None if there is none."""
    if not found:
        return None
    figure, axis = _figure(8.5, 3.2)
    styles = zip(cycle(COLOURS), cycle(DASHES), cycle(MARKERS), strict=False)
    for (name, (steps, values)), (colour, dashes, marker) in zip(
        found.items(), styles, strict=False
    ):
        every = max(1, len(steps) // MOST_POINTS)
        axis.plot(
            steps[::every], values[::every], label=plain(name), color=colour, linestyle=dashes,
            marker=marker, markevery=max(1, len(steps[::every]) // 8), markersize=4, linewidth=1.4,
        )  # fmt: skip
    if log and any(value > 0 for _, values in found.values() for value in values):
        axis.set_yscale("log")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return _svg(figure, title)


def points(
    title: str, found: Mapping[str, Sequence[float]], *, x: str, limits: tuple[float, float] | None
) -> Markup | None:
    """A row a series: each value a point, their mean a bar; None if there is no value."""
    found = {name: values for name, values in found.items() if values}
    if not found:
        return None
    figure, axis = _figure(8.5, 0.9 + 0.36 * len(found))
    for row, (values, colour, marker) in enumerate(
        zip(found.values(), cycle(COLOURS), cycle(MARKERS), strict=False)
    ):
        # points that would cover each other lie a little apart
        apart = np.linspace(-0.18, 0.18, len(values)) if len(values) > 1 else [0.0]
        axis.plot(
            values, row + np.asarray(apart), marker, color=colour, markersize=5.5, alpha=0.8,
            markeredgewidth=0,
        )  # fmt: skip
        mean = float(np.mean(values))
        axis.plot([mean, mean], [row - 0.34, row + 0.34], color=INK, linewidth=2.2)
        axis.annotate(
            f"{mean:.3f}", (1.01, row), xycoords=("axes fraction", "data"), va="center", color=INK
        )
    axis.set_yticks(range(len(found)), [plain(name) for name in found])
    axis.set_ylim(len(found) - 0.4, -0.6)
    if limits is not None:
        axis.set_xlim(*limits)
    axis.set_xlabel(x)
    return _svg(figure, title)


def lines(
    title: str, found: Mapping[str, Mapping[str, Sequence[float]]], *, x: str, y: str
) -> Markup | None:
    """A line a series, through the means at each place of x; each value is a point.

    found  series -> place, in order -> its values; None if there are fewer than two places
    """
    places = list(dict.fromkeys(place for values in found.values() for place in values))
    if len(places) < 2:
        return None
    figure, axis = _figure(8.5, 3.2)
    styles = zip(cycle(COLOURS), cycle(DASHES), cycle(MARKERS), strict=False)
    for (name, values), (colour, dashes, marker) in zip(found.items(), styles, strict=False):
        at = [places.index(place) for place in values]
        means = [float(np.mean(own)) for own in values.values()]
        axis.plot(
            at, means, label=plain(name), color=colour, linestyle=dashes, marker=marker,
            markersize=6, linewidth=1.4,
        )  # fmt: skip
        for where, own in zip(at, values.values(), strict=True):
            axis.plot([where] * len(own), own, marker, color=colour, markersize=4, alpha=0.6)
    axis.set_xticks(range(len(places)), places)
    axis.set_ylim(0, 1)
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return _svg(figure, title)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axis = figure.subplots()
    axis.set_facecolor("none")
    axis.grid(color=INK, alpha=0.15, linewidth=0.6)
    for name, spine in axis.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(INK)
    axis.tick_params(which="both", colors=INK, labelsize=10)
    axis.xaxis.label.set_color(INK)
    axis.yaxis.label.set_color(INK)
    return figure, axis


def _svg(figure: Figure, title: str) -> Markup:
    """The figure as an element for a page; the same figure gives the same text."""
    for legend in (axis.get_legend() for axis in figure.axes):
        for entry in legend.get_texts() if legend else ():
            entry.set_color(INK)
    out = io.StringIO()
    salt = sha256(title.encode()).hexdigest()[:8]  # clip paths of two charts are two
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # ids that every chart would share
    text = text.replace(INK, "currentColor")
    label = f'<svg role="img" aria-label="{escape(title)}" '
    return Markup(text.replace("<svg ", label, 1))
