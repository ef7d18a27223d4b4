"""Pinned double buffers and CUDA graphs: rotation, order, shapes, refusals; on a GPU, all of it.

Without a GPU, a stand-in on the CPU runs what the streams are given as late as it may.
"""

from __future__ import annotations

import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import cuda_stand_in
from support.engine_files import HERE, VERSION, with_engine
from support.makers import MakeModel

from leuda_deploy.engines.tensorrt import cuda, engine_fit
from leuda_deploy.engines.tensorrt.buffers import (
    SLOTS,
    buffer_bytes,
    groups_of,
    remembered,
    take_turns,
)
from leuda_deploy.engines.tensorrt.engine import TensorRTEngine, open_tensorrt
from leuda_deploy.errors import InputError, LeudaError, MissingExtraError, ModelError
from leuda_deploy.export.add_engines import add_engines
from leuda_deploy.export.to_tensorrt import engine_targets
from leuda_deploy.machine.gpu import find_gpu
from leuda_deploy.model.export_folder import default_model
from leuda_deploy.model.model_file import ModelFile
from leuda_deploy.model.passport import Family

LARGEST, SIDE, CLASSES = 8, 16, 3


@pytest.mark.parametrize("count", range(10))
def test_groups_cover_all_windows_and_only_the_last_is_short(count: int) -> None:
    groups = groups_of(count, 4)
    assert [i for part in groups for i in range(count)[part]] == list(range(count))
    assert all(part.stop - part.start == 4 for part in groups[:-1])
    assert all(0 < part.stop - part.start <= 4 for part in groups)


@pytest.mark.parametrize("count", range(6))
def test_no_slot_is_started_before_it_is_finished_and_two_are_busy(count: int) -> None:
    busy: dict[str, int] = {}
    seen: list[str] = []

    def start(place: str, item: int) -> None:
        assert place not in busy
        busy[place] = item
        seen.append(f"start {item} in {place}")

    def finish(place: str, item: int) -> None:
        assert busy.pop(place) == item
        seen.append(f"finish {item}")

    take_turns(range(count), ["a", "b"], start, finish)
    assert not busy
    assert [s for s in seen if "finish" in s] == [f"finish {i}" for i in range(count)]
    if count == 3:  # the second is started before the first is waited for
        assert seen == [
            "start 0 in a",
            "start 1 in b",
            "finish 0",
            "start 2 in a",
            "finish 1",
            "finish 2",
        ]


def test_the_shape_used_longest_ago_is_forgotten() -> None:
    made: list[int] = []
    kept: dict[int, int] = {}

    def use(key: int) -> int:
        return remembered(kept, key, lambda: made.append(key) or key * 10, most=2)

    assert [use(1), use(2), use(1), use(3), use(1), use(2)] == [10, 20, 10, 30, 10, 20]
    assert made == [1, 2, 3, 2]
    assert list(kept) == [1, 2]


