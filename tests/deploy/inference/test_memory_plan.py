"""The plan takes the largest batch that the budget allows, or says what would do."""

from __future__ import annotations

import numpy as np
import pytest
from support.makers import MakeVolume

from leuda_deploy.errors import InputError
from leuda_deploy.inference.memory_plan import Workload, make_plan
from leuda_deploy.scans.recipe import Recipe
from leuda_deploy.scans.stack import Stack

AFFINE = np.diag([0.8, 1.3, 5.0, 1.0])


def test_plan_takes_the_largest_batch_that_fits(make_volume: MakeVolume) -> None:
    volume = make_volume(np.broadcast_to(np.int16(0), (512, 512, 300)), AFFINE)
    recipe = Recipe(slice_axis="superior", spacing_mm=(1.5, 1.5), window=(256, 256))
    growth = {1: 10**8, 2: 2 * 10**8, 4: 4 * 10**8, 8: 8 * 10**8}

    def plan(limit: int | None) -> tuple[int, int]:
        workload = Workload(classes=5, loaded_bytes=10**8, growth_bytes=growth)
        found = make_plan(Stack(volume, recipe), workload, batch=8, max_bytes=limit)
        assert limit is None or found.peak_bytes <= limit
        assert found.parts["scan"] == volume.raw.size * 2
        assert found.parts["labels"] == volume.raw.size
        return found.batch, found.slab

    assert plan(None)[0] == 8
    batches = [plan(limit * 10**6)[0] for limit in (2000, 1000, 800, 700)]
    assert batches == sorted(batches, reverse=True)
    assert batches[-1] < 8
    with pytest.raises(InputError, match="least that would do is --max-memory"):
        plan(3 * 10**8)
