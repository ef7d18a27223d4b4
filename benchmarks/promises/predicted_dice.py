"""a finished run + its cohort with all labels -> how far a predicted Dice is from the true one.

    python benchmarks/promises/predicted_dice.py --run RUN --cohort cohort.toml --save FILE

Fits the curve as `leuda train` does, on the labelled source scans, and looks at target scans whose
labels training never read: those that it was tested on, and those that it was adapted to. A
development figure: both were looked at while the method was settled. Runs of one FILE are gathered.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from leuda_deploy.machine.outside import read_json
from leuda_train.data.cohort import Cohort, read_cohort
from leuda_train.data.slices import _slices_of
from leuda_train.evaluation.dice_curve import (
    TOGETHER,
    LabelledScan,
    dice_pairs,
    fit_dice_curve,
    some_of,
)
from leuda_train.export.product_file import ProductFacts, load_product
from leuda_train.loop.hardware import choose_hardware
from leuda_train.loop.ranks import ALONE
from leuda_train.loop.run_folder import RunFolder
from leuda_train.networks.product import TorchEngine


def main() -> None:
    """Measure one run and add it to the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--cohort", type=Path, required=True)
    parser.add_argument("--save", type=Path, required=True)
    parser.add_argument("--labels", default="_image=_label", help="image name -> label name")
    args = parser.parse_args()
    torch.set_num_threads(1)
    product, facts, _ = load_product(args.run)
    engine = TorchEngine(product, choose_hardware("cpu", "auto", ALONE))
    cohort = read_cohort(args.cohort)
    known = {row["subject"]: row["role"] for row in read_json(RunFolder(args.run).scans)["scans"]}
    classes = 1 + len(facts.structures)

    def scans(*roles: str) -> list[LabelledScan]:
        subjects = [subject for subject, role in known.items() if role in roles]
        return [_labelled(cohort, facts, subject, args.labels) for subject in subjects]

    curve = facts.dice_curve or fit_dice_curve(
        engine,
        scans("source labelled"),
        classes=classes,
        held_out=False,
        refine=facts.refine,
    )
    if curve is None:
        raise SystemExit("no curve could be fitted")
    rows = {}
    for name, roles in {"test": ["target test"], "adapted to": ["target unlabelled"]}.items():
        pairs = [
            (number, *pair)
            for scan in scans(*roles)
            for number, pair in dice_pairs(engine, scan, classes, facts.refine).items()
        ]
        rows[name] = _summary([(curve.predict(e), e, true) for _, e, true in pairs]) | {
            "structures": {
                structure: _summary(
                    [(curve.predict(e), e, true) for k, e, true in pairs if k == number]
                )
                for number, structure in enumerate(facts.structures, start=1)
            }
        }
    results = json.loads(args.save.read_text()) if args.save.is_file() else {}
    results[facts.cohort] = {
        "command": "python benchmarks/promises/predicted_dice.py --run RUN --cohort cohort.toml",
        "method": facts.method,
        "versions": {name: metadata.version(name) for name in ("leuda", "torch")},
        "curve": curve.model_dump(),
        **rows,
    }
    args.save.write_text(json.dumps(results, indent=1) + "\n")


def _labelled(cohort: Cohort, facts: ProductFacts, subject: str, names: str) -> LabelledScan:
    """A scan's windows and classes; its label file is found by name where no role has it."""
    (scan,) = (scan for scan in cohort.scans if scan.subject == subject)
    label = scan.label or Path(str(scan.image).replace(*names.split("=")))
    images, classes, _ = _slices_of(replace(scan, label=label), facts.recipe, cohort.spec, True)
    some = some_of(np.arange(len(images)), together=TOGETHER)
    return LabelledScan(images=images[some], labels=classes[some], rows=some)


def _summary(rows: Sequence[tuple[float, float, float]]) -> dict[str, Any]:
    """Of (predicted, expected, true) Dice."""
    predicted, expected, true = np.array(rows).T
    off = predicted - true
    rank = spearmanr(predicted, true).statistic if len(rows) > 2 else float("nan")
    figures = {
        "mean_true": true.mean(),
        "mean_predicted": predicted.mean(),
        "mean_error": np.abs(off).mean(),
        "mean_error_uncorrected": np.abs(expected - true).mean(),
        "mean_error_of_their_own_mean": np.abs(true - true.mean()).mean(),
        "largest_error": np.abs(off).max(),
        "within_0.1": (np.abs(off) <= 0.1).mean(),
    }
    known = None if np.isnan(rank) else round(float(rank), 3)
    return {
        "structures_of_scans": len(rows),
        **{name: round(float(value), 3) for name, value in figures.items()},
        "rank_correlation": known,
    }


if __name__ == "__main__":
    main()