class Machine:
    """A machine whose GPU and TensorRT are stood in for, and an export folder with an engine."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, *, others_first: bool) -> None:
        self.folder, self._patch = folder, patch
        self.runtime = cuda_stand_in.Runtime(others_first=others_first)
        patch.setattr(cuda, "runtime", lambda: self.runtime)
        patch.setattr(cuda, "installed", lambda: True)
        patch.setattr(engine_fit, "find_gpu", lambda: HERE)
        patch.setattr(engine_fit, "installed_version", lambda family: VERSION)

    def engine(
        self,
        *,
        family: Family = "tensorrt",
        refuses: str | None = None,
        classes: int = CLASSES,
        **options: Any,
    ) -> tuple[TensorRTEngine, cuda_stand_in.Engine]:
        """The engine of this project, and the one of TensorRT that it loaded."""
        with_engine(self.folder, family=family)
        loaded = cuda_stand_in.Engine(
            self.runtime, (LARGEST, 1, SIDE, SIDE), classes=classes, refuses=refuses
        )
        self._patch.setitem(sys.modules, family, cuda_stand_in.tensorrt(loaded))
        return TensorRTEngine(ModelFile.open(self.folder), "model.here.engine", **options), loaded


@pytest.fixture(params=[False, True], ids=["alone", "others_first"])
def machine(
    request: pytest.FixtureRequest,
    make_model: MakeModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Machine:
    folder = make_model(tmp_path / "export").parent
    return Machine(folder, monkeypatch, others_first=request.param)


def windows_of(count: int, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, 1, SIDE, SIDE)).astype(np.float32)


def scores_of(windows: Any) -> Any:
    """What the engine of the stand-in makes of windows."""
    return np.concatenate([windows * np.float32(k + 1) - np.float32(k) for k in range(CLASSES)], 1)


@pytest.mark.parametrize("family", ["tensorrt", "tensorrt_rtx"])
@pytest.mark.parametrize("cuda_graph", [True, False])
def test_every_number_of_windows_gets_its_scores(
    machine: Machine, family: Family, cuda_graph: bool
) -> None:
    engine, loaded = machine.engine(family=family, cuda_graph=cuda_graph)
    for count in [*range(2 * LARGEST + 2), 41, 3]:
        windows = windows_of(count, seed=count)
        np.testing.assert_array_equal(engine(windows), scores_of(windows))
    assert bool(machine.runtime.launched) == (cuda_graph and family == "tensorrt")
    # of a slot and a size, the one at load among them, however often they were asked for
    assert loaded.contexts == SLOTS * LARGEST


def test_one_computes_at_a_time_in_the_order_of_the_groups(machine: Machine) -> None:
    engine, loaded = machine.engine()
    windows = windows_of(2 * LARGEST)
    engine(windows)
    # the first run of the second slot waits for the first slot, too: they share activations
    *_, first, _, second = loaded.computed
    assert (first, second) == (windows[0].flat[0], windows[LARGEST].flat[0])
    engine(windows_of(5))  # the first slot knows this size from here on
    loaded.computed.clear()
    windows = windows_of(2 * LARGEST + 5)
    engine(windows)
    assert loaded.computed == [windows[i].flat[0] for i in (0, LARGEST, 2 * LARGEST)]


def test_a_shape_is_captured_once_a_slot_and_replayed(machine: Machine) -> None:
    engine, loaded = machine.engine()
    assert engine.description.endswith("fp32, CUDA graph")
    assert not machine.runtime.launched  # the first run of a shape is an ordinary one
    for _ in range(3):
        engine(windows_of(2 * LARGEST))
    first, second = sorted(set(machine.runtime.launched))
    assert machine.runtime.launched == 3 * [first, second]
    assert loaded.contexts == 1 + SLOTS


@pytest.mark.parametrize(
    ("refuses", "reason"),
    [("TensorRT", "work that cannot be captured"), ("CUDA", "cudaErrorStreamCaptureInvalidated")],
)
def test_refused_capture_is_said_and_runs_all_the_same(
    machine: Machine, refuses: str, reason: str
) -> None:
    engine, _ = machine.engine(refuses=refuses)
    assert "no CUDA graph: " in engine.description
    assert reason in engine.description
    windows = windows_of(3 * LARGEST)
    np.testing.assert_array_equal(engine(windows), scores_of(windows))
    assert not machine.runtime.launched
    del engine
    assert machine.runtime.live == {}


def test_description_says_whose_the_graphs_are(machine: Machine) -> None:
    engine, _ = machine.engine(family="tensorrt_rtx")
    assert engine.description.startswith(f"tensorrt_rtx {VERSION} on {HERE.name} fp32")
    assert engine.description.endswith("CUDA graph by TensorRT for RTX")
    plain, _ = machine.engine(cuda_graph=False)
    assert plain.description.endswith("no CUDA graph: not asked for")


def test_threads_that_call_at_once_get_their_own_scores(machine: Machine) -> None:
    engine, _ = machine.engine()
    asked = [windows_of(count % 20 + 1, seed=count) for count in range(40)]
    with ThreadPoolExecutor(4) as pool:
        for windows, scores in zip(asked, pool.map(engine, asked), strict=True):
            np.testing.assert_array_equal(scores, scores_of(windows))


def test_everything_is_given_back_when_the_engine_goes(machine: Machine) -> None:
    free = machine.runtime.free
    engine, loaded = machine.engine()
    engine(windows_of(2 * LARGEST + 1))
    buffers = buffer_bytes((LARGEST, 1, SIDE, SIDE), CLASSES)
    on_device_and_pinned = 2 * buffers + loaded.device_memory_size_v2
    assert free - machine.runtime.free == on_device_and_pinned
    del engine
    assert machine.runtime.live == {}
    assert machine.runtime.free == free


def test_windows_that_do_not_fit_are_one_line_and_the_engine_goes_on(machine: Machine) -> None:
    engine, _ = machine.engine()
    wide = np.zeros((1, 1, SIDE, 2 * SIDE), np.float32)
    with pytest.raises(LeudaError, match=r"profile does not hold windows \(1, 1, 16, 32\)"):
        engine(wide)
    windows = windows_of(LARGEST + 1)
    np.testing.assert_array_equal(engine(windows), scores_of(windows))


def test_full_memory_and_foreign_engines_are_one_line(machine: Machine) -> None:
    with pytest.raises(ModelError, match=r"makes scores \(4, 5, 16, 16\), its card says \(4, 3,"):
        machine.engine(classes=5)
    machine.runtime.free = 2000
    with pytest.raises(LeudaError, match="pinned memory failed with cudaErrorMemoryAllocation"):
        machine.engine()
    machine.runtime.free = 100
    with pytest.raises(LeudaError, match=r"cudaMalloc of 0\.0 MB failed with cudaError"):
        machine.engine()


def test_an_interrupt_leaves_the_buffers_at_rest(machine: Machine) -> None:
    engine, _ = machine.engine()

    class Interrupted(np.ndarray):
        def __getitem__(self, part: Any) -> Any:
            if isinstance(part, slice) and part.start == 2 * LARGEST:
                raise KeyboardInterrupt
            return super().__getitem__(part)

    with pytest.raises(KeyboardInterrupt):
        engine(windows_of(3 * LARGEST).view(Interrupted))
    assert not any(machine.runtime.streams.values())
    windows = windows_of(2 * LARGEST, seed=1)
    np.testing.assert_array_equal(engine(windows), scores_of(windows))


def test_the_budget_counts_the_buffers_of_both_slots(machine: Machine) -> None:
    # 100 MB of code and activations, and for 8 windows of 512 x 512 one value in, three out
    model = with_engine(machine.folder, window=(512, 512))
    taken = 100 + 2 * 8 * 512 * 512 * (1 + 3) * 4 // 10**6
    with pytest.raises(InputError, match=f"takes {taken} MB"):
        open_tensorrt(ModelFile.open(model), "tensorrt", max_gpu_bytes=(taken - 10) * 10**6)


def test_cuda_python_that_is_missing_is_one_line(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "installed", lambda: False)
    with pytest.raises(MissingExtraError, match="needs cuda-python"):
        machine.engine()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelFile, str]:
    """The phantom model and its engine for this machine's GPU, of four windows at most."""
    if find_gpu() is None:
        pytest.skip("no NVIDIA GPU here")
    folder = tmp_path_factory.mktemp("export")
    shutil.copytree(default_model(), folder, dirs_exist_ok=True)
    (target,) = engine_targets([], batch=4)
    add_engines(ModelFile.open(folder), [target], probes=None)
    return ModelFile.open(folder), target.file_name


