"""groups of windows (b, 1, h, w) -> scores (b, K, h, w), through two slots of pinned buffers.

While one group computes, the scores of the one before come down and the windows of the one after go
up: each slot has a stream in which its group is uploaded, computed and downloaded. The slots share
the activations, the largest block on the device, so an event lets one compute at a time: a batch
fills the GPU, and two at once would take twice the memory and be no faster.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import cycle
from typing import Any, TypeVar

from leuda_deploy.engines.engine import Float32
from leuda_deploy.engines.tensorrt.cuda import DeviceMemory, Event, Graph, Stream, pinned
from leuda_deploy.errors import LeudaError, ModelError
from leuda_deploy.model.passport import Family

Shape = tuple[int, ...]
Item = TypeVar("Item")
Place = TypeVar("Place")
Key = TypeVar("Key")
Value = TypeVar("Value")
SLOTS = 2
MAX_SHAPES = 16  # that a slot keeps a context and a graph for; each takes a little memory


def groups_of(count: int, largest: int) -> list[slice]:
    """Where `count` windows are cut into groups of `largest`; the last may be shorter."""
    return [slice(i, min(i + largest, count)) for i in range(0, count, largest)]


def take_turns(
    items: Iterable[Item],
    places: Sequence[Place],
    start: Callable[[Place, Item], None],
    finish: Callable[[Place, Item], None],
) -> None:
    """Start each item in the next place, once what is there is finished; all are, in order."""
    busy: deque[tuple[Place, Item]] = deque()
    for place, item in zip(cycle(places), items, strict=False):
        if len(busy) == len(places):
            finish(*busy.popleft())
        start(place, item)
        busy.append((place, item))
    while busy:
        finish(*busy.popleft())


def remembered(
    kept: dict[Key, Value], key: Key, make: Callable[[], Value], most: int = MAX_SHAPES
) -> Value:
    """What is kept under a key, made where it is not; beyond `most`, the least used last goes."""
    if key not in kept and len(kept) >= most:
        del kept[next(iter(kept))]
    value = kept.pop(key) if key in kept else make()
    kept[key] = value  # the order of a dict is that of use
    return value


class LoadedEngine:
    """A loaded engine and what all its contexts share: activations, and whose turn it is.

    refusal  why runs are not launched as CUDA graphs, or None
    """

    def __init__(
        self, trt: Any, engine: Any, family: Family, *, classes: int, cuda_graph: bool
    ) -> None:
        self.engine, self.classes = engine, classes
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        modes = [engine.get_tensor_mode(name) for name in names]
        self.input = names[modes.index(trt.TensorIOMode.INPUT)]
        self.output = names[modes.index(trt.TensorIOMode.OUTPUT)]
        self.refusal = None if cuda_graph else "not asked for"
        self._config = engine.create_runtime_config()
        self._config.set_execution_context_allocation_strategy(
            trt.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        # TensorRT for RTX compiles kernels while it runs, so it knows best what to capture when
        self._captures_itself = family == "tensorrt_rtx"
        if self._captures_itself:
            # kernels for a shape are made in its first run, not some time later: equal windows have
            # equal scores from then on; and what is made for one context is there for the others
            self._config.dynamic_shapes_kernel_specialization_strategy = (
                trt.DynamicShapesKernelSpecializationStrategy.EAGER
            )
            self._compiled = self._config.create_runtime_cache()
            self._config.set_runtime_cache(self._compiled)
            if cuda_graph:
                whole = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
                self._config.cuda_graph_strategy = whole
                if self._config.cuda_graph_strategy != whole:
                    self.refusal = "TensorRT for RTX refused to capture any"
        self._activations_size = int(engine.device_memory_size_v2)
        self._activations = DeviceMemory(self._activations_size)
        self.computed = Event()

    @property
    def launching(self) -> str:
        """Whether runs are CUDA graphs, for people."""
        if self.refusal is not None:
            return f"no CUDA graph: {self.refusal}"
        return "CUDA graph" + (" by TensorRT for RTX" if self._captures_itself else "")

    def context(self, shape: Shape) -> Any:
        """An execution context for windows (b, 1, h, w), in the activations of all."""
        context = self.engine.create_execution_context(self._config)
        if context is None:
            raise LeudaError(f"TensorRT makes no context for windows {shape}; free GPU memory")
        context.set_device_memory(self._activations.address, self._activations_size)
        if not context.set_input_shape(self.input, shape):
            raise LeudaError(f"the engine's profile does not hold windows {shape}")
        scores, wanted = tuple(context.get_tensor_shape(self.output)), list(shape)
        wanted[1] = self.classes
        if scores != tuple(wanted):  # it would write past the buffers
            raise ModelError(f"the engine makes scores {scores}, its card says {tuple(wanted)}")
        return context

    def capture(self, stream: Stream, work: Callable[[], bool]) -> Graph | None:
        """The CUDA graph of some work; None, and `refusal` says why, where it has none."""
        if self.refusal is not None or self._captures_itself:
            return None
        try:
            return Graph(stream, work)
        except LeudaError as error:
            self.refusal = str(error)
            return None


class ReadyRun:
    """One shape in one slot, ready to be run: a context of its own, and its CUDA graph.

    A graph holds the state and the addresses of its context, so no context is ever given another
    shape. NVIDIA advises one context a graph, all of them in the same memory.
    """

    def __init__(
        self, loaded: LoadedEngine, shape: Shape, stream: Stream, windows: int, scores: int
    ) -> None:
        self._context, self._stream = loaded.context(shape), stream
        self._context.set_tensor_address(loaded.input, windows)
        self._context.set_tensor_address(loaded.output, scores)
        self._graph: Graph | None = None
        # what a new shape changes is settled by its first run, which cannot be captured
        stream.after(loaded.computed)
        self.launch()
        stream.wait()
        self._graph = loaded.capture(stream, self._enqueue)

    def launch(self) -> None:
        """Compute the scores of the windows that are in the slot, in the order of its stream."""
        if self._graph is not None:
            self._stream.launch(self._graph)
        elif not self._enqueue():
            raise LeudaError("TensorRT did not run the engine")

    def _enqueue(self) -> bool:
        return bool(self._context.execute_async_v3(int(self._stream.handle)))


class Buffers:
    """A slot: windows and scores of one group, pinned and on the device, and a stream.

    largest  shape (b, 1, h, w) of the largest group
    """

    def __init__(self, loaded: LoadedEngine, largest: Shape) -> None:
        self._loaded, self._stream = loaded, Stream()
        pixels = math.prod(largest)
        self._windows, self._scores = pinned(pixels), pinned(pixels * loaded.classes)
        self._device_windows = DeviceMemory(self._windows.nbytes)
        self._device_scores = DeviceMemory(self._scores.nbytes)
        self._runs: dict[Shape, ReadyRun] = {}

    def run(self, shape: Shape) -> ReadyRun:
        """What runs windows of this shape here."""
        addresses = self._device_windows.address, self._device_scores.address
        return remembered(
            self._runs, shape, lambda: ReadyRun(self._loaded, shape, self._stream, *addresses)
        )

    def start(self, windows: Float32) -> None:
        """Upload, compute and download, all of it queued; the slot has to be at rest."""
        run = self.run(windows.shape)
        source = self._windows[: windows.size]
        source.reshape(windows.shape)[...] = windows
        stream, computed = self._stream, self._loaded.computed
        stream.upload(source, self._device_windows)
        stream.after(computed)
        run.launch()
        stream.record(computed)
        stream.download(self._device_scores, self._scores[: windows.size * self._loaded.classes])

    def finish(self, scores: Float32) -> None:
        """Wait, and copy the scores to where they are wanted."""
        self.rest()
        scores[...] = self._scores[: scores.size].reshape(scores.shape)

    def rest(self) -> None:
        """Wait until nothing reads or writes the buffers."""
        self._stream.wait()


def buffer_bytes(largest: Shape, classes: int) -> int:
    """What the slots take of the device's memory besides the activations."""
    return SLOTS * 4 * math.prod(largest) * (1 + classes)
