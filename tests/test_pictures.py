"""Pictures of a run: which scans are shown, and that what is shown is what was predicted."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import tiny
from PIL import Image

from leuda_deploy.card import PALETTE
from leuda_deploy.recipe import Recipe
from leuda_deploy.volume import read_volume, write_labels
from leuda_train.cohort import read_cohort
from leuda_train.evaluate import evaluate_pairs
from leuda_train.pictures import _ranked, draw_predictions

RECIPE = Recipe(slice_axis="superior", spacing_mm="native", window=(16, 16))


def test_scans_are_ranked_by_mean_dice_over_the_structures_that_are_there():
    def scored(*dice):
        return {"as_predicted": [{"dice": value} for value in dice]}

    volumes = {"a": scored(0.5, None), "b": scored(0.9, 0.7), "c": scored(None), "d": scored(0.6)}
    assert _ranked(volumes) == [(0.0, "c"), (0.5, "a"), (0.6, "d"), (0.8, "b")]


@pytest.fixture
def cohort(tmp_path):
    return read_cohort(tiny.write_tiny_cohort(tmp_path / "data"))


def write_predictions(cohort, folder, labels_of):
    """Predictions made from each test scan's own labels; their evaluation."""
    names = {number: name for name, number in cohort.structures.items()}
    numbers = cohort.spec.class_of_raw("target")
    pairs = {}
    for scan in cohort.role("target test"):
        truth = np.asarray(nib.load(scan.label).dataobj)
        classes = np.zeros(truth.shape, np.uint8)
        for raw, number in numbers.items():
            classes[truth == raw] = number
        path = folder / f"{scan.subject}_label.nii.gz"
        write_labels(path, labels_of(classes), read_volume(scan.image), names)
        pairs[scan.subject] = (path, scan.label)
    return evaluate_pairs(pairs, structures=cohort.structures, map_true=numbers)


def coloured(path):
    """Pixels that are not grey."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return int((np.ptp(pixels, axis=2) > 40).sum())


def test_prediction_and_truth_are_drawn_in_the_palettes_colours(cohort, tmp_path):
    perfect = write_predictions(cohort, tmp_path / "perfect", lambda classes: classes)
    nothing = write_predictions(cohort, tmp_path / "nothing", np.zeros_like)
    for name, evaluation in (("perfect", perfect), ("nothing", nothing)):
        picture = tmp_path / f"{name}.png"
        draw_predictions(picture, evaluation, cohort, RECIPE, tmp_path / name)
    both, truth_alone = (coloured(tmp_path / f"{name}.png") for name in ("perfect", "nothing"))
    legend = 0.1 * truth_alone
    assert truth_alone > 500
    assert both == pytest.approx(2 * truth_alone, abs=2 * legend)  # the legend is there once
    assert len(PALETTE) >= len(cohort.structures)
