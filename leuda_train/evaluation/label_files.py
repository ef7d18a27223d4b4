"""label files, predicted and true -> one report of scores by structure and volume.

Each file is read once. Files without declared structures are scored by the label values in them.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from leuda_deploy.errors import InputError, LeudaError, one_line
from leuda_deploy.inference.refine.clean_up import clean_up as keep_pieces
from leuda_deploy.model.card import Pieces
from leuda_deploy.scans.label_map import label_map_of, label_values
from leuda_deploy.scans.nifti import read_label_names
from leuda_deploy.scans.volume import Volume, read_volume
from leuda_train.evaluation.scores import (
    VARIANTS,
    Names,
    Spacing,
    StructureScore,
    score_volume,
    summarise,
)

_log = logging.getLogger(__name__)
Classes = Mapping[int, int]  # value in a file -> class number, 0 for background
MAX_CLASSES = 255
CLEANED_UP = "cleaned_up"  # the variant by rules learnt from training labels

# A file name less its extension and the suffixes that say what it holds: group 1 is the subject.
_LABEL_FILE = re.compile(
    r"(?i)([^.].*?)([_-](image|labels?|manual|pred|prediction|seg|mask|gt|truth))*\.nii(\.gz)?"
)
_IMAGE_FILE = re.compile(r"(?i)[_-]image\.nii")


def evaluate_paths(
    predicted: Path, true: Path, *, structures: Names | None = None, map_true: Classes | None = None
) -> dict[str, Any]:
    """Score predicted label files against true ones: Dice, ASSD and HD95 in mm, the paper's ASSD.

    Args:
        predicted: A label file, or a folder of NIfTI files.
        true: The same of the truth. Files are paired by subject, see `match_subjects`.
        structures: Structure -> class number. Default: the names in the predictions' headers, else
            the label values found, each named by its number.
        map_true: Raw value in the true files -> class number, 0 for background. Default: the truth
            holds class numbers.

    Returns:
        The report, ready for JSON: `structures`, `volumes` (subject -> variant -> a score for each
        structure), `summary` (variant -> `summarise`) and `failed` (subject -> why it has no
        scores: a file cannot be read, grids differ, a value is declared nowhere). The variants are
        `as_predicted` and `largest_component`.

    Raises:
        InputError: Files that cannot be paired, or not one pair can be scored.
    """
    return evaluate_pairs(match_subjects(predicted, true), structures=structures, map_true=map_true)


def evaluate_pairs(
    pairs: Mapping[str, tuple[Path, Path]],
    *,
    structures: Names | None = None,
    map_true: Classes | None = None,
    spacing_mm: Mapping[str, Spacing] | None = None,
    clean_up: Mapping[int, Pieces] | None = None,
) -> dict[str, Any]:
    """`evaluate_paths` for files already matched: subject -> (predicted, true).

    `spacing_mm` by subject replaces the voxel sizes of headers that are known to be wrong.
    `clean_up` by class number adds the variant `cleaned_up`: the predictions by these rules.
    """
    declared = _declared(pairs, structures)
    names = dict(declared)
    variants = [*VARIANTS, *([CLEANED_UP] if clean_up is not None else [])]
    scores: dict[str, dict[str, list[StructureScore]]] = {variant: {} for variant in variants}
    failed: dict[str, str] = {}
    for subject, (predicted_path, true_path) in pairs.items():
        try:
            predicted, true = read_volume(predicted_path), read_volume(true_path)
            own_names = declared or _found(predicted, true, map_true)
            spacing = true.spacing_mm if spacing_mm is None else spacing_mm[subject]
            found = _score_pair(predicted, true, own_names, map_true, spacing, clean_up)
        except (LeudaError, OSError, MemoryError) as error:  # one bad file stops no other
            if len(pairs) == 1:
                raise
            failed[subject] = one_line(error)
            _log.warning("%s has no scores: %s", subject, failed[subject])
            continue
        names |= own_names
        for variant, scored in found.items():
            scores[variant][subject] = scored
    if failed and len(failed) == len(pairs):
        raise InputError(f"not one of {len(pairs)} scans has scores: {next(iter(failed.values()))}")
    if not names:
        raise InputError("no structure to score: no label above 0 is named or found")
    names = dict(sorted(names.items(), key=lambda item: item[1]))
    volumes = {
        variant: {subject: _complete(scored, names) for subject, scored in by_subject.items()}
        for variant, by_subject in scores.items()
    }
    return {
        "structures": names,
        "failed": failed,
        "volumes": {
            subject: {
                variant: [asdict(x) for x in volumes[variant][subject]] for variant in variants
            }
            for subject in pairs
            if subject not in failed
        },
        "summary": {variant: summarise(by_subject) for variant, by_subject in volumes.items()},
    }


def _score_pair(
    predicted: Volume,
    true: Volume,
    names: Names,
    map_true: Classes | None,
    spacing_mm: Spacing,
    clean_up: Mapping[int, Pieces] | None,
) -> dict[str, list[StructureScore]]:
    """The scores of one volume, by variant."""
    if len(names) > MAX_CLASSES:
        raise InputError(
            f"{len(names)} label values are named or found, and at most {MAX_CLASSES} are scored: "
            "is one of the files an image?"
        )
    # labels are numbered anew, so that any value fits
    number_of = {label: number for number, label in enumerate(names.values(), start=1)}
    number_of_true = (
        number_of
        if map_true is None
        else {raw: number_of.get(label, 0) for raw, label in map_true.items()}
    )
    truth = label_map_of(true, class_of_raw=number_of_true)
    guess = label_map_of(predicted, class_of_raw=number_of, like=truth.volume)
    numbers = dict(zip(names, number_of.values(), strict=True))
    scores = {
        variant: score_volume(
            guess.labels, truth.labels, spacing_mm, numbers, largest_component=largest
        )
        for variant, largest in VARIANTS.items()
    }
    if clean_up is not None:
        rules = {number_of[label]: rule for label, rule in clean_up.items() if label in number_of}
        keep_pieces(guess.labels, spacing_mm, rules)
        scores[CLEANED_UP] = score_volume(guess.labels, truth.labels, spacing_mm, numbers)
    return scores


def _declared(pairs: Mapping[str, tuple[Path, Path]], given: Names | None) -> Names:
    """Structures by class number, as given or named in the predictions' headers; else none."""
    for path, _ in pairs.values():
        try:
            names = read_label_names(path)
        except LeudaError:  # said where the file is scored
            continue
        named = {name: label for label, name in names.items() if label > 0}
        if named and given is not None and named != dict(given):
            raise InputError(
                f"{path} names its labels {named}, but the cohort or another prediction says "
                f"{dict(given)}: evaluate together only what shares one set of classes"
            )
        given = named or given
    return given or {}


def _found(predicted: Volume, true: Volume, map_true: Classes | None) -> Names:
    """The labels that a pair holds, each named by its number."""
    in_truth: Iterable[int] = label_values(true) if map_true is None else map_true.values()
    labels = {*label_values(predicted), *in_truth}
    return {str(label): label for label in sorted(labels) if label > 0}


def _complete(scored: list[StructureScore], names: Names) -> list[StructureScore]:
    """A score for each structure, in order; one that a pair lacks has nothing to score there."""
    there = {score.structure: score for score in scored}
    return [
        there[name]
        if name in there
        else StructureScore(
            structure=name,
            dice=None,
            assd_mm=None,
            hd95_mm=None,
            paper_assd_voxels=None,
            predicted_ml=0.0,
            true_ml=0.0,
        )
        for name in names
    ]


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
