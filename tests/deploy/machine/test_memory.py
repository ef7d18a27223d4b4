"""What this process holds, and sizes as people write them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from leuda_deploy.errors import InputError
from leuda_deploy.machine.memory import parse_bytes, peak_bytes, resident_bytes


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("1.5G", 1.5e9),
        ("800M", 8e8),
        (" 800 mb ", 8e8),
        ("2GiB", 2 << 30),
        ("2Gi", 2 << 30),
        ("64k", 64e3),
        ("1T", 1e12),
        ("9", 9),
    ],
)
def test_memory_sizes_read_as_people_write_them(text: str, count: float) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize(
    "text", ["", "G", "-1G", "0", "0.0G", "1.5.5G", "1.5G or so", "8Gbit", "2i", "1e9", "much"]
)
def test_other_memory_sizes_are_refused(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_bytes(text)
    assert repr(text) in str(caught.value)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_memory_is_measured() -> None:
    before = resident_bytes()
    block = np.ones(50 << 20, np.uint8)
    after, peak = resident_bytes(), peak_bytes()
    assert before is not None
    assert after is not None
    assert peak is not None
    assert after - before > 0.9 * block.nbytes  # pages of other work may come or go beside it
    assert peak >= before + 0.9 * block.nbytes
