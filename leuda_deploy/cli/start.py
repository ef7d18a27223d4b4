"""a folder -> the three things that one can do next here, as commands."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from leuda_deploy.jobs.find_jobs import LABEL_ENDINGS, is_scan_file, report_path
from leuda_deploy.model.export_folder import MANIFEST_FILE, MODEL_FILE

DEPTH, MOST_FOLDERS, SHOWN = 3, 500, 3
NAMES = ("first", "second", "third")  # of runs


@dataclass(frozen=True)
class Step:
    """What one can do, and the words of the command that does it; a Path is a name found here."""

    what: str
    words: tuple[str | Path, ...]

    @property
    def command(self) -> str:
        """As it is typed: names with blanks are quoted, none is taken for an option."""
        words = [
            f"./{word}" if isinstance(word, Path) and str(word).startswith("-") else str(word)
            for word in self.words
        ]
        return shlex.join(("leuda", *words))


def next_steps(here: Path) -> list[Step]:
    """Three of them, the furthest along first: labels are looked at, models used, and so on."""
    cohorts, runs, exports, scans, results = [], [], [], [], []
    for folder in _folders(here):
        names = {path.name for path in folder.iterdir()}
        place = folder.relative_to(here)
        if {MANIFEST_FILE, MODEL_FILE} <= names:
            exports.append(place)
        elif {"evaluation.json", "model.pt"} <= names:
            runs.append(place)
        cohorts += [place / "cohort.toml"] if "cohort.toml" in names else []
        if any(report_path(folder / name).name in names for name in names if _is_labels(name)):
            results.append(place)
        scans += [place / name for name in sorted(names) if is_scan_file(folder / name)][:1]
    runs.sort(key=lambda run: (here / run / "evaluation.json").lstat().st_mtime, reverse=True)
    scan = scans[0] if scans else Path("SCAN.nii.gz")
    steps = [
        Step(f"look at the labels in {place}, the least sure first", ("view", place))
        for place in results[:1]
    ]
    steps += [
        Step(f"label a scan with {model}", ("infer", scan, "--model", model))
        for model in exports[:1]
    ]
    exported = {path.name for path in exports}
    steps += [
        Step(f"export the run {run}", ("export", run, "-o", Path("exports") / run.name))
        for run in runs
        if run.name not in exported
    ][:1]
    steps += [Step(f"read about the run {run}", ("report", run)) for run in runs[:1]]
    out = next(
        (f"runs/{name}" for name in NAMES if not (here / "runs" / name).exists()), "runs/NEW"
    )
    steps += [Step(f"train on {cohort}", ("train", cohort, "--out", out)) for cohort in cohorts[:1]]
    steps += [
        Step("see the whole job on made scans, in minutes", ("demo",)),
        Step("write made scans and their cohort.toml", ("phantom", "data/phantom")),
        Step("label a scan with the model that comes along, for a look", ("infer", scan)),
    ]
    return steps[:SHOWN]


def _is_labels(name: str) -> bool:
    return name.endswith(tuple(f"labels{ending}" for ending in LABEL_ENDINGS))


def _folders(here: Path) -> Iterator[Path]:
    """This folder and those below it, to some depth; hidden ones are left out."""
    for seen, (name, inside, _) in enumerate(os.walk(here)):
        folder = Path(name)
        inside[:] = sorted(one for one in inside if not one.startswith("."))
        if len(folder.relative_to(here).parts) >= DEPTH:
            inside.clear()
        if seen >= MOST_FOLDERS:
            return
        if os.access(folder, os.R_OK | os.X_OK):
            yield folder
