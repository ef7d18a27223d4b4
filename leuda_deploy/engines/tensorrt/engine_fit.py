"""TensorRT engine of an export folder + this machine -> may it be loaded here; if not, why not.

An engine is code. It is loaded only if its hash is in the manifest beside it, its passport fits
this machine, and it was proven to agree with ONNX Runtime. Nothing here loads one.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from leuda_deploy.errors import ModelError
from leuda_deploy.machine.gpu import Gpu, find_gpu
from leuda_deploy.model.export_folder import MODEL_FILE
from leuda_deploy.model.model_file import ModelFile
from leuda_deploy.model.passport import Family, Passport

MisfitReason = Literal["model", "version", "compute capability", "gpu"]
Refusal = Literal["no export", "missing", "altered", "misfit", "unproven", "unloadable"]
SHOWN_DIGITS = 12  # of a hash


@dataclass(frozen=True, kw_only=True)
class CheckedEngine:
    """An engine that may be loaded here.

    content   its bytes: the very ones that were hashed
    passport  what it is
    gpu       that it runs on
    """

    path: Path
    content: bytes = field(repr=False)
    passport: Passport
    gpu: Gpu


@dataclass(frozen=True, kw_only=True)
class Misfit:
    """One reason why an engine cannot run here.

    field   of the passport, as people read it
    wants   what the engine was built for; here: what is here, or None
    """

    reason: MisfitReason
    field: str
    wants: str
    here: str | None

    def __str__(self) -> str:
        wants, here = self.wants, self.here or "missing"
        if self.reason == "model":  # whole hashes are compared; their beginning is enough to show
            wants, here = wants[:SHOWN_DIGITS], here[:SHOWN_DIGITS]
        return f"{self.field}: the engine is for {wants}, here it is {here}"


class EngineRefusedError(ModelError):
    """An engine that is not loaded here; `misfits` are the reasons where it does not fit."""

    def __init__(self, message: str, refusal: Refusal, misfits: Sequence[Misfit] = ()) -> None:
        super().__init__(message)
        self.refusal, self.misfits = refusal, tuple(misfits)


def misfits(
    passport: Passport, *, onnx_sha256: str, gpu: Gpu | None, version: str | None
) -> list[Misfit]:
    """Why an engine cannot run here, field by field; empty if it can.

    version  of the installed builder family, None if it is not installed
    """
    compared: list[tuple[MisfitReason, str, str | None, str | None]] = [
        ("model", "onnx_sha256", passport.onnx_sha256, onnx_sha256),
        ("version", f"{passport.family} version", passport.version, version),
        (
            "compute capability",
            "compute capability",
            passport.capability,
            gpu.capability if gpu else None,
        ),
        ("gpu", "gpu", passport.gpu, gpu.name if gpu else None),
    ]
    return [
        Misfit(reason=reason, field=field, wants=wants, here=here)
        for reason, field, wants, here in compared
        # an engine that was built ahead of time is for any GPU of its capability
        if wants is not None and wants != here
    ]


def build_again(folder: Path, passport: Passport, gpu: Gpu | None) -> str:
    """How to build an engine in the place of this one."""
    build = f"leuda export {folder / MODEL_FILE} --trt"
    if gpu is not None:
        return f"build one for this machine's {gpu.name}: {build}"
    if passport.gpu is None:
        return f"build it again: {build} --trt-target {passport.target}"
    return f"build it again beside its {passport.gpu}: {build}"


def remedy(folder: Path, passport: Passport, gpu: Gpu | None, wrong: Sequence[Misfit]) -> str:
    """What to do about an engine that cannot run here, which is not always to build it again."""
    of_the_gpu = {"compute capability", "gpu"}
    if gpu is not None or any(misfit.reason not in of_the_gpu for misfit in wrong):
        return build_again(folder, passport, gpu)
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


def check_engine(model: ModelFile, name: str, *, unproven: bool = False) -> CheckedEngine:
    """An engine beside a model file that may be loaded here.

    unproven  accept one that was not yet compared with ONNX Runtime, to compare it

    Raises EngineRefusedError, naming the field and the command that builds it again.
    """
    folder, manifest = model.folder, model.manifest
    if manifest is None:
        raise no_export(model)
    path, gpu = folder / name, find_gpu()
    passport = manifest.engines.get(name)
    if passport is None or not path.is_file():
        raise EngineRefusedError(
            f"{folder} has no engine {name}; it has {sorted(manifest.engines)}", "missing"
        )
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if not found == manifest.files.get(name) == passport.sha256:
        raise EngineRefusedError(
            f"{path} is not the engine of the manifest beside it (sha256 {found[:SHOWN_DIGITS]}, "
            f"the manifest says {passport.sha256[:SHOWN_DIGITS]}); nothing was loaded. "
            f"{build_again(folder, passport, gpu)}",
            "altered",
        )
    version = installed_version(passport.family)
    wrong = misfits(passport, onnx_sha256=model.sha256, gpu=gpu, version=version)
    if wrong:
        raise EngineRefusedError(
            f"{path} does not fit: {wrong[0]}; {remedy(folder, passport, gpu, wrong)}",
            "misfit",
            wrong,
        )
    assert gpu is not None  # or the engine would not fit
    if not passport.proven and not unproven:
        raise EngineRefusedError(
            f"{path} was never compared with ONNX Runtime on a GPU; prove it here: "
            f"leuda verify {folder} --prove SCAN",
            "unproven",
        )
    return CheckedEngine(path=path, content=content, passport=passport, gpu=gpu)


def fitting_engine(model: ModelFile, family: Family) -> str | None:
    """The engine beside a model file that was proven and may run here, by its passport; or None."""
    engines = model.manifest.engines if model.manifest else {}
    proven = {n: p for n, p in engines.items() if p.family == family and p.proven}
    if not proven:  # then the builder, a hundred megabytes, is not loaded to ask its version
        return None
    version, gpu = installed_version(family), find_gpu()
    for name, passport in proven.items():
        if version and not misfits(passport, onnx_sha256=model.sha256, gpu=gpu, version=version):
            return name
    return None


def no_export(model: ModelFile) -> EngineRefusedError:
    """The refusal of a model file that no engine can lie beside."""
    if model.path.name != MODEL_FILE:
        message = f"{model.path} is no export folder's {MODEL_FILE}; engines lie beside that"
    else:
        message = f"{model.folder} has no manifest; it was not written by `leuda export`"
    return EngineRefusedError(message, "no export")
