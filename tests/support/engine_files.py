"""An export folder -> a stand-in for a TensorRT engine beside it; how often its files are read."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import onnx
import pytest

from leuda_deploy.machine.files import file_sha256
from leuda_deploy.machine.gpu import Gpu
from leuda_deploy.model.export_folder import MODEL_FILE, write_manifest
from leuda_deploy.model.passport import Passport

HERE, VERSION = Gpu(name="NVIDIA RTX 4090", capability="8.9"), "10.13.0"


def with_engine(folder: Path, *, code: bytes = b"code", **changes: Any) -> Path:
    """An export folder with a stand-in for an engine, of which only the passport is read."""
    name = "model.here.engine"
    (folder / name).write_bytes(code)
    passport: dict[str, Any] = {
        "onnx_sha256": file_sha256(folder / MODEL_FILE),
        "family": "tensorrt",
        "version": VERSION,
        "target": "this machine",
        "capability": HERE.capability,
        "gpu": HERE.name,
        "precision": "fp32",
        "layers": {},
        "layer_kinds": {},
        "batch": (1, 4, 8),
        "window": (16, 16),
        "workspace_mb": 1,
        "build_seconds": 1.0,
        "engine_mb": 30.0,
        "memory_mb": 70.0,
        "proven": True,
        "sha256": hashlib.sha256(code).hexdigest(),
    }
    write_manifest(folder, {name: Passport.model_validate(passport | changes)})
    return folder / MODEL_FILE


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
