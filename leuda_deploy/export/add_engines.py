"""export folder -> the same folder with TensorRT engines, each with its passport, or refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from leuda_deploy.engines.engine import EngineSettings
from leuda_deploy.engines.open_engine import reference_engine
from leuda_deploy.engines.tensorrt.engine import TensorRTEngine
from leuda_deploy.errors import ModelError, ParityError
from leuda_deploy.export.to_tensorrt import EngineTarget, to_tensorrt
from leuda_deploy.export.verify import Verified
from leuda_deploy.machine.files import atomic_path, file_sha256
from leuda_deploy.machine.progress import Progress, no_progress
from leuda_deploy.model.export_folder import (
    MODEL_FILE,
    Manifest,
    passport_file,
    read_manifest,
    write_manifest,
)
from leuda_deploy.model.model_file import ModelFile
from leuda_deploy.model.passport import Passport
from leuda_deploy.proof.choose_engine import try_all
from leuda_deploy.proof.parity import (
    TOLERANCES,
    Parity,
    check_parity,
    run_windows,
)
from leuda_deploy.proof.probes import Probes, probes_of_scans
from leuda_deploy.proof.trial import Trial

TRIED_WINDOWS = 8  # as at a first scan


def add_engines(
    model: ModelFile,
    targets: list[EngineTarget],
    *,
    probes: Probes | None,
    progress: Progress = no_progress,
) -> dict[str, Passport]:
    """Build engines into an export folder. An engine that is there already is not built again.

    Engines for this machine's GPU are run and proven, unless they were before.

    Args:
        model: The model file of the export folder.
        targets: What to build.
        probes: Windows to compare an engine of this machine on. Without them it stays unproven,
            and `leuda infer` does not load it.
        progress: Told how far the builder is.

    Returns:
        The passport of every engine in the folder, by file name.

    Raises:
        ParityError: An engine disagrees with ONNX Runtime; it is not kept.
        ModelError: The model file is not the one in the folder's manifest.
    """
    folder, manifest = model.folder, read_manifest(model.folder)
    if manifest.files.get(MODEL_FILE) != model.sha256:
        raise ModelError(f"{model.path} is not the one of the manifest beside it")
    engines = dict(manifest.engines)
    for target in targets:
        name = target.file_name
        there = (
            name in engines
            and engines[name].key() == target.key(model.sha256)
            and engines[name].sha256 == manifest.files.get(name) == _sha256_if_there(folder / name)
        )
        if not there:
            engines[name] = to_tensorrt(
                model,
                target,
                folder / name,
                cache=folder.parent / ".timing-cache",
                progress=progress,
            )
            _record(model, engines)
        if target.gpu is not None and probes is not None and not engines[name].proven:
            try:
                prove_engine(model, name, probes)
            except ParityError:
                for file in (folder / name, folder / passport_file(name)):
                    file.unlink(missing_ok=True)
                _record(model, {k: v for k, v in engines.items() if k != name})
                raise
            engines = dict(read_manifest(folder).engines)
    return engines


def prove_engine(model: ModelFile, name: str, probes: Probes) -> Parity:
    """Compare an engine with ONNX Runtime on this GPU; from then on its passport says so."""
    model = replace(model)  # its manifest as it is now
    engine = TensorRTEngine(model, name, unproven=True)
    card = model.card
    parity = check_parity(
        run_windows(reference_engine(model), probes.windows),
        engine,
        probes,
        stage=f"ONNX {card.precision} -> {engine.description}",
        card=card,
        # a reference of the same precision: two ways to round the same graph
        tolerances=TOLERANCES[card.precision],
    )
    engines = dict(read_manifest(model.folder).engines)
    engines[name] = engines[name].model_copy(
        update={"proven": True, "inspected": engine.inspect(), "memory_mb": engine.memory_mb}
    )
    _record(model, engines)
    return parity


def prove_here(found: Verified, scans: list[Path]) -> tuple[Trial, ...]:
    """Prove TensorRT engines of an export that fit this machine; try every engine that is here.

    Both on windows of scans. What is found is kept, so `infer` need not try them at its first scan.

    Raises:
        InputError: A scan cannot be used.
        ParityError: A TensorRT engine disagrees with ONNX Runtime; its passport stays as it was.
    """
    model = ModelFile.open(found.model)
    probes = probes_of_scans(model.card, scans)
    for engine in found.engines:
        if not engine.misfits:
            prove_engine(model, engine.name, probes)
    chosen = np.linspace(0, probes.real - 1, min(TRIED_WINDOWS, probes.real)).astype(int)
    windows = probes.windows[chosen]
    return try_all(ModelFile.open(found.model), EngineSettings(), lambda: windows)


def _record(model: ModelFile, engines: Mapping[str, Passport]) -> Manifest:
    for name, passport in engines.items():
        with atomic_path(model.folder / passport_file(name)) as temporary:
            temporary.write_text(passport.model_dump_json(indent=1))
    return write_manifest(model.folder, engines, known={MODEL_FILE: model.sha256})


def _sha256_if_there(path: Path) -> str | None:
    return file_sha256(path) if path.is_file() else None
