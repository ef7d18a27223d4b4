"""this process -> the cores it may use, and how many threads an engine gets on them.

`os.cpu_count()` counts the cores of the host. A process may be held to some of them (affinity), and
its control group to a share of their time (quota): threads beyond that wait for each other.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from leuda_deploy.errors import InputError

ROOT = Path("/")
MOST_THREADS = 1024  # of one engine; with very many it never begins


def threads_for(asked: int | None) -> int:
    """The threads asked for, else one for each whole core that this process may use.

    Raises InputError for more than any engine takes.
    """
    if asked is not None and asked > MOST_THREADS:
        raise InputError(
            f"--threads {asked} is more than {MOST_THREADS}; without it there are as many as "
            f"this process may use cores, {max(1, int(usable_cores()))}"
        )
    return asked or max(1, int(usable_cores()))


def usable_cores(root: Path = ROOT) -> float:
    """Cores that this process may use: those of its affinity, within its control groups' quotas.

    root  where /proc and /sys are, for tests
    """
    affinity = getattr(os, "sched_getaffinity", None)  # Linux alone
    cores = float(len(affinity(0)) if affinity else os.cpu_count() or 1)
    return round(min([cores, *_quotas(root)]), 2)


def _quotas(root: Path) -> Iterator[float]:
    """Cores' worth of time that each control group around this process allows, if it limits it."""
    own = _groups(root)
    for mount, shown, kind in _mounts(root):
        if kind not in own:
            continue
        group = PurePosixPath(own[kind])
        # in a container the mount may show a part of the tree alone, or its own group as the root
        inside = group.relative_to(shown) if group.is_relative_to(shown) else PurePosixPath()
        for folder in (inside, *inside.parents):
            yield from _quota(mount / folder)


def _quota(folder: Path) -> list[float]:
    """The limit that stands in one group's folder, of either version."""
    words = _read(folder / "cpu.max").split()  # "max 100000", or "150000 100000"
    if not words:
        words = [_read(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
    if len(words) != 2 or not all(word.isdigit() and int(word) for word in words):
        return []  # "max", "-1", or no limit here
    return [int(words[0]) / int(words[1])]


def _groups(root: Path) -> dict[str, str]:
    """Kind of control groups ("2", or "1" for those of cpu time in version 1) -> this one's own."""
    own = {}
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            own["2"] = path
        elif "cpu" in controllers.split(","):
            own["1"] = path
    return own


def _mounts(root: Path) -> Iterator[tuple[Path, str, str]]:
    """Where control groups are mounted, which group is shown there as the root, and their kind."""
    for line in _read(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields, described = before.split(), after.split()
        if len(fields) < 5 or len(described) < 3:
            continue
        kind = {"cgroup2": "2", "cgroup": "1"}.get(described[0])
        if kind == "2" or (kind == "1" and "cpu" in described[2].split(",")):
            yield root / fields[4].lstrip("/"), fields[3], kind


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
