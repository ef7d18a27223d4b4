"""this machine -> its NVIDIA GPU, asked of the driver alone.

Looked at before any TensorRT runtime is touched: without a driver those return None or crash.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

DRIVER_LIBRARIES = ("libcuda.so.1", "nvcuda.dll")
CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76  # CUdevice_attribute, cuda.h


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """Name and compute capability ("8.6") of a GPU."""

    name: str
    capability: str


def find_gpu(index: int = 0) -> Gpu | None:
    """The GPU with this number, or None where there is no driver or no such GPU."""
    driver = _driver()
    device = ctypes.c_int()
    if driver is None or driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), index):
        return None
    name = ctypes.create_string_buffer(256)
    numbers = ctypes.c_int(), ctypes.c_int()
    attributes = CAPABILITY_MAJOR, CAPABILITY_MINOR
    failed = driver.cuDeviceGetName(name, len(name), device) or any(
        driver.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
        for number, attribute in zip(numbers, attributes, strict=True)
    )
    if failed:
        return None
    return Gpu(name=name.value.decode(), capability=f"{numbers[0].value}.{numbers[1].value}")


def driver_version() -> str | None:
    """The CUDA version of the driver, as "12.8", or None where there is no driver."""
    driver, number = _driver(), ctypes.c_int()
    if driver is None or driver.cuDriverGetVersion(ctypes.byref(number)):
        return None
    return f"{number.value // 1000}.{number.value % 1000 // 10}"


def _driver() -> ctypes.CDLL | None:
    for library in DRIVER_LIBRARIES:
        try:
            return ctypes.CDLL(library)
        except OSError:
            continue
    return None
