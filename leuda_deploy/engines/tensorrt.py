"""engine file + passport -> (B, 1, h, w) float32 -> (B, K, h, w) float32, on this machine's GPU.

An engine is code. It is read only when its hash is in the manifest beside it, its passport fits
this machine, and it was proven to agree with ONNX Runtime.
"""

from __future__ import annotations

import importlib
import json
import threading
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leuda_deploy.engines import cuda
from leuda_deploy.engines.tensorrt_buffers import (
    SLOTS,
    Buffers,
    Network,
    buffer_bytes,
    groups_of,
    take_turns,
)
from leuda_deploy.errors import InputError, MissingExtraError, ModelError
from leuda_deploy.export.to_tensorrt import LARGEST_WINDOW
from leuda_deploy.machine.files import file_sha256
from leuda_deploy.machine.gpu import Gpu, find_gpu
from leuda_deploy.model.card import ModelCard
from leuda_deploy.model.export_folder import MANIFEST_FILE, Manifest, read_manifest
from leuda_deploy.model.model_file import MODEL_FILE, read_model
from leuda_deploy.model.passport import Family, Passport

Float32 = NDArray[np.float32]
EXTRAS: dict[Family, str] = {"tensorrt": "trt", "tensorrt_rtx": "rtx"}


def misfits(
    passport: Passport, *, onnx_sha256: str, gpu: Gpu | None, version: str | None
) -> list[str]:
    """Why an engine cannot run here, field by field; empty if it can.

    version  of the installed builder family, None if it is not installed
    """
    found: list[str] = []

    def compare(field: str, wants: str | None, here: str | None) -> None:
        if wants != here:
            found.append(f"{field}: the engine is for {wants}, here it is {here or 'missing'}")

    compare("onnx_sha256", passport.onnx_sha256[:12], onnx_sha256[:12])
    compare(f"{passport.family} version", passport.version, version)
    compare("compute capability", passport.capability, gpu.capability if gpu else None)
    if passport.gpu is not None:
        compare("gpu", passport.gpu, gpu.name if gpu else None)
    return found


def remedy(folder: Path, passport: Passport, gpu: Gpu | None, wrong: list[str]) -> str:
    """What to do about an engine that cannot run here, which is not always to build it again."""
    build = f"leuda export {folder / MODEL_FILE} --trt"
    if gpu is not None:
        return f"build one for this machine's {gpu.name}: {build}"
    if any(not fault.startswith(("compute capability", "gpu")) for fault in wrong):
        ahead = "" if passport.gpu else f" --trt-target {passport.target}"
        return (
            f"build it again{f' beside its {passport.gpu}' if passport.gpu else ''}: {build}{ahead}"
        )
    where = passport.gpu or passport.target
    return (
        f"it is for {where} (SM {passport.capability}) and this machine has no NVIDIA GPU; on one "
        f"that has: leuda verify {folder} --prove SCAN"
    )


def installed_version(family: str) -> str | None:
    """Version of an installed builder family, or None."""
    if find_spec(family) is None:
        return None
    return str(importlib.import_module(family).__version__)


def check_engine(folder: Path, name: str) -> tuple[Path, Passport, ModelCard]:
    """An engine of an export folder that may be loaded here: its file, passport and card.

    Raises ModelError, naming the field and the command that builds it again. Loads nothing.
    """
    manifest: Manifest = read_manifest(folder)
    path, gpu = folder / name, find_gpu()
    passport = manifest.engines.get(name)
    if passport is None or not path.is_file():
        raise ModelError(f"{folder} has no engine {name}; it has {sorted(manifest.engines)}")
    found = file_sha256(path)
    if not found == manifest.files.get(name) == passport.sha256:
        raise ModelError(
            f"{path} is not the engine of the manifest beside it (sha256 {found[:12]}, the "
            f"manifest says {passport.sha256[:12]}); nothing was loaded. "
            f"{remedy(folder, passport, gpu, ['sha256'])}"
        )
    _, card = read_model(folder / MODEL_FILE)
    wrong = misfits(
        passport,
        onnx_sha256=file_sha256(folder / MODEL_FILE),
        gpu=gpu,
        version=installed_version(passport.family),
    )
    if wrong:
        raise ModelError(f"{path} does not fit: {wrong[0]}; {remedy(folder, passport, gpu, wrong)}")
    return path, passport, card


def fitting_engine(model: Path, family: Family) -> str | None:
    """The engine beside a model file that was proven and may run here, by its passport; or None."""
    folder = model.parent
    if model.name != MODEL_FILE or not (folder / MANIFEST_FILE).is_file():
        return None
    engines = read_manifest(folder).engines
    proven = {n: p for n, p in engines.items() if p.family == family and p.proven}
    if not proven:  # then the builder, a hundred megabytes, is not loaded to ask its version
        return None
    version, gpu, onnx_sha256 = installed_version(family), find_gpu(), file_sha256(model)
    for name, passport in proven.items():
        if version and not misfits(passport, onnx_sha256=onnx_sha256, gpu=gpu, version=version):
            return name
    return None


