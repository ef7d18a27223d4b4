"""Threads are counted by what this process may use, whoever limits it."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from leuda_deploy.engines.threads import (
    MOST_THREADS,
    ROOT,
    _mounts,
    threads_for,
    usable_cores,
)
from leuda_deploy.errors import InputError

COUNT = "from leuda_deploy.engines.threads import *; print(usable_cores(), threads_for(None))"
HERE = usable_cores()


def machine(root: Path, cgroup: str, mounts: str, **limits: str) -> Path:
    """A root with these files; the names of limits have __ for / and no ending of digits."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup)
    (root / "proc/self/mountinfo").write_text(mounts)
    for name, text in limits.items():
        path = (
            root
            / "sys"
            / name.replace("__", "/").replace("cpu_max", "cpu.max").replace("cpu_cfs", "cpu.cfs")
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


V2 = "41 31 0:38 / /sys/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw\n"
V1 = "32 31 0:29 / /sys/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"


def test_a_quota_of_version_2_counts_wherever_above_it_stands(tmp_path: Path) -> None:
    found = machine(
        tmp_path,
        "0::/outer/inner\n",
        V2,
        cgroup__outer__inner__cpu_max="max 100000\n",
        cgroup__outer__cpu_max="50000 100000\n",
    )
    assert usable_cores(found) == 0.5


def test_a_quota_of_version_1_counts(tmp_path: Path) -> None:
    found = machine(
        tmp_path,
        "4:memory:/x\n2:cpu,cpuacct:/job\n1:name=systemd:/\n0::/\n",
        V1 + V2,
        cpu__job__cpu_cfs_quota_us="75000\n",
        cpu__job__cpu_cfs_period_us="100000\n",
    )
    assert usable_cores(found) == 0.75


def test_a_container_that_sees_its_own_group_as_the_root(tmp_path: Path) -> None:
    mounts = V1.replace(" / ", " /docker/abc ", 1)
    found = machine(
        tmp_path,
        "2:cpu,cpuacct:/docker/abc\n",
        mounts,
        cpu__cpu_cfs_quota_us="25000\n",
        cpu__cpu_cfs_period_us="50000\n",
    )
    assert usable_cores(found) == 0.5


@pytest.mark.parametrize("text", ["max 100000\n", "", "0 0\n", "a b\n", "200000 0\n"])
def test_what_is_no_quota_limits_nothing(tmp_path: Path, text: str) -> None:
    assert usable_cores(machine(tmp_path, "0::/\n", V2, cgroup__cpu_max=text)) == HERE
    assert usable_cores(tmp_path / "nothing") == HERE


def test_threads_are_whole_and_at_least_one() -> None:
    assert threads_for(7) == 7
    assert threads_for(None) == max(1, int(HERE))


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_affinity_counts() -> None:
    core = str(min(os.sched_getaffinity(0)))
    program = f"import os; os.sched_setaffinity(0, {{{core}}}); {COUNT}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout.split() == [b"1.0" if HERE >= 1 else str(HERE).encode(), b"1"]


@pytest.fixture
def half_a_core() -> Iterator[Path]:
    """A real control group of half a core, where one can be made."""
    for mount, _, kind in _mounts(ROOT):
        group = mount / f"leuda-test-{uuid.uuid4().hex}"
        with suppress(OSError):
            group.mkdir()
            try:
                if kind == "1":
                    (group / "cpu.cfs_period_us").write_text("100000")
                    (group / "cpu.cfs_quota_us").write_text("50000")
                else:
                    (group / "cpu.max").write_text("50000 100000")
                yield group
                return
            finally:
                group.rmdir()
    pytest.skip("no control group can be made here")


def test_a_real_control_group_counts(half_a_core: Path) -> None:
    def join() -> None:
        (half_a_core / "cgroup.procs").write_text(str(os.getpid()))

    done = subprocess.run(
        [sys.executable, "-c", COUNT], capture_output=True, check=True, preexec_fn=join
    )
    assert done.stdout.split() == [b"0.5", b"1"]


def test_no_engine_is_asked_for_more_threads_than_it_could_begin_with():
    assert threads_for(MOST_THREADS) == MOST_THREADS
    with pytest.raises(InputError, match="--threads 1025 is more than 1024"):
        threads_for(MOST_THREADS + 1)
