"""`--max-memory` holds, by the peak that the system saw of the process, and the prediction is near.

One scan of each kind that is read in another way. `make promises` does all of `memory.py`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from faults.memory import COMBINATIONS, measure

IN_A_TEST_RUN = (
    "float64, compressed",
    "int32 with an outlier",
    "DICOM with SEG",
    "a frame of 4D, compressed",
    "3D windows, resampled",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_A_TEST_RUN)
def test_the_least_budget_is_kept(name: str, tmp_path: Path) -> None:
    assert len(COMBINATIONS) >= 30
    found = measure(name, tmp_path)
    assert found["findings"] == []
    assert found["peak_mb"] <= found["least_mb"]
