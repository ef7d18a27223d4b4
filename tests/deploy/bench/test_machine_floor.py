"""What memory and gzip alone would take: more for more bytes, and never nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.makers import MakeVolume

from leuda_deploy.bench import machine_floor
from leuda_deploy.scans.nifti import write_scan
from leuda_deploy.scans.recipe import Recipe
from leuda_deploy.scans.stack import Stack


def test_the_floor_of_a_phase_is_its_bytes_through_memory(
    tmp_path: Path, make_volume: MakeVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine_floor, "memory_bandwidth", lambda: 1e6)  # bytes a second
    raw = np.arange(20 * 16 * 4, dtype=np.int16).reshape(20, 16, 4)
    write_scan(tmp_path / "s.nii.gz", raw, np.eye(4))
    recipe = Recipe(slice_axis="array-2", spacing_mm=(2.0, 2.0), window=(16, 16))
    stack = Stack(make_volume(raw), recipe)
    labels = np.zeros(raw.shape, np.uint8)
    found = machine_floor.least_seconds(tmp_path / "s.nii.gz", stack, labels, classes=3)
    grid = 4 * 10 * 8 * 4  # slices of 10 x 8 float32
    assert found["normalise"] == pytest.approx(raw.nbytes / 1e6)
    assert found["resample"] == pytest.approx((raw.nbytes + grid) / 1e6)
    assert found["labels"] == pytest.approx((3 * grid + labels.nbytes) / 1e6)
    assert found["read"] > 0
    assert found["write"] > 0


def test_this_machine_copies_memory() -> None:
    assert machine_floor.memory_bandwidth() > 1e7
