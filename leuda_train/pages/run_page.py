"""a run folder, finished or not -> RUN/report.html or another page of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from markupsafe import Markup

from leuda_deploy.errors import LeudaError
from leuda_deploy.machine.outside import read_json, read_toml
from leuda_train.loop.metrics_log import read_metrics
from leuda_train.loop.run_folder import MAX_EVALUATION_BYTES, RunFolder
from leuda_train.pages.cases import draw_case
from leuda_train.pages.charts import Curve, curves, points
from leuda_train.pages.page import as_damaged, embedded, write_page

SHARE, COSINE = "share/", "cosine/"
MEMORY_PARTS = ("networks", "teachers", "discriminators", "optimizer", "activations", "reserve")
ROLES = {
    "source labelled": "source, labelled",
    "source unlabelled": "source, without labels",
    "target unlabelled": "target, without labels",
    "target test": "target, kept for the test",
}


@dataclass(frozen=True)
class _Found:
    """What a run folder holds; None for what it lacks."""

    folder: RunFolder
    config: dict[str, Any]
    scans: dict[str, Any] | None
    evaluation: dict[str, Any] | None
    rows: list[dict[str, Any]]
    profile: dict[str, Any] | None
    memory: dict[str, Any] | None


def write_run_page(run: Path, out: Path) -> None:
    """Write the page of a run. Raises InputError if a file of it is damaged."""
    folder = RunFolder(run)
    config = read_toml(folder.config)
    found = _Found(
        folder=folder,
        config=config,
        scans=_json(folder.scans),
        evaluation=_json(folder.evaluation),
        rows=read_metrics(folder.metrics),
        profile=_json(folder.profile),
        memory=_json(folder.memory),
    )
    with as_damaged(run):
        write_page(out, "run.html.j2", _facts(found))


def _json(path: Path) -> dict[str, Any] | None:
    there = path.is_file()
    content: dict[str, Any] | None = read_json(path, most=MAX_EVALUATION_BYTES) if there else None
    return content


def _facts(found: _Found) -> dict[str, Any]:
    evaluation, folder = found.evaluation, found.folder
    scored = evaluation is not None and "summary" in evaluation
    return {
        "name": folder.path.resolve().name,
        "path": str(folder.path),
        "config": found.config,
        "scans": found.scans,
        "data": _data(found.scans) if found.scans else [],
        "evaluation": evaluation,
        "oracle": (evaluation or {}).get("oracle"),
        "scores": _scores(evaluation) if evaluation and scored else [],
        "dice_chart": _dice_chart(evaluation) if evaluation and scored else None,
        "sets": embedded(folder.run_picture) if folder.run_picture.is_file() else None,
        "losses": _losses(found.rows),
        "shares": _shares(found.rows),
        "selection": _selection(evaluation),
        "numbered_structures": ", ".join(
            f"{number} {name}" for name, number in (found.scans or {}).get("structures", {}).items()
        ),
        "cases": _cases(found) if evaluation and scored else [],
        "stages": _stages(found),
        "profile": found.profile,
        "memory": _memory(found.memory),
        "missing": _missing(found),
    }


def _data(scans: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row a role: how many scans, slices, and which voxel sizes."""
    rows = []
    for role, title in ROLES.items():
        own = [scan for scan in scans["scans"] if scan["role"] == role]
        if own:
            rows.append(
                {
                    "role": title,
                    "modality": scans["modality"][role.split()[0]],
                    "count": len(own),
                    "slices": _range([scan["slices"] for scan in own], 0),
                    "apart": _range([scan["slice_spacing_mm"] for scan in own], 2),
                    "pixels": [_range([scan["pixels"][k] for scan in own], 0) for k in (0, 1)],
                    "pixel_mm": _range([mm for one in own for mm in one["pixel_spacing_mm"]], 2),
                }
            )
    return rows


