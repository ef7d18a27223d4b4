"""Predicted labels, true labels -> Dice and surface distances in mm, per structure and volume.

Every volume is scored twice: as predicted, and with only the largest connected component of each
predicted structure (the truth is never changed). A distance to an empty mask does not exist: it
is None and counted as missing, never 0, so a mean distance is always read with its count.

Definitions: Dice = 2|P∩T| / (|P| + |T|) (Dice, Ecology 1945); ASSD, the average symmetric surface
distance (Heimann et al., IEEE TMI 2009); HD95, the 95th percentile Hausdorff distance taken as the
larger of the two directed percentiles (Maier-Hein et al., Metrics Reloaded, Nature Methods 2024).
Distances run between the centres of border voxels, along orthogonal axes `spacing_mm` apart.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from scipy import ndimage

from leuda_deploy.errors import InputError
from leuda_deploy.scans.label_map import label_values, read_label_map
from leuda_deploy.scans.nifti import read_label_names
from leuda_deploy.scans.volume import read_volume

Labels = NDArray[np.integer]
Mask = NDArray[np.bool_]
Spacing = tuple[float, float, float]
Names = Mapping[str, int]  # structure -> class number
Classes = Mapping[int, int]  # value in a file -> class number, 0 for background

VARIANTS = {"as_predicted": False, "largest_component": True}
MAX_CLASSES = 255

# A file name less its extension and the suffixes that say what it holds: group 1 is the subject.
_LABEL_FILE = re.compile(
    r"(?i)([^.].*?)([_-](image|labels?|manual|pred|prediction|seg|mask|gt|truth))*\.nii(\.gz)?"
)
_IMAGE_FILE = re.compile(r"(?i)[_-]image\.nii")


@dataclass(frozen=True, kw_only=True)
class StructureScore:
    """One structure in one volume."""

    structure: str
    dice: float | None  # None: in neither volume, nothing to score; 0: in one of the two only
    assd_mm: float | None  # None: either side is empty, no distance exists
    hd95_mm: float | None  # None: likewise
    predicted_ml: float
    true_ml: float


def score_volume(
    predicted: Labels,
    true: Labels,
    spacing_mm: Spacing,
    structures: Names,
    *,
    largest_component: bool = False,
) -> list[StructureScore]:
    """Scores of each structure; labels (X, Y, Z), spacing in mm per axis, structures name -> label.

    `largest_component` filters the prediction alone. Raises InputError where the shapes differ.
    """
    if predicted.shape != true.shape or predicted.ndim != 3:
        raise InputError(f"labels {predicted.shape} and {true.shape} must share one (X, Y, Z)")
    if largest_component:
        predicted = keep_largest_component(predicted, structures.values())
    return [
        _score(name, predicted == label, true == label, spacing_mm)
        for name, label in structures.items()
    ]


def _score(name: str, predicted: Mask, true: Mask, spacing_mm: Spacing) -> StructureScore:
    n_predicted, n_true = int(np.count_nonzero(predicted)), int(np.count_nonzero(true))
    n_both = int(np.count_nonzero(predicted & true))
    distances = _surface_distances(predicted, true, spacing_mm) if n_predicted and n_true else None
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    return StructureScore(
        structure=name,
        dice=2 * n_both / (n_predicted + n_true) if n_predicted or n_true else None,
        assd_mm=float(np.concatenate(distances).mean()) if distances else None,
        hd95_mm=float(max(np.percentile(d, 95) for d in distances)) if distances else None,
        predicted_ml=n_predicted * voxel_ml,
        true_ml=n_true * voxel_ml,
    )


def _surface_distances(a: Mask, b: Mask, spacing_mm: Spacing) -> list[NDArray[np.float64]]:
    """Distances in mm from each border voxel of `a` to the border of `b`, and of `b` to `a`.

    Both masks (X, Y, Z) must hold a voxel. A border voxel has a 6-neighbour outside its mask, and
    beyond the array is outside. Only the box around the two masks is computed on.
    """
    box = ndimage.find_objects((a | b).astype(np.uint8))[0]
    border_a, border_b = (m[box] & ~ndimage.binary_erosion(m[box], border_value=0) for m in (a, b))
    to_a = ndimage.distance_transform_edt(~border_a, sampling=spacing_mm)
    to_b = ndimage.distance_transform_edt(~border_b, sampling=spacing_mm)
    return [to_b[border_a], to_a[border_b]]


def keep_largest_component(labels: Labels, structures: Iterable[int]) -> Labels:
    """Labels (X, Y, Z) with the largest 26-connected component per structure; ties: the first."""
    kept = labels.copy()
    for label in structures:
        mask = labels == label
        for box in ndimage.find_objects(mask.astype(np.uint8)):  # one box, or none if absent
            components, _ = ndimage.label(mask[box], structure=np.ones((3, 3, 3)))
            largest = 1 + np.bincount(components.ravel())[1:].argmax()
            kept[box][mask[box] & (components != largest)] = 0
    return kept


def summarise(volumes: Mapping[str, list[StructureScore]]) -> dict[str, Any]:
    """Statistics over volumes, JSON-able: `{"structures": {name: ...}, "mean": ...}`.

    Every volume lists the same structures. Of `n_volumes` a structure has a Dice in `n_scored` (it
    is in prediction or truth); of those, `n_missing_distance` have no distance and are left out of
    the distance means. `dice_std` is the population's. `mean` averages the structures' means and
    sums their missing distances. A statistic over nothing is None.
    """
    rows = {s[0].structure: _statistics(s) for s in zip(*volumes.values(), strict=True)}
    mean: dict[str, Any] = {
        key: _mean(row[key] for row in rows.values()) for key in ("dice", "assd_mm", "hd95_mm")
    }
    mean["n_missing_distance"] = sum(row["n_missing_distance"] for row in rows.values())
    return {"structures": rows, "mean": mean}


def _statistics(scores: Sequence[StructureScore]) -> dict[str, Any]:
    dice = [score.dice for score in scores if score.dice is not None]
    return {
        "dice": _mean(dice),
        "dice_std": pstdev(dice) if dice else None,
        "assd_mm": _mean(score.assd_mm for score in scores),
        "hd95_mm": _mean(score.hd95_mm for score in scores),
        "n_volumes": len(scores),
        "n_scored": len(dice),
        "n_missing_distance": len(dice) - sum(score.assd_mm is not None for score in scores),
    }


def _mean(values: Iterable[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return fmean(present) if present else None


def evaluate_paths(
    predicted: Path, true: Path, *, structures: Names | None = None, map_true: Classes | None = None
) -> dict[str, Any]:
    """Score predicted label files against true ones; both are files, or folders of NIfTI files.

    `structures` defaults to the names in the predictions' headers, then to the values found.
    Without `map_true` the truth holds class numbers, not raw values. Returns the JSON-able report:
    `structures`, `volumes` (subject -> variant -> scores), `summary` (variant -> `summarise`).
    Raises InputError: unreadable or unmatched files, grids that differ, labels declared nowhere.
    """
    return evaluate_pairs(match_subjects(predicted, true), structures=structures, map_true=map_true)


def evaluate_pairs(
    pairs: Mapping[str, tuple[Path, Path]],
    *,
    structures: Names | None = None,
    map_true: Classes | None = None,
    spacing_mm: Mapping[str, Spacing] | None = None,
) -> dict[str, Any]:
    """`evaluate_paths` for files already matched: subject -> (predicted, true).

    `spacing_mm` by subject replaces the voxel sizes of headers that are known to be wrong.
    """
    structures = _structures(pairs, structures, map_true)
    number_of = {label: number for number, label in enumerate(structures.values(), start=1)}
    numbers = dict(zip(structures, number_of.values(), strict=True))
    true_number_of = (
        number_of
        if map_true is None
        else {raw: number_of.get(label, 0) for raw, label in map_true.items()}
    )
    scores: dict[str, dict[str, list[StructureScore]]] = {variant: {} for variant in VARIANTS}
    for subject, (predicted_path, true_path) in pairs.items():
        truth = read_label_map(true_path, class_of_raw=true_number_of)
        guess = read_label_map(predicted_path, class_of_raw=number_of, like=truth.volume)
        for variant, largest in VARIANTS.items():
            scores[variant][subject] = score_volume(
                guess.labels,
                truth.labels,
                truth.volume.spacing_mm if spacing_mm is None else spacing_mm[subject],
                numbers,
                largest_component=largest,
            )
    return {
        "structures": structures,
        "volumes": {s: {v: [asdict(x) for x in scores[v][s]] for v in VARIANTS} for s in pairs},
        "summary": {variant: summarise(volumes) for variant, volumes in scores.items()},
    }


def table(report: Mapping[str, Any]) -> Group:
    """The report's summary for a terminal: a table a variant; "-" where nothing is defined."""
    return Group(*(_table(*item, report) for item in report["summary"].items()))


