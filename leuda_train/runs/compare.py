"""cohort + methods x labelled counts x seeds -> runs, and one table of them.

OUT/METHOD-labelledN-seedS/   a run each; those that are done are not done again
OUT/comparison.json .csv .txt .png
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from itertools import cycle
from pathlib import Path
from statistics import fmean, stdev
from textwrap import wrap
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.table import Table

from leuda_deploy.errors import InputError, LeudaError, TrainingError, keep_traceback, one_line
from leuda_deploy.machine.files import atomic_path, write_json
from leuda_deploy.machine.outputs import plan_folder
from leuda_deploy.machine.outside import read_json
from leuda_deploy.machine.progress import ShowProgress, show_nothing, titled
from leuda_train.config.load import load_config
from leuda_train.config.schema import TrainConfig
from leuda_train.data.cohort import Cohort
from leuda_train.loop.run_folder import MAX_EVALUATION_BYTES
from leuda_train.pages.charts import COLOURS, DASHES, MARKERS, plain
from leuda_train.runs.networks_table import (
    figure,
    mean_of_networks,
    networks_table,
    pooled_ranking,
)
from leuda_train.runs.run import check_labels
from leuda_train.runs.train import train

_log = logging.getLogger(__name__)
NAME_WIDTH = 16  # of a method, so that the table has 80 columns
RESULTS = ("comparison.json", "comparison.csv", "comparison.txt", "comparison.png")
VARIANTS = ("as_predicted", "largest_component")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Which runs are compared.

    methods    built-in names or TOML files
    labelled   numbers of labelled source scans; None for all of them
    seeds      each method is run with seeds 0 .. seeds - 1
    config     a built-in name or a TOML file
    overrides  of the config's values, as for `load_config`
    """

    methods: Sequence[str]
    labelled: Sequence[int | None] = (None,)
    seeds: int = 3
    config: str = "paper-cardiac"
    overrides: Mapping[str, Any] = field(default_factory=dict)


def compare(
    cohort: Cohort,
    out: Path,
    asked: Comparison,
    *,
    cache: Path | None = None,
    show: ShowProgress = show_nothing,
) -> dict[str, Any]:
    """Train whatever is missing, in a fixed order, and write the table.

    A run that fails stops no other: `failed` says which and why, and asking again tries it again.
    """
    # all that can be wrong is looked at first, so that it does not show up hours later
    configs = {
        method: [
            load_config(asked.config, method, seed=seed, **asked.overrides)
            for seed in range(asked.seeds)
        ]
        for method in asked.methods
    }
    cohorts = {
        count: cohort if count is None else cohort.with_labelled(count) for count in asked.labelled
    }
    check_comparable(cohort, [config for by_seed in configs.values() for config in by_seed])
    if not _is_comparison(out / RESULTS[0]):  # which is written before the others
        plan_folder(out, RESULTS, what="comparison")
    head: dict[str, Any] = {
        "cohort": cohort.spec.name,
        "config": Path(asked.config).stem,
        "leuda": metadata.version("leuda"),
        "failed": {},  # run -> why
    }
    rows: list[dict[str, Any]] = []
    every: list[dict[str, Any]] = []
    for count, labelled in cohorts.items():
        for by_seed in configs.values():
            found: list[dict[str, Any]] = []
            for config in by_seed:
                name = config.method  # of a TOML file, its stem
                run = out / f"{name}-labelled{count or 'all'}-seed{config.seed}"
                try:
                    evaluation = train(
                        labelled,
                        config,
                        run,
                        cache=cache or out / "cache",
                        show=titled(show, run.name),
                    )
                except Exception as error:  # noqa: BLE001  (one bad run stops no other)
                    kept = isinstance(error, LeudaError | OSError | MemoryError)
                    why = one_line(error) if kept else keep_traceback(error)
                    head["failed"][run.name] = why
                    _log.warning("%s failed: %s", run, why)
                    continue
                found.append(evaluation)
                every.append(evaluation)
                head["ranking"] = pooled_ranking(every)
                _write(out, head, [*rows, summarise_seeds(name, count, found)])
            if found:
                rows.append(summarise_seeds(by_seed[0].method, count, found))
    if not rows:
        raise TrainingError(f"every run failed; {next(iter(head['failed'].items()))}")
    return _write(out, head, rows)


def check_comparable(cohort: Cohort, configs: Sequence[TrainConfig]) -> None:
    """Raises InputError if a run could not be trained, or not be tested, on this cohort."""
    if not cohort.role("target test"):
        raise InputError(f"cohort {cohort.spec.name} has no [target] test scans to compare on")
    for config in configs:
        check_labels(config, cohort, None)


def _is_comparison(path: Path) -> bool:
    """Whether a file is what `_write` wrote."""
    if not path.is_file():
        return False
    try:
        content = read_json(path, most=MAX_EVALUATION_BYTES)
    except InputError:
        return False
    return isinstance(content, dict) and {"cohort", "config", "leuda", "rows"} <= set(content)