def images(count: int, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return rng.uniform(-1, 1, (count, 1, 64, 64)).astype(np.float32)


@pytest.mark.gpu
def test_groups_at_once_score_as_each_does_alone(built: tuple[ModelFile, str]) -> None:
    engine = TensorRTEngine(*built, unproven=True)
    for count in range(1, 2 * 4 + 2):
        windows = images(count, seed=count)
        alone = [engine(windows[part]) for part in groups_of(count, 4)]
        np.testing.assert_array_equal(engine(windows), np.concatenate(alone))


@pytest.mark.gpu
def test_a_replayed_graph_scores_as_a_direct_run(built: tuple[ModelFile, str]) -> None:
    replayed = TensorRTEngine(*built, unproven=True)
    direct = TensorRTEngine(*built, unproven=True, cuda_graph=False)
    assert "no CUDA graph" not in replayed.description
    assert "no CUDA graph: not asked for" in direct.description
    for count in (11, 8, 4, 3, 11):
        windows = images(count, seed=count)
        np.testing.assert_array_equal(replayed(windows), direct(windows))


@pytest.mark.gpu
def test_threads_on_a_gpu_get_their_own_scores(built: tuple[ModelFile, str]) -> None:
    engine = TensorRTEngine(*built, unproven=True)
    asked = [images(count % 9 + 1, seed=count) for count in range(60)]
    alone = [engine(windows) for windows in asked]
    with ThreadPoolExecutor(4) as pool:
        for expected, scores in zip(alone, pool.map(engine, asked), strict=True):
            np.testing.assert_array_equal(scores, expected)


@pytest.mark.gpu
def test_the_memory_of_a_gpu_is_given_back(built: tuple[ModelFile, str]) -> None:
    free = []
    for _ in range(3):  # the first leaves the driver's own behind
        engine = TensorRTEngine(*built, unproven=True)
        engine(images(11))
        left = cuda.call("cudaMemGetInfo")  # of what it answers, the bytes that are free
        del engine
        free.append(cuda.call("cudaMemGetInfo"))
        assert free[-1] > left
    assert abs(free[2] - free[1]) < 4 << 20
