"""globs and names of files -> the scans they match, and the subject that each belongs to."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from leuda_deploy.errors import InputError, one_line, printable
from leuda_deploy.machine.isolated import IsolatedProcessError, run_isolated

EXTENSIONS = (".nii.gz", ".nii", ".hdr", ".img", ".mgz", ".mgh")
MOST_SECONDS = 60.0  # for a pattern of a cohort file to be gone through
SUFFIXES = re.compile(r"[_-](image|images|img|label|labels|manual|seg|mask|gt)$", re.IGNORECASE)


def scans_of(pattern: str, key: str, root: Path) -> list[Path]:
    """The scans that a pattern matches, in order of name. Raises InputError if there are none."""
    base, relative = (Path("/"), pattern[1:]) if pattern.startswith("/") else (root, pattern)
    try:
        # "**" goes through all folders there are, which may be those of the whole machine
        found = (
            run_isolated(MOST_SECONDS, scans_of_glob, base, relative)
            if "**" in relative
            else scans_of_glob(base, relative)
        )
    # pathlib's: "**" within a name, nothing at all; a pattern that begins with two slashes
    except (ValueError, NotImplementedError, RecursionError, OSError) as error:
        raise InputError(f"{key} = {pattern!r} is not a glob: {one_line(error)}") from error
    except IsolatedProcessError as error:
        raise InputError(
            f"{key} = {pattern!r} cannot be used: going through its folders {error}; name fewer"
        ) from error
    if not found:
        raise InputError(f"{key} = {pattern!r} matches no scan under {root}")
    return found


def scans_of_glob(base: Path, pattern: str) -> list[Path]:
    """The scans below a folder that a pattern matches, in order of name."""
    return sorted(path for path in base.glob(pattern) if is_scan_name(path.name))


def is_scan_name(name: str) -> bool:
    """Hidden files are no scans: macOS lays a ._NAME beside each NAME on foreign disks."""
    return name.endswith(EXTENSIONS) and not name.startswith(".")


def subjects_of(names: Sequence[str], pattern: str | None = None) -> list[str]:
    """The subjects that files of these names belong to.

    Raises InputError if the pattern does not find one, or looks for longer than MOST_SECONDS.
    """
    if pattern is None:
        return [_bare_name(name) for name in names]
    try:
        # of some patterns, as (a+)+$, a search takes as good as for ever
        found = run_isolated(MOST_SECONDS, find_groups, pattern, names)
    except IsolatedProcessError as error:
        raise InputError(
            f"subject = {pattern!r} cannot be used: looking for subjects {error}"
        ) from error
    for name, subject in zip(names, found, strict=True):
        if subject is None:
            raise InputError(f"subject = {pattern!r} finds no subject in {printable(name)}")
    return [subject for subject in found if subject is not None]


def find_groups(pattern: str, names: Sequence[str]) -> list[str | None]:
    """What the group of a regular expression finds in each name; None: nothing."""
    searcher = re.compile(pattern)
    return [match.group(1) if (match := searcher.search(name)) else None for name in names]


def _bare_name(name: str) -> str:
    for extension in EXTENSIONS:
        name = name.removesuffix(extension)
    return SUFFIXES.sub("", name)
