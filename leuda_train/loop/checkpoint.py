"""training state <-> disk: tensors and primitives only, written whole or not at all."""

from __future__ import annotations

import logging
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from leuda_deploy.errors import TrainingError, reading
from leuda_deploy.machine.files import atomic_path

LAST, PREVIOUS = "last.pt", "previous.pt"
log = logging.getLogger("leuda")


def save(path: Path, state: dict[str, Any]) -> None:
    """Write one file atomically: a reader sees the old one or the new one, never half."""
    with _whole(path) as temporary:
        torch.save(state, temporary)


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """atomic_path, whose failure to write is one TrainingError; what was there before stays."""
    try:
        with atomic_path(path) as temporary:
            yield temporary
    except (OSError, RuntimeError) as error:  # on a full disk torch's own writer raises the latter
        left = shutil.disk_usage(path.parent).free
        raise TrainingError(
            f"{path} could not be written with {left / 2**20:.0f} MiB left on its disk; what was "
            "saved before is kept. Make room and start again: the run goes on from there"
        ) from error


def load(path: Path) -> dict[str, Any]:
    """Read one file onto the CPU. Runs no code from it. Raises TrainingError if it is damaged."""
    if not path.is_file():
        raise TrainingError(f"no such file: {path}")
    with reading(lambda _: TrainingError(f"{path} cannot be read (truncated or damaged?)")):
        with zipfile.ZipFile(path) as archive:  # torch itself does not look at the checksums
            # torch stores without compression: what is small here is small in memory
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise zipfile.BadZipFile("compressed entries")
            if archive.testzip() is not None:
                raise zipfile.BadZipFile("a checksum is wrong")
        state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict):
        raise TrainingError(f"{path} holds a {type(state).__name__}, not a training state")
    renamed: dict[str, Any] = with_new_names(state)
    return renamed


def with_new_names(state: Any) -> Any:
    """The state with every key as it is called today: older files say critic for discriminator."""
    if isinstance(state, dict):
        return {
            key.replace("critic", "discriminator") if isinstance(key, str) else key: (
                with_new_names(value)
            )
            for key, value in state.items()
        }
    return [with_new_names(value) for value in state] if isinstance(state, list) else state


def save_latest(folder: Path, state: dict[str, Any]) -> None:
    """Write folder/last.pt; what was last becomes previous.pt."""
    last = folder / LAST
    with _whole(folder / "new.pt") as temporary:
        torch.save(state, temporary)
    if last.exists():
        last.replace(folder / PREVIOUS)
    (folder / "new.pt").replace(last)


def first_not_finite(state: Any, name: str = "") -> str | None:
    """The name of the first tensor in a state that holds an infinity or a NaN, or None."""
    if isinstance(state, torch.Tensor):
        return None if bool(torch.isfinite(state).all()) else name
    if isinstance(state, dict | list | tuple):
        for key, value in state.items() if isinstance(state, dict) else enumerate(state):
            found = first_not_finite(value, f"{name}.{key}".removeprefix("."))
            if found is not None:
                return found
    return None


def load_latest(folder: Path, *, warn: bool = True) -> dict[str, Any] | None:
    """The newest state that can be read, or None if there is none. Warns of each that cannot."""
    paths = [path for path in (folder / LAST, folder / PREVIOUS) if path.exists()]
    for path in paths:
        try:
            return load(path)
        except TrainingError as error:
            what_now = "starting anew" if path is paths[-1] else "going back to the one before"
            if warn:
                log.warning("%s; %s", error, what_now)
    return None
