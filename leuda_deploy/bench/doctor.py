"""this machine + a model -> what is installed, what works, what is in the way, and what mends it.

Every engine is really run, on the model itself, in a process of its own and for a limited time.
"""

from __future__ import annotations

import os
import platform
import tempfile
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from leuda_deploy.engines.engine import TENSORRT, EngineName, EngineSettings
from leuda_deploy.engines.open_engine import open_engine
from leuda_deploy.engines.tensorrt.engine_fit import fitting_engine
from leuda_deploy.engines.threads import usable_cores
from leuda_deploy.errors import InputError, LeudaError, one_line, printable
from leuda_deploy.machine.cache_folder import cache_folder, own_cache
from leuda_deploy.machine.gpu import driver_version, find_gpu
from leuda_deploy.machine.isolated import run_isolated
from leuda_deploy.model.model_file import ModelFile

State = Literal["works", "absent", "broken", "conflict"]
ENGINE_SECONDS = 120.0
PACKAGES = (
    *("leuda", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt_rtx"),
    *("cuda-python", "nibabel", "numpy", "highdicom", "pydicom", "torch"),
)
EXTRA_OF: dict[str, str] = {
    "ort-cuda": "gpu", "openvino": "openvino", "tensorrt": "trt", "tensorrt-rtx": "rtx",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    state   works; absent: not there, and not needed; broken: there, and does not work; conflict:
            two things that must not be there together
    detail  what was found
    mend    the command that changes it; may be empty
    """

    name: str
    state: State
    detail: str
    mend: str = ""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What this process may use.

    cores         that it may run on: of a container, what its quota allows
    memory_bytes  that it may take: of a container, its limit; None if it is not known
    """

    python: str
    system: str
    cores: float
    memory_bytes: int | None
    gpu: str | None
    driver: str | None


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What `leuda doctor` found.

    runs_on  engines that work here; empty: `leuda infer` would not run
    """

    machine: Machine
    packages: dict[str, str]
    model: str
    findings: tuple[Finding, ...]
    runs_on: tuple[str, ...]

    @property
    def fit(self) -> bool:
        """Whether `leuda infer` would run as it is called without options."""
        return bool(self.runs_on)

    def as_dict(self) -> dict[str, object]:
        """JSON-able."""
        return asdict(self) | {"fit": self.fit}


def diagnose(model: ModelFile) -> Diagnosis:
    """Look at this machine and run the model on every engine that is installed."""
    packages = installed()
    engines = [_engine(model, name) for name in get_args(EngineName)]
    findings = (*engines, *_conflicts(packages), _cache(), _dicom())
    gpu = find_gpu()
    return Diagnosis(
        machine=Machine(
            python=platform.python_version(),
            system=platform.platform(),
            cores=usable_cores(),
            memory_bytes=usable_memory(),
            gpu=f"{gpu.name} (SM {gpu.capability})" if gpu else None,
            driver=driver_version(),
        ),
        packages=packages,
        model=str(model.path),
        findings=findings,
        runs_on=tuple(found.name for found in engines if found.state == "works"),
    )


def installed() -> dict[str, str]:
    """Version by name, of the packages that matter and are installed."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def run_once(model: ModelFile, name: EngineName) -> str:
    """Open an engine and score one window of noise; what really ran. Raises LeudaError."""
    shape = (1, model.card.scan_count, *model.card.window)
    noise = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    engine = open_engine(model, name, EngineSettings(precision="auto"))
    scores = engine(noise)
    if not np.isfinite(scores).all():
        raise LeudaError("it gives scores that are not finite")
    return engine.description


def _engine(model: ModelFile, name: EngineName) -> Finding:
    module = {"openvino": "openvino", **TENSORRT}.get(name, "onnxruntime")
    mend = f"pip install 'leuda[{EXTRA_OF[name]}]'" if name in EXTRA_OF else "pip install leuda"
    if find_spec(module) is None:
        return Finding(name=name, state="absent", detail=f"{module} is not installed", mend=mend)
    if name == "ort-cuda" or name in TENSORRT:
        if find_gpu() is None:
            return Finding(name=name, state="absent", detail="no NVIDIA GPU, or no driver for it")
        if name in TENSORRT and fitting_engine(model, TENSORRT[name]) is None:
            return Finding(
                name=name,
                state="absent",
                detail=f"{model.folder} has no engine that was proven and fits this machine",
                mend=f"leuda export {model.path} --trt",
            )
    try:
        ran = run_isolated(ENGINE_SECONDS, run_once, model, name)
    except LeudaError as error:
        return Finding(name=name, state="broken", detail=one_line(error), mend=mend)
    return Finding(name=name, state="works", detail=ran)


def _conflicts(packages: dict[str, str]) -> list[Finding]:
    """Packages that take each other's place."""
    found = []
    if {"onnxruntime", "onnxruntime-gpu"} <= packages.keys():
        found.append(
            Finding(
                name="onnxruntime",
                state="conflict",
                detail="onnxruntime and onnxruntime-gpu write the same module; the last one wins",
                mend="pip uninstall -y onnxruntime onnxruntime-gpu && pip install leuda",
            )
        )
    return found


def _cache() -> Finding:
    """Whether trials of engines can be kept."""
    try:
        folder = own_cache()
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, InputError) as error:
        return Finding(
            name="cache",
            state="broken",
            detail=f"{printable(str(cache_folder()))} cannot be used: {one_line(error)}",
            mend="export LEUDA_CACHE=FOLDER of your own; without it, engines are tried each time",
        )
    return Finding(name="cache", state="works", detail=str(folder))


def _dicom() -> Finding:
    lacking = [name for name in ("highdicom", "pydicom") if find_spec(name) is None]
    if lacking:
        detail = f"{' and '.join(lacking)} not installed: DICOM is not read"
        return Finding(
            name="dicom", state="absent", detail=detail, mend="pip install 'leuda[dicom]'"
        )
    return Finding(name="dicom", state="works", detail="series are read, SEG is written")


def usable_memory() -> int | None:
    """Bytes that this process may take: the machine's, or fewer in a control group."""
    try:
        total: int | None = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        total = None
    limit = _first_line("/sys/fs/cgroup/memory.max").strip()
    if limit.isdigit():
        return min(int(limit), total) if total else int(limit)
    return total


def _first_line(path: str) -> str:
    try:
        with Path(path).open() as file:
            return file.readline()
    except OSError:
        return ""
