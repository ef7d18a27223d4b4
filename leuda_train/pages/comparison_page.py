"""a folder of `leuda compare`, finished or not -> a page: each seed a point, paired differences."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from leuda_deploy.errors import InputError
from leuda_deploy.machine.outside import read_json
from leuda_train.loop.run_folder import MAX_EVALUATION_BYTES, RunFolder
from leuda_train.pages.charts import lines, points
from leuda_train.pages.page import write_page

RUN = re.compile(r"(?P<method>.+)-labelled(?P<labelled>all|\d+)-seed(?P<seed>\d+)")
COMPARISON = "comparison.json"


@dataclass(frozen=True, kw_only=True)
class ScoredRun:
    """A finished run of the comparison; dice and volumes are as predicted."""

    method: str
    labelled: str
    seed: int
    evaluation: Mapping[str, Any]

    @property
    def summary(self) -> Mapping[str, Any]:
        """What evaluation.json says of the scans together."""
        summary: Mapping[str, Any] = self.evaluation["summary"]["as_predicted"]
        return summary

    def dice_by_scan(self) -> dict[str, float]:
        """Mean Dice of each test scan, over the structures that have one."""
        found = {}
        for subject, scored in self.evaluation["volumes"].items():
            known = [s["dice"] for s in scored["as_predicted"] if s["dice"] is not None]
            if known:
                found[subject] = fmean(known)
        return found


def write_comparison_page(folder: Path, out: Path) -> None:
    """Write the page. Raises InputError if no run of the folder is finished."""
    head = (
        read_json(folder / COMPARISON, most=MAX_EVALUATION_BYTES)
        if (folder / COMPARISON).is_file()
        else {}
    )
    runs = _runs(folder)
    if not runs:
        raise InputError(f"no run in {folder} is finished; wait for the first, then ask again")
    counts = sorted({run.labelled for run in runs}, key=lambda n: (n == "all", n.zfill(6)))
    methods = list(dict.fromkeys([row["method"] for row in head.get("rows", [])]))
    methods += [name for name in dict.fromkeys(run.method for run in runs) if name not in methods]
    seconds = [run.evaluation["seconds"] for run in runs]
    parts = [_part(count, methods, runs) for count in counts]
    by_labels = lines(
        "Mean Dice of each method against the number of labelled scans; each seed a point",
        {method: _by_labels(method, counts, runs) for method in methods},
        x="labelled source scans",
        y="mean Dice on the test scans",
    )
    facts = {
        "name": folder.resolve().name,
        "path": str(folder),
        "cohort": head.get("cohort"),
        "config": head.get("config"),
        "leuda": head.get("leuda"),
        "runs": len(runs),
        "waiting": len([p for p in folder.iterdir() if RUN.fullmatch(p.name)]) - len(runs),
        "scans": len(runs[0].evaluation["volumes"]),
        "hardware": sorted({run.evaluation["hardware"] for run in runs}),
        "hours": sum(seconds),
        "by_labels": by_labels,
        "parts": parts,
        "entries": [("by-labels", "by labelled scans")] * (by_labels is not None)
        + [(part["id"], part["labelled"]) for part in parts],
    }
    write_page(out, "comparison.html.j2", facts)


def _runs(folder: Path) -> list[ScoredRun]:
    found = []
    for path in sorted(folder.iterdir()):
        named, evaluation = RUN.fullmatch(path.name), RunFolder(path).evaluation
        if named is None or not evaluation.is_file():
            continue
        content = read_json(evaluation, most=MAX_EVALUATION_BYTES)
        if "summary" in content:
            found.append(
                ScoredRun(
                    method=named["method"],
                    labelled=named["labelled"],
                    seed=int(named["seed"]),
                    evaluation=content,
                )
            )
    return found


def _by_labels(
    method: str, counts: Sequence[str], runs: Sequence[ScoredRun]
) -> dict[str, list[float]]:
    """Mean Dice of each run of a method, by its number of labelled scans."""
    found: dict[str, list[float]] = {}
    for count in counts:
        for run in runs:
            if (run.method, run.labelled) == (method, count):
                found.setdefault(count, []).append(run.summary["mean"]["dice"] or 0.0)
    return found


def _part(labelled: str, methods: Sequence[str], runs: Sequence[ScoredRun]) -> dict[str, Any]:
    """All that is said of one number of labelled scans."""
    by_method = {
        method: [run for run in runs if (run.method, run.labelled) == (method, labelled)]
        for method in methods
    }
    by_method = {method: own for method, own in by_method.items() if own}
    dice = {
        method: [run.summary["mean"]["dice"] or 0.0 for run in own]
        for method, own in by_method.items()
    }
    labels = f"{labelled} labelled scan{'' if labelled == '1' else 's'}"
    title = f"Mean Dice of each method with {labels}; each seed a point, their mean a bar"
    structures = list(next(iter(by_method.values()))[0].evaluation["structures"])
    return {
        "labelled": labels,
        "id": f"labelled-{labelled}",
        "chart": points(title, dice, x="mean Dice on the test scans", limits=(0, 1)),
        "structures": structures,
        "rows": [_row(method, own, structures) for method, own in by_method.items()],
        "methods": list(by_method),
        "pairs": [
            [paired(by_method[a], by_method[b]) if a != b else None for b in by_method]
            for a in by_method
        ],
    }


def _row(method: str, own: Sequence[ScoredRun], structures: Sequence[str]) -> dict[str, Any]:
    def over_seeds(values: Sequence[float | None]) -> tuple[float | None, float | None]:
        known = [value for value in values if value is not None]
        return (fmean(known) if known else None, stdev(known) if len(known) > 1 else None)

    return {
        "method": method,
        "seeds": len(own),
        "dice": over_seeds([run.summary["mean"]["dice"] for run in own]),
        "assd_mm": over_seeds([run.summary["mean"]["assd_mm"] for run in own]),
        "missing": sum(run.summary["mean"]["n_missing_distance"] for run in own),
        "structures": [
            over_seeds([run.summary["structures"][name]["dice"] for run in own])[0]
            for name in structures
        ],
        "networks": sorted({run.evaluation["network"] for run in own}),
        "minutes": fmean(run.evaluation["seconds"] for run in own),
    }


def paired(a: Sequence[ScoredRun], b: Sequence[ScoredRun]) -> dict[str, Any] | None:
    """Dice of a minus that of b on the same scan and seed: mean and standard error over scans.

    The seeds of a scan are averaged first: they are not further patients.
    """
    by_scan: dict[str, list[float]] = {}
    seeds = {run.seed: run.dice_by_scan() for run in b}
    for run in a:
        other = seeds.get(run.seed, {})
        for subject, dice in run.dice_by_scan().items():
            if subject in other:
                by_scan.setdefault(subject, []).append(dice - other[subject])
    means = [fmean(values) for values in by_scan.values()]
    if not means:
        return None
    error = stdev(means) / math.sqrt(len(means)) if len(means) > 1 else None
    return {
        "mean": fmean(means),
        "error": error,
        # "clear" alone would be a dictionary's own, and so always true in a template
        "is_clear": error is not None and abs(fmean(means)) > 2 * error,
    }