def summarise_seeds(
    method: str, labelled: int | None, found: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Mean and the sample's standard deviation over seeds, by variant, where they exist."""
    row: dict[str, Any] = {
        "method": method,
        "labelled": labelled or "all",
        "seeds": len(found),
        "network": sorted({evaluation["network"] for evaluation in found}),
        "minutes": round(fmean(evaluation["seconds"] for evaluation in found) / 60, 1),
        "hardware": found[0]["hardware"],
    }
    row["networks"] = mean_of_networks(found)
    row["oracle_dice"] = _mean([e["oracle"]["dice"] for e in found if "oracle" in e])
    for variant in VARIANTS:
        summaries = [evaluation["summary"][variant] for evaluation in found]
        for key in ("dice", "assd_mm", "paper_assd_voxels"):
            # a run from before has no distance by the paper's protocol
            values = [summary["mean"].get(key) for summary in summaries]
            row[f"{variant}.{key}"] = _mean(values)
            row[f"{variant}.{key}_std"] = _mean(values, stdev, least=2)
        row[f"{variant}.missing"] = sum(s["mean"]["n_missing_distance"] for s in summaries)
        row[f"{variant}.structures"] = {
            name: _mean([s["structures"][name]["dice"] for s in summaries])
            for name in summaries[0]["structures"]
        }
    return row


def _mean(
    values: Sequence[float | None],
    of: Callable[[Sequence[float]], float] = fmean,
    least: int = 1,
) -> float | None:
    """Of those that exist; None if fewer do."""
    known = [value for value in values if value is not None]
    return round(of(known), 4) if len(known) >= least else None


def _write(out: Path, head: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    comparison = {**head, "rows": rows}
    as_json, as_csv, as_text, as_picture = (out / name for name in RESULTS)
    write_json(as_json, comparison)
    text = io.StringIO()
    flat = [{k: v for k, v in row.items() if not isinstance(v, dict | list)} for row in rows]
    writer = csv.DictWriter(text, fieldnames=list(flat[0]))
    writer.writeheader()
    writer.writerows(flat)
    _replace(as_csv, text.getvalue())
    console = Console(width=140, file=io.StringIO())
    console.print(table(comparison))
    assert isinstance(console.file, io.StringIO)
    _replace(as_text, console.file.getvalue())
    _draw(as_picture, rows)
    return comparison


def _replace(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text)


def table(comparison: dict[str, Any]) -> Group:
    """For 80 columns: a table a variant, mean ± standard deviation over seeds; all networks."""
    rows, ranking = comparison["rows"], comparison.get("ranking", {"spearman": None})
    first, second = (_table(variant, rows) for variant in VARIANTS)
    parts: list[Table | str] = [first, "", second]
    if any(row.get("networks") for row in rows):
        parts += ["", networks_table(rows)]
    if ranking["spearman"] is not None:
        parts.append(
            f"Label-free score and Dice, all networks: Spearman {ranking['spearman']:.2f} "
            f"(n = {ranking['n']})"
        )
    return Group(*parts)


def _table(variant: str, rows: list[dict[str, Any]]) -> Table:
    """labels: scans that have them; oracle: Dice of the network that test labels would choose.

    min: minutes of the last session; a translation or slices that were in the cache took none.
    """
    shown = Table(
        title=variant.replace("_", " "), title_justify="left", box=SIMPLE_HEAD, pad_edge=False,
        collapse_padding=True, show_edge=False,
    )  # fmt: skip
    shown.add_column("method", no_wrap=True)
    with_oracle = variant == "as_predicted"
    headings = ("labels", "seeds", "Dice", "ASSD mm", "no\ndist.", "oracle", "min")
    for heading in headings:
        if with_oracle or heading != "oracle":
            shown.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        cells = [str(row["labelled"]), str(row["seeds"])]
        for key, digits in (("dice", 3), ("assd_mm", 2)):
            cells.append(figure(row[f"{variant}.{key}"], row[f"{variant}.{key}_std"], digits))
        cells.append(str(row[f"{variant}.missing"]))
        if with_oracle:
            cells.append("-" if row["oracle_dice"] is None else f"{row['oracle_dice']:.3f}")
        method = "\n".join(wrap(row["method"], NAME_WIDTH))  # broken at its hyphens
        shown.add_row(method, *cells, f"{row['minutes']:.0f}")
    return shown


def _draw(path: Path, rows: list[dict[str, Any]]) -> None:
    """Mean Dice ± standard deviation: bars, or lines if there are several numbers of labels."""
    counts = list(dict.fromkeys(str(row["labelled"]) for row in rows))
    many = len(counts) > 1
    figure = Figure(figsize=(8, 4 if many else 1.2 + 0.4 * len(rows)), layout="constrained")
    axis = figure.subplots()
    if many:
        _draw_lines(axis, rows, counts)
    else:
        _draw_bars(axis, rows)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=100, format="png")


def _draw_lines(axis: Axes, rows: list[dict[str, Any]], counts: list[str]) -> None:
    styles = zip(cycle(COLOURS), cycle(DASHES), cycle(MARKERS), strict=False)
    for method, (colour, dashes, marker) in zip(
        dict.fromkeys(row["method"] for row in rows), styles, strict=False
    ):
        own = [row for row in rows if row["method"] == method]
        axis.errorbar(
            [counts.index(str(row["labelled"])) for row in own],
            [row["as_predicted.dice"] or 0.0 for row in own],
            yerr=[row["as_predicted.dice_std"] or 0.0 for row in own],
            label=plain(method), color=colour, linestyle=dashes, marker=marker, capsize=3,
        )  # fmt: skip
    axis.set_xticks(range(len(counts)), counts)
    axis.set_ylim(0, 1)
    axis.grid(alpha=0.3)
    axis.set_xlabel("labelled source scans")
    axis.set_ylabel("mean Dice on the test scans")
    axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _draw_bars(axis: Axes, rows: list[dict[str, Any]]) -> None:
    dice = [row["as_predicted.dice"] or 0.0 for row in rows]
    spread = [row["as_predicted.dice_std"] or 0.0 for row in rows]
    axis.barh([plain(row["method"]) for row in rows], dice, xerr=spread, color="#56B4E9")
    axis.invert_yaxis()
    axis.set_xlim(0, 1)
    axis.set_xlabel(f"mean Dice on the test scans, {rows[0]['labelled']} labelled scans")
    for index, value in enumerate(dice):
        axis.text(0.01, index, f"{value:.3f}", va="center")