def open_tensorrt(
    model: Path, family: Family, *, max_gpu_bytes: int | None = None
) -> TensorRTEngine:
    """The engine of this family beside a model file that runs here, or why there is none.

    Raises ModelError with the command that builds or proves one, InputError if it takes more than
    max_gpu_bytes.
    """
    folder = model.parent
    if model.name != MODEL_FILE:
        raise ModelError(f"{model} is no export folder's {MODEL_FILE}; engines lie beside that")
    engines = read_manifest(folder).engines
    name = fitting_engine(model, family)
    # none fits: the first says why not
    name = name or next((n for n, passport in engines.items() if passport.family == family), None)
    if name is None:
        raise ModelError(f"{folder} has no {family} engine; build it: leuda export {model} --trt")
    if max_gpu_bytes is not None:
        _, passport, card = check_engine(folder, name)
        needed = _gpu_bytes(passport, card)
        if needed > max_gpu_bytes:
            raise InputError(
                f"{folder / name} takes {needed // 10**6} MB of the GPU's memory; "
                f"the least that would do is --max-gpu-memory {-(-needed // 10**6)}M"
            )
    return TensorRTEngine(folder, name)


def _largest_group(passport: Passport, card: ModelCard) -> tuple[int, ...]:
    """Shape (b, 1, h, w) of the most windows, and the largest, that the engine's profile holds."""
    times = LARGEST_WINDOW if card.options.dynamic_window else 1
    return passport.batch[2], 1, *(times * size for size in passport.window)


def _gpu_bytes(passport: Passport, card: ModelCard) -> int:
    """Code and weights, activations, and the windows and scores of the group in each slot."""
    buffers = buffer_bytes(_largest_group(passport, card), 1 + len(card.structures))
    return int(1e6 * (passport.engine_mb + (passport.memory_mb or 0.0))) + buffers


class TensorRTEngine:
    """A proven engine on the GPU that it was built for; anything else is an error.

    unproven    load an engine that was not yet compared with ONNX Runtime, to compare it
    cuda_graph  launch runs as CUDA graphs where they can be captured; `description` tells
    """

    def __init__(
        self, folder: Path | str, name: str, *, unproven: bool = False, cuda_graph: bool = True
    ) -> None:
        folder = Path(folder)
        path, self.passport, self.card = check_engine(folder, name)
        gpu = find_gpu()
        assert gpu is not None  # or the engine would not fit
        if not self.passport.proven and not unproven:
            raise ModelError(
                f"{path} was never compared with ONNX Runtime on a GPU; prove it here: "
                f"leuda verify {folder} --prove SCAN"
            )
        if not cuda.installed():
            raise MissingExtraError(
                "running a TensorRT engine", "cuda-python", EXTRAS[self.passport.family]
            )
        trt: Any = importlib.import_module(self.passport.family)
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            raise ModelError(
                f"{path} cannot be loaded; {remedy(folder, self.passport, gpu, ['code'])}"
            )
        self._trt = trt
        classes = 1 + len(self.card.structures)
        self._network = Network(
            trt, engine, self.passport.family, classes=classes, cuda_graph=cuda_graph
        )
        largest = _largest_group(self.passport, self.card)
        self._slots = [Buffers(self._network, largest) for _ in range(SLOTS)]
        # now, so that what keeps the engine from running, or from a CUDA graph, is known
        self._slots[0].run((self.passport.batch[1], 1, *self.passport.window))
        self._lock = threading.Lock()
        self.path, self.sha256 = folder / MODEL_FILE, self.passport.onnx_sha256
        self.provider, self._gpu = self.passport.family, gpu

    def __call__(self, windows: Float32) -> Float32:
        """Scores (B, K, h, w) of windows (B, 1, h, w), in groups that the profile holds."""
        scores = np.empty((len(windows), self._network.classes, *windows.shape[2:]), np.float32)
        with self._lock:  # the slots are this engine's own
            try:
                take_turns(
                    groups_of(len(windows), self.passport.batch[2]),
                    self._slots,
                    start=lambda slot, part: slot.start(windows[part]),
                    finish=lambda slot, part: slot.finish(scores[part]),
                )
            finally:  # also of an interrupt: the next call finds the buffers at rest
                for slot in self._slots:
                    slot.rest()
        return scores

    @property
    def description(self) -> str:
        """Runtime, GPU, precision, and whether runs are launched as CUDA graphs."""
        runtime = f"{self.passport.family} {self.passport.version}"
        return f"{runtime} on {self._gpu.name} {self.card.precision}, {self._network.launching}"

    @property
    def memory_mb(self) -> float:
        """What the engine's activations take on the device."""
        return round(float(self._network.engine.device_memory_size_v2) / 1e6, 2)

    def inspect(self) -> dict[str, int]:
        """How many outputs of the built engine's layers have each format and data type."""
        inspector = self._network.engine.create_engine_inspector()
        text = inspector.get_engine_information(self._trt.LayerInformationFormat.JSON)
        layers = json.loads(text).get("Layers", [])
        outputs = [o for layer in layers if isinstance(layer, dict) for o in layer["Outputs"]]
        return dict(Counter(str(output.get("Format/Datatype", "?"))[:200] for output in outputs))
