"""the results of a day -> one page, of the same make as those of `leuda report`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from leuda_deploy.errors import InputError
from leuda_train.pages.charts import curves
from leuda_train.pages.page import as_damaged, is_page, write_page
from parts.plan import PARTS, TRAINING

TEMPLATE = "gpu_day.html.j2"
ENGINES = ("pytorch", "onnx-runtime", "tensorrt")


def check_page(path: Path) -> None:
    """Raises InputError if another file than a page of ours stands there."""
    if path.exists() and not (path.is_file() and is_page(path)):
        raise InputError(f"{path} is no page of leuda's; choose another --results")


def write_day(path: Path, results: dict[str, Any]) -> None:
    """Write the page. Raises InputError if the results are damaged."""
    with as_damaged(path):
        write_page(path, TEMPLATE, _facts(results), templates=Path(__file__).parent)


def _facts(results: dict[str, Any]) -> dict[str, Any]:
    parts = results["parts"]
    rows = {name: part["found"].get("rows", {}) for name, part in parts.items()}
    engines = [row for name in ENGINES for row in rows.get(name, {}).values()]
    training = parts.get(TRAINING, {}).get("found")
    return {
        "setting": results["setting"],
        "sessions": results["sessions"],
        "parts": [
            {"name": part.name, "title": part.title, "record": parts.get(part.name)}
            for part in PARTS
        ],
        "tests": parts.get("tests", {}).get("found"),
        "networks": {
            network: [row for row in engines if row["network"] == network]
            for network in dict.fromkeys(row["network"] for row in engines)
        },
        "throughput": rows.get("throughput", {}),
        "training": training,
        "loss": _loss(training["L_seg"]) if training else None,
    }


def _loss(points: list[list[float]]) -> Any:
    found = {"L_seg": ([step for step, _ in points], [value for _, value in points])}
    title = "Segmentation loss of the training by step"
    return curves(title, found if points else {}, x="step", y="L_seg", log=True)
