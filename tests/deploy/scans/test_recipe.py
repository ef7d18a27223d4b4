"""A recipe is checked, frozen, and the same after a trip through JSON."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from leuda_deploy.errors import describe
from leuda_deploy.scans.recipe import Recipe

FIXED = {"normalisation": "fixed", "fixed": {"low": -100.5, "high": 300, "shift": 9, "scale": 2}}


def recipe(**other: Any) -> Recipe:
    fields: dict[str, Any] = {
        "slice_axis": "superior",
        "spacing_mm": "native",
        "window": (16, 16),
        "clip_percentiles": (0.0, 100.0),
        "normalisation": "minmax",
    }
    return Recipe(**(fields | other))


def test_recipe_round_trips_through_json() -> None:
    for settings in ({}, {"spacing_mm": (1.5, 0.8), "normalisation": "zscore"}, FIXED):
        made = recipe(**settings)
        assert Recipe.model_validate_json(made.model_dump_json()) == made


@pytest.mark.parametrize(
    ("settings", "place"),
    [
        ({"spacing": (1, 1)}, "spacing"),
        ({"clip_percentiles": (98.0, 2.0)}, "must rise"),
        ({"clip_percentiles": (50.0, 50.0)}, "must rise"),
        ({"clip_percentiles": (0.0, 100.1)}, "less than or equal to 100"),
        ({"window": (0, 16)}, "window"),
        ({"window": (16, 100_000)}, "window"),
        ({"spacing_mm": (0.0, 1.0)}, "greater than 0"),
        ({"spacing_mm": (1.0, float("nan"))}, "spacing_mm"),
        ({"slice_axis": "left"}, "slice_axis"),
        ({"normalisation": "histogram"}, "normalisation"),
        ({"normalisation": "fixed"}, "need each other"),
        ({"fixed": {"low": 0, "high": 1}}, "need each other"),
        ({"normalisation": "fixed", "fixed": {"low": 1, "high": 1}}, "must rise"),
        ({"normalisation": "fixed", "fixed": {"low": 0, "high": 1, "scale": 0}}, "fixed.scale"),
        ({"crop": "body"}, "crop"),
    ],
)
def test_recipe_refuses(settings: dict[str, Any], place: str) -> None:
    with pytest.raises(ValidationError) as caught:
        recipe(**settings)
    assert place in describe(caught.value)


def test_recipe_cannot_be_changed() -> None:
    with pytest.raises(ValidationError) as caught:
        recipe().window = (8, 8)
    assert caught.value.errors()[0]["type"] == "frozen_instance"
