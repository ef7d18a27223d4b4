"""What a card says is done to probabilities is what a scan's labels come from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax
from support.makers import MakeModel, MakeVolume

from leuda_deploy.engines.engine import Float32
from leuda_deploy.errors import ModelError
from leuda_deploy.inference.memory_plan import Workload, make_plan
from leuda_deploy.inference.refine.across_slices import averaged
from leuda_deploy.inference.refine.edges import follow_edges
from leuda_deploy.inference.segment import segment
from leuda_deploy.inference.segmenter import Segmenter
from leuda_deploy.inference.settings import Settings
from leuda_deploy.inference.slabs import Scoring
from leuda_deploy.model.card import parse_card
from leuda_deploy.model.model_file import ModelFile, write_model
from leuda_deploy.model.refine import Refine
from leuda_deploy.scans.recipe import Recipe
from leuda_deploy.scans.stack import Stack

BOTH = Refine(edges=True, across_slices=True)
RECIPE = Recipe(
    slice_axis="superior",
    spacing_mm="native",
    window=(32, 32),
    clip_percentiles=(0.0, 100.0),
    normalisation="minmax",
)


def flickering(make_volume: MakeVolume) -> Stack:
    """A bright square of a contrast that differs from slice to slice."""
    rng = np.random.default_rng(5)
    raw = rng.normal(0, 8, (32, 32, 9))
    raw[8:24, 8:24] += rng.uniform(10, 110, 9)
    return Stack(make_volume(raw.astype(np.float32)), RECIPE)


def unsure(windows: Float32) -> Float32:
    return np.concatenate([np.zeros_like(windows), 1.5 * windows + 0.3], axis=1)


@pytest.mark.parametrize("slab", [1, 4, 9])
@pytest.mark.parametrize("refine", [Refine(edges=True), Refine(across_slices=True), BOTH])
@pytest.mark.parametrize("probabilities", [False, True])
def test_labels_are_those_of_the_refined_probabilities(
    make_volume: MakeVolume, slab: int, refine: Refine, probabilities: bool
) -> None:
    stack = flickering(make_volume)
    images = stack.images(0, stack.depth)
    given = softmax(unsure(images[:, None]), axis=1)
    q = given.copy()
    if refine.edges:
        for of_slice, image in zip(q, images, strict=True):
            follow_edges(of_slice, image)
    if refine.across_slices:
        q = averaged(range(len(q)), q)

    def engine(windows: Float32) -> Float32:
        scores = unsure(windows)
        return softmax(scores, axis=1) if probabilities else scores

    scoring = Scoring(slab=slab, refine=refine, probabilities=probabilities)
    found = segment(stack, engine, scoring)
    of_stack = stack.of_scan(np.asfortranarray(found.labels))
    np.testing.assert_array_equal(of_stack, q.argmax(axis=1))
    assert (q.argmax(axis=1) != given.argmax(axis=1)).any()
    assert "refine" in found.seconds


def test_a_card_carries_it_to_the_segmenter_and_the_plan(
    make_model: MakeModel, make_volume: MakeVolume, tmp_path: Path
) -> None:
    path = make_model(tmp_path, RECIPE)
    plain = ModelFile.open(path)
    refined = write_model(
        plain.graph(), plain.card.model_copy(update={"refine": BOTH}), tmp_path / "refined.onnx"
    )
    assert ModelFile.open(refined.path).card.refine == BOTH
    volume = flickering(make_volume).volume
    settings = Settings(engine="ort-cpu")
    before, after = (Segmenter(model, settings)(volume) for model in (plain, refined))
    assert "refine" not in before.seconds
    assert "refine" in after.seconds
    stack = flickering(make_volume)
    least, more = (
        make_plan(stack, Workload(classes=3, refine=refine), batch=4).peak_bytes
        for refine in (Refine(), BOTH)
    )
    assert more > least


def test_what_is_not_of_2d_classes_is_not_refined(make_model: MakeModel, tmp_path: Path) -> None:
    card = ModelFile.open(make_model(tmp_path, RECIPE)).card
    options = card.options.model_copy(update={"regions": True})
    wrong = card.model_copy(update={"refine": Refine(across_slices=True), "options": options})
    with pytest.raises(ModelError, match="refines probabilities"):
        parse_card(wrong.to_json(), "x.onnx")
