"""Damaged and hostile inputs end in a result or in one LeudaError.

About 2,000 inputs in a test run, the same each time and however long they take; `make fuzz` tries
200,000, with limits of time and memory (`nightly.py`). Each finding stays in `corpus/TARGET/` as a
test.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from fuzz.inputs import changed, changes
from fuzz.targets import TARGETS
from hypothesis import HealthCheck, given, settings

from leuda_deploy.errors import LeudaError

CORPUS = Path(__file__).parent / "corpus"
IN_A_TEST_RUN = 2000
EACH = IN_A_TEST_RUN // len(TARGETS)


def end(target: str, content: bytes, folder: Path) -> None:
    """Feed a target; returns if that ends as it must."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # what nibabel and pydicom say of a damaged header
        try:
            TARGETS[target].feed(content, folder)
        except LeudaError as error:
            line = str(error)
            assert line
            assert line.isprintable(), ascii(line)


@pytest.mark.parametrize("target", TARGETS)
def test_a_damaged_input_ends_in_a_result_or_one_line(
    target: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, sound = tmp_path_factory.mktemp(target), TARGETS[target].sound()

    @settings(
        max_examples=EACH,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )
    @given(changes().map(lambda todo: changed(sound, todo)))
    def fuzz(content: bytes) -> None:
        end(target, content, folder)

    TARGETS[target].feed(sound, folder)  # what is not damaged is read
    fuzz()


@pytest.mark.parametrize(
    "case", sorted(CORPUS.glob("*/*")), ids=lambda p: f"{p.parent.name}-{p.name}"
)
def test_what_was_found_stays_mended(case: Path, tmp_path: Path) -> None:
    end(case.parent.name, case.read_bytes(), tmp_path)
