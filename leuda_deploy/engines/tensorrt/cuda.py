"""the little of the CUDA runtime that running an engine needs: memory, streams, events, graphs.

Through `cuda.bindings` (cuda-python 12.8 to 13), whose calls answer (status, values). What an
object holds is given back when the object goes.
"""

from __future__ import annotations

import ctypes
import importlib
import weakref
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leuda_deploy.errors import LeudaError

Float32 = NDArray[np.float32]


def installed() -> bool:
    """Whether `cuda.bindings` is; other packages own parts of the namespace `cuda`, too."""
    return find_spec("cuda") is not None and find_spec("cuda.bindings") is not None


@cache
def runtime() -> Any:
    """The module of the CUDA runtime."""
    return importlib.import_module("cuda.bindings.runtime")


def call(name: str, *arguments: Any, about: str = "") -> Any:
    """The first value that a call of the CUDA runtime answers, None where it is a status alone.

    about  what the call is for, for the one line of a LeudaError
    """
    cuda = runtime()
    status, *values = getattr(cuda, name)(*arguments)
    if status != cuda.cudaError_t.cudaSuccess:
        _, meaning = cuda.cudaGetErrorString(status)
        raise LeudaError(f"CUDA: {name}{about} failed with {status.name} ({meaning.decode()})")
    return values[0] if values else None


def _give_back(owner: object, release: str, handle: Any) -> None:
    """Call `release` when the owner goes; there is no remedy if that fails."""
    weakref.finalize(owner, getattr(runtime(), release), handle)


class DeviceMemory:
    """Bytes on the GPU, at `address`."""

    def __init__(self, size: int) -> None:
        # the least that every allocator answers with an address
        self.address = int(call("cudaMalloc", max(size, 1), about=f" of {size / 1e6:.1f} MB"))
        _give_back(self, "cudaFree", self.address)


def pinned(count: int) -> Float32:
    """Host memory (count,) float32 that the GPU copies to and from without the processor.

    It is freed with the last array that looks at it.
    """
    about = f" of {4 * count / 1e6:.1f} MB of pinned memory"
    address = int(call("cudaMallocHost", 4 * count, about=about))
    block = (ctypes.c_float * count).from_address(address)
    _give_back(block, "cudaFreeHost", address)
    return np.ctypeslib.as_array(block)


class Event:
    """A mark in a stream that others wait for; never recorded, it holds nobody up."""

    def __init__(self) -> None:
        self.handle = call("cudaEventCreateWithFlags", runtime().cudaEventDisableTiming)
        _give_back(self, "cudaEventDestroy", self.handle)


class Stream:
    """Work on the GPU in the order in which it was given, beside that of other streams."""

    def __init__(self) -> None:
        self.handle = call("cudaStreamCreateWithFlags", runtime().cudaStreamNonBlocking)
        _give_back(self, "cudaStreamDestroy", self.handle)

    def upload(self, source: Float32, target: DeviceMemory) -> None:
        """Copy pinned host memory to the device; `source` is read until `wait` returns."""
        kind = runtime().cudaMemcpyKind.cudaMemcpyHostToDevice
        address = source.ctypes.data
        call("cudaMemcpyAsync", target.address, address, source.nbytes, kind, self.handle)

    def download(self, source: DeviceMemory, target: Float32) -> None:
        """Copy to pinned host memory, which holds it once `wait` returns."""
        kind = runtime().cudaMemcpyKind.cudaMemcpyDeviceToHost
        address = target.ctypes.data
        call("cudaMemcpyAsync", address, source.address, target.nbytes, kind, self.handle)

    def record(self, event: Event) -> None:
        """Set the event's mark behind what was given so far."""
        call("cudaEventRecord", event.handle, self.handle)

    def after(self, event: Event) -> None:
        """Begin nothing that is given from now on before the event's last mark is reached."""
        call("cudaStreamWaitEvent", self.handle, event.handle, 0)

    def launch(self, graph: Graph) -> None:
        """Run what was captured."""
        call("cudaGraphLaunch", graph.handle, self.handle)

    def wait(self) -> None:
        """Return when all work is done."""
        call("cudaStreamSynchronize", self.handle)


class Graph:
    """What `work` gives a stream, captured without being run; launched as one.

    work  answers whether it could be given. Raises LeudaError where the capture is refused, and the
          stream is as before.
    """

    def __init__(self, stream: Stream, work: Callable[[], bool]) -> None:
        cuda = runtime()
        # other threads may allocate meanwhile; this one may not
        mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        call("cudaStreamBeginCapture", stream.handle, mode)
        given = False
        try:
            given = work()
        finally:  # also of an error, or the stream would capture on
            status, captured = cuda.cudaStreamEndCapture(stream.handle)
            ended = status == cuda.cudaError_t.cudaSuccess
            if ended and not given:
                cuda.cudaGraphDestroy(captured)
            cuda.cudaGetLastError()  # an error of a capture is none of what comes next
        if not ended:
            raise LeudaError(f"the capture ended with {status.name}")
        if not given:
            raise LeudaError("it has work that cannot be captured")
        try:
            self.handle = call("cudaGraphInstantiate", captured, 0)
        finally:
            cuda.cudaGraphDestroy(captured)
        _give_back(self, "cudaGraphExecDestroy", self.handle)
