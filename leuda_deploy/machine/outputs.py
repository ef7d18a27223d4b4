"""files that are going to be written -> a plan, or a refusal before any work.

The one place that decides what may be written. A file is replaced if leuda wrote it and nobody has
changed it since; what else stands there stays, unless `force` is given. An input is never replaced.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from leuda_deploy.errors import InputError, one_line
from leuda_deploy.machine.memory import in_megabytes

MOST_NAMED = 3  # of many files, in one line
MAX_NAME_BYTES = 255  # where the file system does not say
LEAST_FREE_BYTES = 1 << 20  # a file system with less is full


def written_by_nobody(path: Path) -> bool:
    """The `is_ours` of an output that leuda cannot tell from others."""
    return False


@dataclass(frozen=True, kw_only=True)
class Output:
    """One file that is going to be written.

    path     where
    what     it is, in messages: "labels"
    option   that chooses another place, in messages: "--output"
    endings  of which its name must have one; none: any name will do
    not_endings  that its name must not have: they stand for other things
    is_ours  whether what stands at the path was written by leuda, and not changed since
    room     bytes it will take at least
    """

    path: Path
    what: str
    option: str = "--output"
    endings: tuple[str, ...] = ()
    not_endings: tuple[str, ...] = ()
    is_ours: Callable[[Path], bool] = written_by_nobody
    room: int = 0


def plan_outputs(
    outputs: Sequence[Output], *, inputs: Iterable[Path] = (), force: bool = False
) -> None:
    """Check all outputs of a run before its work begins. Nothing is made or changed.

    Args:
        outputs: Whatever will be written.
        inputs: Files that are read, and folders all of whose files are.
        force: Replace files that leuda did not write. Inputs never are.

    Raises:
        InputError: An output is an input, or another output, too; or would replace a file that
            leuda did not write; or has a name, a place or an ending that cannot be.
    """
    files, folders = _identities(inputs)
    taken: dict[Path, Output] = {}
    foreign: list[Output] = []
    for output in outputs:
        _check_name(output)
        place = _place(output.path)
        if other := taken.get(place):
            raise InputError(
                f"{output.what} and {other.what} would both be written to {output.path}; "
                f"choose another {output.option}"
            )
        taken[place] = output
        if not os.path.lexists(output.path):
            continue
        if output.path.is_dir():
            raise InputError(
                f"{output.path} is a folder; name a file for the {output.what} ({output.option})"
            )
        if _identity(output.path) in files:
            raise InputError(
                f"the {output.what} would replace {output.path}, which is read; "
                f"choose another {output.option}"
            )
        # a pipe or a device is nobody's, and whoever opens it may wait for ever
        if output.path.is_file() and output.is_ours(output.path):
            continue
        if place.parent in folders:
            raise InputError(
                f"the {output.what} would replace {output.path} in a folder that is read; "
                f"choose another {output.option}"
            )
        foreign.append(output)
    if foreign and not force:
        names = ", ".join(str(output.path) for output in foreign[:MOST_NAMED])
        more = f" and {len(foreign) - MOST_NAMED} more" if len(foreign) > MOST_NAMED else ""
        options = " or ".join(dict.fromkeys(output.option for output in foreign))
        raise InputError(
            f"{names}{more} would be replaced, and leuda did not write what stands there (or it "
            f"was changed since); choose another {options}, or replace it with --force"
        )
    _check_folders(outputs)


def plan_folder(folder: Path, names: Iterable[str], *, what: str, option: str = "--out") -> None:
    """Check a folder that a command is going to fill, where it has not begun to.

    Args:
        folder: Which may be there, with other things in it.
        names: Of the files and folders that will be written in it.
        what: It is, in messages: "run".
        option: That chooses another place, in messages.

    Raises:
        InputError: One of the names is taken, or the folder cannot be made or written.
    """
    for name in sorted(names):
        if os.path.lexists(folder / name):
            raise InputError(
                f"{folder / name} stands where the {what} would be written, and leuda did not "
                f"write it; choose another {option}, or move it away"
            )
    _check_folders([Output(path=folder / "any", what=what, option=option)])


def _place(path: Path) -> Path:
    """The path with its folder resolved, but not the file: a link is replaced, not followed."""
    try:
        return path.parent.resolve() / path.name
    except (OSError, RuntimeError) as error:  # links in a circle; Python 3.13 says OSError
        raise InputError(f"{path} cannot be a place: {one_line(error)}") from error


def _identity(path: Path) -> object:
    """What two names of one file have in common."""
    try:
        found = path.stat()
    except OSError:
        return _place(path)
    return found.st_dev, found.st_ino


def _identities(inputs: Iterable[Path]) -> tuple[set[object], set[Path]]:
    """Of the files that are read, and the folders of which all is read."""
    files: set[object] = set()
    folders: set[Path] = set()
    for path in inputs:
        if path.is_dir():
            folders.add(path.resolve())
        else:
            files |= {_identity(path), _place(path)}
    return files, folders


def _check_name(output: Output) -> None:
    name = output.path.name
    if name in ("", "..") or "\0" in str(output.path):
        raise InputError(f"{str(output.path)!r} names no file for the {output.what}")
    if output.endings and not name.lower().endswith(output.endings):
        raise InputError(
            f"{output.path} does not end in {' or '.join(output.endings)}, as {output.what} do; "
            f"choose another {output.option}"
        )
    if name.lower().endswith(output.not_endings or ("\0",)):
        raise InputError(
            f"{output.path} ends as another kind of file does; the {output.what} may end in .dcm "
            f"({output.option})"
        )
    if len(os.fsencode(name)) > MAX_NAME_BYTES:
        raise InputError(
            f"the name of the {output.what} has {len(os.fsencode(name))} bytes, at most "
            f"{MAX_NAME_BYTES} can be written: {name[:40]}...; choose another {output.option}"
        )


def _check_folders(outputs: Sequence[Output]) -> None:
    """Prove that each output's folder can be made and written, and has room."""
    room: dict[Path, int] = {}
    first: dict[Path, Output] = {}
    for output in outputs:
        folder = _nearest_folder(output)
        room[folder] = room.get(folder, 0) + output.room
        first.setdefault(folder, output)
    for folder, output in first.items():
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
            free = _free_bytes(folder)
        except OSError as error:
            raise _cannot_write(output, error.strerror or str(error)) from error
        needed = max(room[folder], LEAST_FREE_BYTES)
        if free is not None and free < needed:
            raise _cannot_write(
                output, f"{in_megabytes(free)} are free, {in_megabytes(needed)} are needed"
            )


def _nearest_folder(output: Output) -> Path:
    """The folder of an output, or the one in which it would be made."""
    folder = output.path.parent
    while not folder.exists():
        if os.path.lexists(folder):
            raise _cannot_write(output, f"{folder} is a link to nothing")
        folder = folder.parent
    if not folder.is_dir():
        raise _cannot_write(output, f"{folder} is no folder")
    return folder.resolve()


def _free_bytes(folder: Path) -> int | None:
    """Bytes that this user may still write there; None if the OS does not report it."""
    if not hasattr(os, "statvfs"):
        return None
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def _cannot_write(output: Output, why: str) -> InputError:
    return InputError(f"cannot write {output.path}: {why}; choose another {output.option}")
