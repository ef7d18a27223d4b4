"""the report of an evaluation -> tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table

DIGITS = {"dice": 3, "dice_std": 3, "assd_mm": 2, "hd95_mm": 2, "paper_assd_voxels": 2}


def table(report: Mapping[str, Any]) -> Group:
    """The report's summary for a terminal: a table a variant; "-" where nothing is defined.

    paper ASSD: in voxels, by the paper's protocol, see `scores.py`.
    """
    count = len(report["volumes"])
    return Group(*(_table(variant, rows, count) for variant, rows in report["summary"].items()))


def _table(variant: str, summary: Mapping[str, Any], volumes: int) -> Table:
    title = f"{variant.replace('_', ' ')}, {volumes} volume(s)"
    shown = Table("structure", title=title, title_justify="left")
    for heading in ("Dice", "± std", "ASSD mm", "HD95 mm", "paper ASSD", "scored", "no dist."):
        shown.add_column(heading, justify="right")
    for name, row in (*summary["structures"].items(), ("mean", summary["mean"])):
        cells = [
            "-" if row.get(key) is None else f"{row[key]:.{digits}f}"
            for key, digits in DIGITS.items()
        ]
        scored = f"{row['n_scored']}/{row['n_volumes']}" if "n_scored" in row else ""
        shown.add_row(escape(name), *cells, scored, str(row["n_missing_distance"]))
    return shown
