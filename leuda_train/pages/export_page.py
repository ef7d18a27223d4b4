"""an export folder -> a page: what the model is, why it can be trusted, how fast it is where."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leuda_deploy.errors import InputError
from leuda_deploy.machine.outside import read_json
from leuda_deploy.model.export_folder import PARITY_FILE, read_manifest
from leuda_deploy.model.model_file import ModelFile
from leuda_train.pages.page import write_page

MAX_PARITY_BYTES = 64 << 20
# figure of a stage -> its heading; each has a limit of the same name
FIGURES = {
    "max_abs": "largest difference",
    "mean_abs": "mean difference",
    "made_up_max_abs": "largest, on noise and extremes",
    "disagreement": "pixels that differ",
}


def write_export_page(export: Path, out: Path, bench: Path | None = None) -> None:
    """Write the page of an export folder.

    Args:
        export: The folder, or the model file in it.
        out: The page.
        bench: What `leuda bench --save` wrote of this model.

    Raises:
        ModelError: The export is damaged.
        InputError: `bench` is no result of `leuda bench`.
    """
    model = ModelFile.open(export)
    card, folder = model.card, model.folder
    manifest = read_manifest(folder)
    parity = folder / PARITY_FILE
    proof: dict[str, Any] = read_json(parity, most=MAX_PARITY_BYTES) if parity.is_file() else {}
    facts = {
        "card": card,
        "structures": [
            {"name": s.name, "value": s.value, "colour": "#%02x%02x%02x" % s.colour}  # noqa: UP031
            for s in card.structures
        ],
        "path": str(folder),
        "size_mb": len(model.content) / 1e6,
        "sha256": model.sha256,
        "files": manifest.files,
        "stages": [_stage(stage) for stage in proof.get("stages", [])],
        "int8_layers": proof.get("int8_layers"),
        "lifted_layers": proof.get("lifted_layers"),
        "engines": {name: passport.model_dump() for name, passport in manifest.engines.items()},
        "bench": _bench(bench) if bench else None,
        "test_dice": card.provenance.test_dice,
    }
    write_page(out, "export.html.j2", facts)


def _stage(stage: Mapping[str, Any]) -> dict[str, Any]:
    """A comparison: each figure beside its limit, and the worst class."""
    limits = stage.get("limits", {})
    dice = {name: value for name, value in stage.get("class_dice", {}).items() if value is not None}
    worst = min(dice, key=lambda name: dice[name]) if dice else None
    return {
        "stage": stage["stage"],
        "windows": stage["windows"],
        "real_windows": stage.get("real_windows"),
        "figures": [
            {"heading": heading, "value": stage.get(key), "limit": limits.get(key)}
            for key, heading in FIGURES.items()
        ],
        "dice": dice[worst] if worst is not None else None,
        "dice_limit": limits.get("dice"),
        "worst": worst,
        "worst_window": stage.get("worst_window"),
        "whole": stage,
    }


def _bench(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = read_json(path)
        rows = [
            {
                "engine": row["engine"],
                "description": row["description"],
                "p50": row["p50_seconds"],
                "p95": row["p95_seconds"],
                "cold": row["cold_seconds"],
                "peak_mb": row["peak_mb"],
                "dice": row.get("dice"),  # where it was measured on labelled scans
            }
            for row in content["engines"]
        ]
        return {
            "rows": rows,
            "shape": content["shape"],
            "rounds": content["rounds"],
            "machine": content["machine"],
        }
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} is no result of `leuda bench --save`: {error}") from error
