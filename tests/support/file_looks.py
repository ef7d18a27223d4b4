"""while a command runs -> how often a model file was parsed, and its bytes hashed."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import onnx
import pytest


class FileLooks:
    """Counts from its making on. What an engine does with the bytes it is given is not counted."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.parsed = 0
        self._hashed: list[bytes] = []
        sha256, file_digest = hashlib.sha256, hashlib.file_digest

        def hash_bytes(content: Any = b"", **options: Any) -> Any:
            self._hashed.append(bytes(content))
            return sha256(content, **options)

        def hash_file(file: Any, digest: Any, /, **options: Any) -> Any:
            self._hashed.append(Path(file.name).read_bytes())
            return file_digest(file, digest, **options)

        patch.setattr(hashlib, "sha256", hash_bytes)
        patch.setattr(hashlib, "file_digest", hash_file)
        for name in ("load", "load_model", "load_from_string", "load_model_from_string"):
            patch.setattr(onnx, name, self._counted(getattr(onnx, name)))

    def _counted(self, parse: Any) -> Any:
        def counting(*arguments: Any, **options: Any) -> Any:
            self.parsed += 1
            return parse(*arguments, **options)

        return counting

    def hashed(self, path: Path) -> int:
        """How often the bytes that the file now has were hashed."""
        return self._hashed.count(path.read_bytes())
