"""ONNX Runtime and OpenVINO -> their modules, imported so that neither calls home.

Both look up a host of their makers when they are imported or used: ONNX Runtime's official builds
since 1.31 unless ORT_DISABLE_TELEMETRY is set, OpenVINO's converter through `openvino_telemetry`,
which also keeps a client id in the user's home. What is done here is done before the first import.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

ORT_SWITCH = "ORT_DISABLE_TELEMETRY"
OPENVINO_TELEMETRY = "openvino_telemetry"


def import_onnx_runtime() -> Any:
    """The module `onnxruntime`, its telemetry off: also in the processes that this one starts."""
    os.environ[ORT_SWITCH] = "1"
    return importlib.import_module("onnxruntime")


def import_openvino() -> Any:
    """The module `openvino` without its telemetry; it has a stub to take instead."""
    if "openvino" in sys.modules:
        return sys.modules["openvino"]
    before = sys.modules.get(OPENVINO_TELEMETRY)
    sys.modules[OPENVINO_TELEMETRY] = None  # type: ignore[assignment]  # so that importing it fails
    try:
        return importlib.import_module("openvino")
    finally:
        if before is None:
            del sys.modules[OPENVINO_TELEMETRY]
        else:
            sys.modules[OPENVINO_TELEMETRY] = before
