"""What this process holds, and sizes as people write them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from leuda_deploy.errors import InputError
from leuda_deploy.machine.memory import parse_bytes


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


# in a process of its own: one that has trained keeps what it freed, and a block may come from there
MEASURES = """
import numpy as np
from leuda_deploy.machine.memory import peak_bytes, resident_bytes
before = resident_bytes()
block = np.ones(50 << 20, np.uint8)
print(before, resident_bytes(), peak_bytes())
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_memory_is_measured() -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEASURES], capture_output=True, text=True, check=True, timeout=120
    )
    before, after, peak = map(int, done.stdout.split())
    assert after - before > 0.9 * (50 << 20)  # pages of other work may come or go beside it
    assert peak >= before + 0.9 * (50 << 20)
