"""Names from outside are drawn as they are, and obey nothing."""

from __future__ import annotations

import pytest

from leuda_train.pages.charts import curves, lines, points

NAMES = (r"$\frac{$", "a $x$ b", "$", r"\$ $", "<script>alert(1)</script>", "_mine")


@pytest.mark.parametrize("name", NAMES)
def test_no_name_is_a_formula_or_an_element(name: str) -> None:
    made = [
        points(name, {name: [0.5, 0.6]}, x="Dice", limits=(0, 1)),
        lines(name, {name: {"1": [0.5], "2": [0.6]}}, x="labels", y="Dice"),
        curves(name, {name: ([0, 1], [0.1, 0.2])}, x="step", y="loss"),
    ]
    for chart in made:
        assert chart is not None
        assert name.replace("<", "&lt;").replace(">", "&gt;") in chart
        assert "<script" not in chart
