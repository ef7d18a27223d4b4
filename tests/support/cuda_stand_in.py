"""A CUDA runtime and a TensorRT on the CPU, for what has to be right before a GPU is there.

What a stream is given runs as late as it may: when the host waits, on that stream alone, or on the
others first. So buffers that are used too early, and computing that waits for nothing, give wrong
scores or another order. It answers as cuda.bindings 12.8 and 13 do.
"""

# ruff: noqa: N801, N815  the names of cuda.bindings

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable
from enum import Enum, IntEnum
from itertools import count
from types import SimpleNamespace
from typing import Any

import numpy as np


class cudaError_t(IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorStreamCaptureInvalidated = 901


class Runtime:
    """The calls of cuda.bindings.runtime that are used; `live` holds what was not given back.

    others_first  a wait runs the other streams as far as they can go, then the one waited for
    """

    cudaError_t = cudaError_t
    cudaStreamNonBlocking, cudaEventDisableTiming = 1, 2
    cudaMemcpyKind = Enum("cudaMemcpyKind", ["cudaMemcpyHostToDevice", "cudaMemcpyDeviceToHost"])
    cudaStreamCaptureMode = Enum("cudaStreamCaptureMode", ["cudaStreamCaptureModeThreadLocal"])

    def __init__(self, *, others_first: bool, memory: int = 1 << 30) -> None:
        self.free, self.others_first = memory, others_first
        self.live: dict[Any, Any] = {}
        self.streams: dict[int, deque[tuple[Any, ...]]] = {}
        self.capturing: dict[int, list[Callable[[], None]]] = {}
        self.invalid: set[int] = set()
        self.marks: dict[int, int] = {}  # event -> its last mark
        self.reached: set[int] = set()
        self.launched: list[int] = []
        self._numbers = count(1)

    def _new(self, value: Any = None) -> int:
        number = next(self._numbers)
        self.live[number] = value
        return number

    # memory
    def _allocate(self, size: int) -> tuple[Any, ...]:
        if size > self.free:
            return cudaError_t.cudaErrorMemoryAllocation, None
        self.free -= size
        block = (ctypes.c_ubyte * size)(*b"\xff" * min(size, 64))
        address = ctypes.addressof(block)
        self.live[address] = block
        return cudaError_t.cudaSuccess, address

    def _release(self, address: int) -> tuple[Any, ...]:
        self.free += len(self.live.pop(address))
        return (cudaError_t.cudaSuccess,)

    cudaMalloc = cudaMallocHost = _allocate
    cudaFree = cudaFreeHost = _release

    def cudaMemcpyAsync(self, target, source, size, kind, stream):
        self._give(stream, lambda: ctypes.memmove(target, source, size))
        return (cudaError_t.cudaSuccess,)

    # streams and events
    def cudaStreamCreateWithFlags(self, flags):
        assert flags == self.cudaStreamNonBlocking
        stream = self._new()
        self.streams[stream] = deque()
        return cudaError_t.cudaSuccess, stream

    def cudaEventCreateWithFlags(self, flags):
        assert flags == self.cudaEventDisableTiming
        return cudaError_t.cudaSuccess, self._new()

    def _destroy(self, handle):
        del self.live[handle]
        return (cudaError_t.cudaSuccess,)

    cudaStreamDestroy = cudaEventDestroy = cudaGraphDestroy = cudaGraphExecDestroy = _destroy

    def cudaEventRecord(self, event, stream):
        mark = self.marks[event] = next(self._numbers)
        self._give(stream, lambda: self.reached.add(mark))
        return (cudaError_t.cudaSuccess,)

    def cudaStreamWaitEvent(self, stream, event, flags):
        assert flags == 0
        self._give(stream, lambda: None, after=self.marks.get(event))
        return (cudaError_t.cudaSuccess,)

    def cudaStreamSynchronize(self, stream):
        assert stream not in self.capturing, "a stream that captures cannot be waited for"
        for other in self.streams:
            if self.others_first and other != stream:
                self._run(other)
        self._run(stream)
        return (cudaError_t.cudaSuccess,)

    def _give(self, stream: int, work: Callable[[], Any], after: int | None = None) -> None:
        if stream in self.capturing:
            assert after is None, "a capture cannot wait for what is outside of it"
            self.capturing[stream].append(work)
        else:
            self.streams[stream].append((work, after))

    def _run(self, stream: int) -> None:
        queue = self.streams[stream]
        while queue:
            work, after = queue.popleft()
            if after is not None and after not in self.reached:
                for other in self.streams:
                    if other != stream:
                        self._run(other)
            work()

    # graphs
    def cudaStreamBeginCapture(self, stream, mode):
        assert mode == self.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.capturing[stream] = []
        return (cudaError_t.cudaSuccess,)

    def cudaStreamEndCapture(self, stream):
        captured = self.capturing.pop(stream)
        if stream in self.invalid:
            self.invalid.remove(stream)
            return cudaError_t.cudaErrorStreamCaptureInvalidated, None
        return cudaError_t.cudaSuccess, self._new(captured)

    def cudaGraphInstantiate(self, graph, flags):
        assert flags == 0
        return cudaError_t.cudaSuccess, self._new(self.live[graph])

    def cudaGraphLaunch(self, graph, stream):
        self.launched.append(graph)
        for work in self.live[graph]:
            self._give(stream, work)
        return (cudaError_t.cudaSuccess,)

    def cudaGetLastError(self):
        return (cudaError_t.cudaSuccess,)

    def cudaGetErrorString(self, error):
        return cudaError_t.cudaSuccess, error.name.removeprefix("cudaError").encode()


class Context:
    """score k of a pixel x is x * (k + 1) - k."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.addresses = engine, {}
        self.shape: tuple[int, ...] | None = None
        self.settled = self.fixed = False
        self.activations = 0

    def set_device_memory(self, memory, size):
        assert size == self.engine.device_memory_size_v2
        self.activations = memory

    def set_tensor_address(self, name, address):
        assert not self.fixed, "a graph was captured with other addresses"
        self.addresses[name] = address
        return True

    def set_input_shape(self, name, shape):
        assert name == "windows"
        assert not self.fixed, "a graph was captured with another shape"
        self.shape, self.settled = shape, False
        largest = self.engine.largest
        return all(1 <= side <= most for side, most in zip(shape, largest, strict=True))

    def get_tensor_shape(self, name):
        assert name == "scores"
        return (self.shape[0], self.engine.classes, *self.shape[2:])

    def execute_async_v3(self, stream):
        runtime = self.engine.runtime
        assert self.activations in runtime.live, "no activations"
        if stream in runtime.capturing:
            assert self.settled, "the first run of a shape cannot be captured"
            if self.engine.refuses == "TensorRT":
                return False
            if self.engine.refuses == "CUDA":
                runtime.invalid.add(stream)
                return True
            self.fixed = True
        runtime._give(stream, self._compute)
        return True

    def _compute(self) -> None:
        engine, size = self.engine, int(np.prod(self.shape))
        windows = _floats(self.addresses["windows"], size).reshape(self.shape)
        scores = _floats(self.addresses["scores"], size * engine.classes)
        scores = scores.reshape(self.get_tensor_shape("scores"))
        for k in range(engine.classes):
            scores[:, k] = windows[:, 0] * np.float32(k + 1) - np.float32(k)
        engine.computed.append(float(windows.flat[0]))
        self.settled = True


def _floats(address: int, size: int) -> Any:
    return np.ctypeslib.as_array((ctypes.c_float * size).from_address(address))


class Engine:
    """A TensorRT engine; `computed` holds the first pixel of each run, as they ran."""

    num_io_tensors = 2
    device_memory_size_v2 = 1000

    def __init__(self, runtime: Runtime, largest, *, classes: int, refuses: str | None) -> None:
        self.runtime, self.largest, self.classes = runtime, largest, classes
        self.refuses = refuses  # who does not capture: TensorRT, CUDA, or nobody
        self.computed: list[float] = []
        self.contexts = 0

    def get_tensor_name(self, index):
        return ("windows", "scores")[index]

    def get_tensor_mode(self, name):
        return TensorIOMode.INPUT if name == "windows" else TensorIOMode.OUTPUT

    def create_runtime_config(self):
        chosen: list[Any] = []
        return SimpleNamespace(
            chosen=chosen,
            cuda_graph_strategy=CudaGraphStrategy.DISABLED,
            set_execution_context_allocation_strategy=chosen.append,
            create_runtime_cache=object,
            set_runtime_cache=chosen.append,
        )

    def create_execution_context(self, config):
        assert ExecutionContextAllocationStrategy.USER_MANAGED in config.chosen
        self.contexts += 1
        return Context(self)


TensorIOMode = Enum("TensorIOMode", ["INPUT", "OUTPUT"])
ExecutionContextAllocationStrategy = Enum("Strategy", ["STATIC", "USER_MANAGED"])
DynamicShapesKernelSpecializationStrategy = Enum("Specialization", ["LAZY", "EAGER"])
CudaGraphStrategy = Enum("CudaGraphStrategy", ["DISABLED", "WHOLE_GRAPH_CAPTURE"])


def tensorrt(engine: Engine) -> Any:
    """A module `tensorrt` whose runtime loads this engine."""
    loads = SimpleNamespace(deserialize_cuda_engine=lambda code: engine)
    return SimpleNamespace(
        TensorIOMode=TensorIOMode,
        ExecutionContextAllocationStrategy=ExecutionContextAllocationStrategy,
        DynamicShapesKernelSpecializationStrategy=DynamicShapesKernelSpecializationStrategy,
        CudaGraphStrategy=CudaGraphStrategy,
        Logger=type("Logger", (), {"ERROR": 1, "__init__": lambda self, level: None}),
        Runtime=lambda logger: loads,
    )