def _range(values: list[float], digits: int) -> str:
    low, high = (f"{value:.{digits}f}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def _losses(rows: list[dict[str, Any]]) -> dict[str, Markup | None]:
    """A chart a stage, of the terms that are not zero throughout."""
    charts = {}
    for stage in dict.fromkeys(row["stage"] for row in rows):
        own = [row for row in rows if row["stage"] == stage]
        found = _series(own, lambda name: name not in ("stage", "step", "images_per_s"))
        found = {name: curve for name, curve in found.items() if "/" not in name}
        title = f"Loss terms of stage {stage} by step, {len(own)} rows"
        charts[stage] = curves(title, found, x="step", y="loss", log=True)
    return charts


def _shares(rows: list[dict[str, Any]]) -> Markup | None:
    """Each term's share of the gradient, where the run measured it."""
    found = _series(rows, lambda name: name.startswith(SHARE))
    renamed = {name.removeprefix(SHARE): curve for name, curve in found.items()}
    title = "Gradient of each term as a share of that of L_seg, by step"
    return curves(title, renamed, x="step", y="share of the gradient", log=True)


def _series(rows: list[dict[str, Any]], wanted: Any) -> dict[str, Curve]:
    names = dict.fromkeys(name for row in rows for name in row if wanted(name))
    found: dict[str, Curve] = {}
    for name in names:
        known = [(row["step"], row[name]) for row in rows if name in row]
        if any(value for _, value in known):
            found[name] = ([step for step, _ in known], [value for _, value in known])
    return found


def _selection(evaluation: Mapping[str, Any] | None) -> Markup | None:
    """Label-free scores by epoch, a curve a network; None if there was nothing to choose from."""
    rows = (evaluation or {}).get("label_free_scores") or []
    found: dict[str, Curve] = {}
    for name in [name for name in (rows[0] if rows else ()) if name != "epoch"]:
        known = [(row["epoch"], row[name]) for row in rows if row.get(name) is not None]
        found[name] = ([epoch for epoch, _ in known], [value for _, value in known])
    if all(len(values) < 2 for _, values in found.values()):
        return None  # one candidate: its score stands in the text
    return curves("Label-free score of each network by epoch", found, x="epoch", y="score")


def _scores(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row a structure, then their mean."""
    rows = []
    for name in (*evaluation["structures"], "mean"):
        row: dict[str, Any] = {"structure": name}
        for variant in ("as_predicted", "largest_component"):
            summary = evaluation["summary"][variant]
            own = summary["mean"] if name == "mean" else summary["structures"][name]
            several = own.get("n_scored", 0) > 1
            row[variant] = {
                "dice": (own["dice"], own["dice_std"] if several else None),
                "assd_mm": own["assd_mm"],
                "hd95_mm": own["hd95_mm"],
                "missing": own["n_missing_distance"],
            }
        rows.append(row)
    return rows


def _dice_chart(evaluation: Mapping[str, Any]) -> Markup | None:
    found: dict[str, list[float]] = {name: [] for name in evaluation["structures"]}
    for scored in evaluation["volumes"].values():
        for score in scored["as_predicted"]:
            if score["dice"] is not None:
                found[score["structure"]].append(score["dice"])
    count = len(evaluation["volumes"])
    title = f"Dice of each structure; {count} test scans, each a point, their mean a bar"
    return points(title, found, x="Dice", limits=(0, 1))


def ranked(volumes: Mapping[str, Any]) -> list[tuple[float, str]]:
    """(mean Dice, subject), best first; structures in neither labels nor prediction left out."""
    dice = {
        subject: [score["dice"] for score in scored["as_predicted"] if score["dice"] is not None]
        for subject, scored in volumes.items()
    }
    means = ((fmean(values) if values else 0.0, subject) for subject, values in dice.items())
    return sorted(means, reverse=True)


def _cases(found: _Found) -> list[dict[str, Any]]:
    """Best, median and worst test scan; a case that cannot be drawn says why."""
    assert found.evaluation is not None
    every = ranked(found.evaluation["volumes"])
    shown = {"Best": every[0], "Median": every[len(every) // 2], "Worst": every[-1]}
    distinct: dict[str, tuple[str, float]] = {}
    for rank, (dice, subject) in shown.items():
        distinct.setdefault(subject, (rank, dice))
    cases = []
    for subject, (rank, dice) in distinct.items():
        case: dict[str, Any] = {"rank": rank, "subject": subject, "dice": dice}
        case |= {"picture": None, "why": None, "view": None}
        predicted = found.folder.predictions / f"{subject}_label.nii.gz"
        scan = next(
            (one for one in (found.scans or {"scans": []})["scans"] if one["subject"] == subject),
            None,
        )
        if scan is None or found.scans is None:
            case["why"] = "the run folder does not say where its scans lie"
        else:
            case["view"] = f"leuda view {scan['image']} {predicted} {scan['label']}"
            try:
                case["picture"] = embedded(draw_case(scan, found.scans, predicted))
            except (LeudaError, OSError) as error:
                case["why"] = str(error)
        cases.append(case)
    return cases


def _stages(found: _Found) -> list[dict[str, Any]]:
    """How far each stage is, and how fast."""
    planned = steps_by_stage(found.config)
    rows = []
    for stage in dict.fromkeys([*(row["stage"] for row in found.rows), *planned]):
        own = [row for row in found.rows if row["stage"] == stage]
        rates = [row["images_per_s"] for row in own if "images_per_s" in row]
        rows.append(
            {
                "stage": stage,
                "done": int(own[-1]["step"]) if own else 0,
                "steps": planned.get(stage),
                "images_per_s": median(rates) if rates else None,
            }
        )
    return rows


def _memory(memory: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Megabytes by stage, predicted and measured; None of a run from before they were."""
    if memory is None:
        return None
    rows = []
    for stage, found in memory["stages"].items():
        parts, took = found["predicted"], found["measured"]
        mb = {name: size / 1e6 for name, size in parts.items() if name in MEMORY_PARTS}
        rows.append(
            {
                "stage": stage,
                "parts": mb,
                "predicted": parts["peak"] / 1e6,
                "measured": None if took is None else took / 1e6,
                "recomputed": parts["recomputed"] > 0,
            }
        )
    return {"where": "GPU" if memory["device"] == "cuda" else "machine", "rows": rows}


def steps_by_stage(config: Mapping[str, Any]) -> dict[str, int]:
    """Steps that a resolved config asks of stages 2 and 3, by the names that metrics have."""
    schedule = config["schedule"]
    planned = {config["method"]: schedule["epochs"] * schedule["steps_per_epoch"]}
    if config.get("distil"):
        share = config["distil"].get("share", 0)  # an earlier leuda counted steps
        own = config["distil"].get("steps") or max(1, round(share * planned[config["method"]]))
        planned["distillation"] = own
    return planned


def _missing(found: _Found) -> list[str]:
    """What a whole run would have and this folder has not, in words."""
    folder = found.folder
    files = {
        "its scans (scans.json)": folder.scans,
        "loss terms (metrics.jsonl)": folder.metrics,
        "image sets (run.png)": folder.run_picture,
        "scores (evaluation.json)": folder.evaluation,
    }
    return [what for what, path in files.items() if not path.is_file()]
