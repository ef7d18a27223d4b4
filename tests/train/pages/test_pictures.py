"""Pictures of a run: which scans are shown, and that what is shown is what was predicted."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from support import tiny

from leuda_deploy.scans.nifti import write_labels
from leuda_deploy.scans.recipe import Recipe
from leuda_deploy.scans.stack import Stack
from leuda_deploy.scans.volume import read_volume
from leuda_train.config.streams import SOURCE_STREAMS, TARGET_STREAMS
from leuda_train.data.cohort import read_cohort
from leuda_train.data.slices import Slices
from leuda_train.evaluation.label_files import evaluate_pairs
from leuda_train.pages.pictures import (
    _spread_slices,
    draw_curves,
    draw_predictions,
    draw_run,
    rank_scans,
    upright,
)
from leuda_train.stages.translated_sets import TranslatedSets, untranslated

RECIPE = Recipe(slice_axis="superior", spacing_mm="native", window=(16, 16))


def test_scans_are_ranked_by_mean_dice_over_the_structures_that_are_there():
    def scored(*dice):
        return {"as_predicted": [{"dice": value} for value in dice]}

    volumes = {"a": scored(0.5, None), "b": scored(0.9, 0.7), "c": scored(None), "d": scored(0.6)}
    assert rank_scans(volumes) == [(0.0, "c"), (0.5, "a"), (0.6, "d"), (0.8, "b")]


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


def dark_slices(count=20):
    """Slices that are nowhere white."""
    dark = np.tile(np.linspace(0.0, 0.5, 16, dtype=np.float32), (count, 16, 1))
    dark[:, 0, 0] = 1.0  # sets the grey scale
    return Slices(
        key="dark", source=dark, target=dark, source_labels=np.zeros(dark.shape, np.uint8),
        labelled_rows=np.arange(4), target_labels=None, target_scans=np.zeros(count, int),
        target_intensities=(),
    )  # fmt: skip


def widest_gap(path):
    """The longest run of white pixel columns beside and between the images of the upper half."""
    pixels = np.asarray(Image.open(path).convert("L"))
    white = (pixels[40 : len(pixels) // 2] > 250).mean(axis=0) > 0.99
    return max(len(run) for run in "".join("w" if w else " " for w in white).split(" "))


def history_of(*terms, rows=20):
    """Rows in which all terms fall alike."""
    return [{"step": 10 * k + 10, **dict.fromkeys(terms, 0.9**k)} for k in range(rows)]


@pytest.mark.parametrize("translated", [False, True])
def test_the_picture_of_a_run_has_no_empty_columns(tmp_path, translated):
    slices = dark_slices()
    families = dict.fromkeys((*SOURCE_STREAMS, *TARGET_STREAMS), slices.source)
    six = TranslatedSets(images=families, to_source=None, history=history_of("gan"))
    sets = six if translated else untranslated(slices)
    draw_run(tmp_path / "run.png", sets, history_of("L", "L_seg"), "superior")
    assert widest_gap(tmp_path / "run.png") < 60


def test_every_curve_of_the_legend_can_be_seen():
    figure = Figure()
    axis = figure.subplots()
    draw_curves(axis, "curves", history_of("L", "L_seg"))
    names = [text.get_text() for text in axis.get_legend().get_texts()]
    assert [line.get_label() for line in axis.lines] == names == ["L", "L_seg"]
    axis.get_legend().remove()
    canvas = FigureCanvasAgg(figure)

    def drawn():
        canvas.draw()
        return np.asarray(canvas.buffer_rgba()).astype(int)

    every = drawn()
    for line in axis.lines:
        line.set_visible(False)
        change = np.abs(drawn() - every).max(axis=2)
        assert (change > 60).sum() > 800, line.get_label()  # more than what smooths edges
        line.set_visible(True)


def test_terms_that_are_zero_throughout_have_no_curve():
    axis = Figure().subplots()
    draw_curves(axis, "curves", [row | {"L_D": 0.0} for row in history_of("L")])
    assert [line.get_label() for line in axis.lines] == ["L"]


@pytest.mark.parametrize("slice_axis", ["superior", "array-2"])
def test_what_is_anterior_is_up(slice_axis, tmp_path):
    voxels = np.zeros((8, 8, 4), np.float32)  # towards left, anterior, superior
    voxels[:, 7, :] = 1.0  # the most anterior
    scan = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(voxels, np.diag([-2.0, 2.0, 4.0, 1.0])), scan)
    recipe = RECIPE.model_copy(update={"slice_axis": slice_axis, "normalisation": "minmax"})
    shown = upright(Stack(read_volume(scan), recipe).images(1, 2)[0], slice_axis)
    assert shown[0].min() > shown[1:].max()


def test_empty_slices_are_not_shown():
    images = np.zeros((30, 8, 8), np.float32)
    images[10:22] = np.random.default_rng(0).normal(size=(12, 8, 8))
    images[:10] += 1e-7 * np.random.default_rng(1).normal(size=(10, 8, 8)).astype(np.float32)
    images[22:] = 1.0
    assert set(_spread_slices(images, 6).tolist()) <= set(range(10, 22))
    assert len(_spread_slices(images[:10] * 0, 6)) == 6  # whatever there is
