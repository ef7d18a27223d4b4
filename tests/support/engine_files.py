"""An export folder -> the same with a stand-in for a TensorRT engine beside it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

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