def _table(variant: str, summary: Mapping[str, Any], report: Mapping[str, Any]) -> Table:
    title = f"{variant.replace('_', ' ')}, {len(report['volumes'])} volume(s)"
    shown = Table("structure", title=title, title_justify="left")
    for heading in ("Dice", "± std", "ASSD mm", "HD95 mm", "scored", "no distance"):
        shown.add_column(heading, justify="right")
    for name, row in (*summary["structures"].items(), ("mean", summary["mean"])):
        cells = [
            "-" if row.get(key) is None else f"{row[key]:.{digits}f}"
            for key, digits in (("dice", 3), ("dice_std", 3), ("assd_mm", 2), ("hd95_mm", 2))
        ]
        scored = f"{row['n_scored']}/{row['n_volumes']}" if "n_scored" in row else ""
        shown.add_row(escape(name), *cells, scored, str(row["n_missing_distance"]))
    return shown


def match_subjects(predicted: Path, true: Path) -> dict[str, tuple[Path, Path]]:
    """Subject -> (predicted file, true file), sorted; two files always make a pair.

    In folders the subject is the file name less its extension and suffixes such as `_label` or
    `_pred`. A subject's `_image` file gives way to its other file, so truth may lie beside images.
    Raises InputError where a path is missing or a subject has not exactly one file of each kind.
    """
    if predicted.is_file() and true.is_file():
        named = _LABEL_FILE.fullmatch(predicted.name)
        return {named[1] if named else predicted.stem: (predicted, true)}
    for path in (predicted, true):
        if not path.exists():
            raise InputError(f"no such label file or folder: {path}")
    if not (predicted.is_dir() and true.is_dir()):
        raise InputError(f"{predicted} and {true} must be two label files or two folders of them")
    found: dict[str, tuple[list[Path], list[Path]]] = {}
    for side, folder in enumerate((predicted, true)):
        for path in sorted(folder.iterdir()):
            if named := _LABEL_FILE.fullmatch(path.name):
                found.setdefault(named[1], ([], []))[side].append(path)
    if not found:
        raise InputError(f"{predicted} and {true} hold no .nii or .nii.gz file")
    pairs = {}
    for subject, sides in sorted(found.items()):
        guesses, truths = ([p for p in s if not _IMAGE_FILE.search(p.name)] or s for s in sides)
        if len(guesses) != 1 or len(truths) != 1:
            raise InputError(
                f"subject {subject} needs one prediction and one truth, and has "
                f"{[p.name for p in guesses]} in {predicted} and {[p.name for p in truths]} in "
                f"{true}: name files after their subject, or move the extra ones away"
            )
        pairs[subject] = (guesses[0], truths[0])
    return pairs


def _structures(
    pairs: Mapping[str, tuple[Path, Path]], given: Names | None, map_true: Classes | None
) -> dict[str, int]:
    """Structures by class number: given, named in the predictions' headers, or the labels found."""
    for path, _ in pairs.values():
        names = read_label_names(path)
        named = {name: label for label, name in names.items() if label > 0}
        if named and given is not None and named != dict(given):
            raise InputError(
                f"{path} names its labels {named}, but the cohort or another prediction says "
                f"{dict(given)}: evaluate together only what shares one set of classes"
            )
        given = named or given
    if given is None:
        found = set((map_true or {}).values())
        for pair in pairs.values():
            unmapped = pair if map_true is None else pair[:1]
            found.update(*(label_values(read_volume(path)) for path in unmapped))
        given = {str(label): label for label in found if label > 0}
    if not given:
        raise InputError("no structure to score: no label above 0 is named or found")
    if len(given) > MAX_CLASSES:
        raise InputError(
            f"{len(given)} label values are named or found, and at most {MAX_CLASSES} are scored: "
            "is one of the files an image?"
        )
    return dict(sorted(given.items(), key=lambda item: item[1]))
