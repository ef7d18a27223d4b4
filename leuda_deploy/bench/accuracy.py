"""model + labelled scans + engines -> Dice and seconds by engine and precision.

Each engine labels the scans as `leuda infer` would, in a process of its own.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from leuda_deploy.engines.engine import EngineChoice, PrecisionChoice
from leuda_deploy.errors import InputError
from leuda_deploy.inference.segmenter import Segmenter
from leuda_deploy.inference.settings import Settings
from leuda_deploy.machine.isolated import run_isolated
from leuda_deploy.model.model_file import ModelFile
from leuda_deploy.scans.label_map import read_label_map
from leuda_deploy.scans.volume import read_volume


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """A scan with its true labels.

    class_of_raw  value in the label file -> class number
    """

    image: Path
    label: Path
    class_of_raw: Mapping[int, int]


@dataclass(frozen=True, kw_only=True)
class LabelledScans:
    """Scans to measure on, and the names of the classes in their labels, by class number."""

    scans: Sequence[Labelled]
    structures: Sequence[str]


class Accuracy(TypedDict):
    """How right one engine is, and how fast.

    precision         as it was asked for; `description` says what ran
    seconds_per_scan  mean wall seconds, from the file to its labels, without loading the engine
    dice              by structure, the mean over the scans that have it or get it; None: none does
    mean_dice         of the structures
    """

    engine: EngineChoice
    precision: PrecisionChoice
    description: str
    scans: int
    seconds_per_scan: float
    dice: dict[str, float | None]
    mean_dice: float | None


def check_fits(model: ModelFile, scans: LabelledScans) -> None:
    """Raises InputError if there is no scan, or if its labels are of other structures."""
    names = [structure.name for structure in model.card.structures]
    if not scans.scans:
        raise InputError("the cohort has no labelled target scan: [target.test] names them")
    if names != list(scans.structures):
        raise InputError(
            f"the model has {', '.join(names)}; the cohort has {', '.join(scans.structures)}"
        )


def accuracy(
    model: ModelFile, engines: Sequence[EngineChoice], scans: LabelledScans, *, threads: int | None
) -> list[Accuracy]:
    """Label the scans by each engine; by OpenVINO in its fastest precision and in fp32.

    Raises:
        LeudaError: An engine cannot run, or a scan cannot be read.
    """
    rows: list[Accuracy] = []
    for name in engines:
        choices: tuple[PrecisionChoice, ...] = ("auto", "fp32") if name == "openvino" else ("auto",)
        for precision in choices:
            settings = Settings(engine=name, precision=precision, threads=threads)
            row = run_isolated(None, _measure, model, settings, scans)
            if all(row["description"] != other["description"] for other in rows):
                rows.append(row)
    return rows


def _measure(model: ModelFile, settings: Settings, labelled: LabelledScans) -> Accuracy:
    """In this process: all scans by one engine."""
    segmenter = Segmenter(model, settings)
    found: list[list[float | None]] = []
    seconds, description = 0.0, ""
    for one in labelled.scans:
        began = time.perf_counter()
        if not found:  # opened, and tried on the first scan, before the clock runs
            description = segmenter.engine_for(segmenter.stack(read_volume(one.image))).description
            began = time.perf_counter()
        volume = read_volume(one.image)
        labels = segmenter(volume).labels
        seconds += time.perf_counter() - began
        truth = read_label_map(one.label, class_of_raw=one.class_of_raw, like=volume).labels
        found.append(dice(labels, truth, len(labelled.structures)))
    mean = {
        structure: _mean([row[k] for row in found])
        for k, structure in enumerate(labelled.structures)
    }
    return Accuracy(
        engine=settings.engine,
        precision=settings.precision,
        description=description,
        scans=len(found),
        seconds_per_scan=round(seconds / len(found), 3),
        dice=mean,
        mean_dice=_mean(list(mean.values())),
    )


def dice(predicted: Any, true: Any, classes: int) -> list[float | None]:
    """Dice of each class from 1, of two label volumes; None where neither has it."""
    found: list[float | None] = []
    for number in range(1, 1 + classes):
        one, other = predicted == number, true == number
        size = int(np.count_nonzero(one) + np.count_nonzero(other))
        found.append(2 * int(np.count_nonzero(one & other)) / size if size else None)
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return round(sum(there) / len(there), 5) if there else None
