"""runs of a comparison -> every network in use on each feed, and how well scores rank them.

A translator's ceiling shows here: a network may be better on the target itself than on x^{t→s}.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from textwrap import wrap
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from leuda_train.evaluation.ranking import rank_correlation

NAME_WIDTH = 24  # of a method, so that the table has 80 columns


def mean_of_networks(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Evaluations of one method, a seed each -> a row a network and feed, mean over the seeds.

    `product` counts the seeds in which it was the product of the run. Runs from before all networks
    were scored are left out.
    """
    dice: dict[tuple[str, str], list[float]] = {}
    for evaluation in found:
        for row in evaluation.get("networks", ()):
            values = dice.setdefault((row["network"], row["feed"]), [])
            values += [] if row["dice"] is None else [row["dice"]]
    products = [(evaluation["network"], evaluation.get("feed")) for evaluation in found]
    return [
        {
            "network": network,
            "feed": feed,
            "dice": round(fmean(values), 4) if values else None,
            "dice_std": round(stdev(values), 4) if len(values) > 1 else None,
            "product": products.count((network, feed)),
        }
        for (network, feed), values in dice.items()
    ]


def pooled_ranking(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How well the label-free score ranks the networks of all methods, seeds and feeds together."""
    rows = [row for evaluation in found for row in evaluation.get("networks", ())]
    return rank_correlation((row["label_free_score"], row["dice"]) for row in rows)


def figure(mean: float | None, deviation: float | None, digits: int) -> str:
    """A mean with the sample's standard deviation over seeds, if there were several."""
    if mean is None:
        return "-"
    if deviation is None:
        return f"{mean:.{digits}f} one seed"
    return f"{mean:.{digits}f} ± {deviation:.{digits}f}"


def networks_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """`*` marks the products. Runs that choose may have more than one."""
    shown = Table(
        title="every network, last epoch", title_justify="left", box=SIMPLE_HEAD, pad_edge=False,
        collapse_padding=True, show_edge=False,
    )  # fmt: skip
    for heading in ("method", "labels", "network", "feed", "Dice"):
        right = heading in ("labels", "Dice")
        shown.add_column(heading, justify="right" if right else "left", no_wrap=True)
    for row in rows:
        method = "\n".join(wrap(row["method"], NAME_WIDTH))  # broken at its hyphens
        for network in row.get("networks", ()):
            name = f"{network['network']}{' *' if network['product'] else ''}"
            dice = figure(network["dice"], network["dice_std"], 3)
            shown.add_row(method, str(row["labelled"]), name, network["feed"], dice)
            method = ""
    return shown
