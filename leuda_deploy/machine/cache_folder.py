"""the user -> the folder in which results of trials are kept, which nobody else can write into."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

from leuda_deploy.errors import InputError


def cache_folder() -> Path:
    """$LEUDA_CACHE, or `leuda` in the user's cache folder."""
    if given := os.environ.get("LEUDA_CACHE"):
        return Path(given)
    return platformdirs.user_cache_path("leuda", appauthor=False)


def own_cache() -> Path:
    """The cache folder, made where it is not there; nobody else can write into it.

    Whoever can write a trial chooses the engine of whoever reads it.

    Raises:
        OSError: It cannot be made.
        InputError: It belongs to another user.
    """
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if hasattr(os, "getuid"):
        status = folder.stat()
        if status.st_uid != os.getuid():
            raise InputError(f"{folder} belongs to another user")
        if status.st_mode & 0o077:
            folder.chmod(0o700)
    return folder
