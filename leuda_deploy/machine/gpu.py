"""this machine -> its NVIDIA GPU, asked of the driver's own library (NVML).

Looked at before any TensorRT runtime is touched: without a driver those return None or crash.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pynvml


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """Name and compute capability ("8.6") of a GPU."""

    name: str
    capability: str


def find_gpu() -> Gpu | None:
    """The GPU that CUDA calls device 0; None if there is no driver or no such GPU.

    NVML numbers every GPU of the machine, CUDA only those that CUDA_VISIBLE_DEVICES names, so that
    variable is read here, too. On a machine with unlike GPUs set CUDA_DEVICE_ORDER=PCI_BUS_ID, as
    NVML does: CUDA else begins with the fastest.
    """
    with _nvml() as there:
        if not there:
            return None
        try:
            if (device := _first_visible()) is None:
                return None
            major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(device)
            return Gpu(name=pynvml.nvmlDeviceGetName(device), capability=f"{major}.{minor}")
        except pynvml.NVMLError:
            return None


def driver_version() -> str | None:
    """The CUDA version of the driver, as "12.8"; None if there is no driver."""
    with _nvml() as there:
        if not there:
            return None
        number = int(pynvml.nvmlSystemGetCudaDriverVersion_v2())
    return f"{number // 1000}.{number % 1000 // 10}"


def _first_visible() -> Any:
    """NVML's handle of CUDA's device 0, or None. Raises NVMLError if there is no such number."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return pynvml.nvmlDeviceGetHandleByIndex(0)
    first = visible.split(",")[0].strip()
    if first.isdecimal():
        return pynvml.nvmlDeviceGetHandleByIndex(int(first))
    if first.startswith("MIG-"):
        return pynvml.nvmlDeviceGetHandleByUUID(first)
    handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
    uuids = [(str(pynvml.nvmlDeviceGetUUID(handle)), handle) for handle in handles]
    # "" and "-1" hide every GPU
    return next((handle for uuid, handle in uuids if first and uuid.startswith(first)), None)


@contextmanager
def _nvml() -> Iterator[bool]:
    """Whether NVML is there; it is let go at the end."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield False
        return
    try:
        yield True
    finally:
        pynvml.nvmlShutdown()
