"""export folder -> the same folder with TensorRT engines, each with its passport, or refused.

exports/NAME/model.onnx               the model file
exports/NAME/model.TARGET.engine      an engine built from it
exports/NAME/model.TARGET.json        its passport, to read; the manifest holds it, too
exports/NAME/manifest.json            SHA-256 of everything, passports
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from leuda_deploy.engines.open_engine import OnnxEngine, OpenVinoEngine
from leuda_deploy.engines.tensorrt import TensorRTEngine
from leuda_deploy.errors import ModelError, ParityError
from leuda_deploy.export.to_tensorrt import EngineTarget, to_tensorrt
from leuda_deploy.export.verify import PARITY_FILE
from leuda_deploy.machine.files import atomic_path, file_sha256
from leuda_deploy.machine.progress import Progress, no_progress
from leuda_deploy.model.export_folder import Manifest, read_manifest, write_manifest
from leuda_deploy.model.model_file import MODEL_FILE, find_model, read_model
from leuda_deploy.model.passport import Passport
from leuda_deploy.proof.layers import Float32
from leuda_deploy.proof.parity import LIMITS, Parity, check_parity, class_names, run_windows
from leuda_deploy.proof.probes import Probes, make_probes
from leuda_deploy.scans.stack import Stack
from leuda_deploy.scans.volume import read_volume


def add_engines(
    folder: Path,
    targets: list[EngineTarget],
    *,
    probes: Probes | None,
    progress: Progress = no_progress,
) -> dict[str, Passport]:
    """Build engines into an export folder. An engine that is there already is not built again.

    Engines for this machine's GPU are run and proven, unless they were before.

    Args:
        folder: The export folder.
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
    manifest = read_manifest(folder)
    found = file_sha256(folder / MODEL_FILE)
    if manifest.files.get(MODEL_FILE) != found:
        raise ModelError(f"{folder / MODEL_FILE} is not the one of the manifest beside it")
    engines = dict(manifest.engines)
    for target in targets:
        name = target.file_name
        there = (
            name in engines
            and engines[name].key() == target.key(found)
            and engines[name].sha256 == manifest.files.get(name) == _sha256_if_there(folder / name)
        )
        if not there:
            engines[name] = to_tensorrt(
                folder / MODEL_FILE,
                target,
                folder / name,
                cache=folder.parent / ".timing-cache",
                progress=progress,
            )
            _record(folder, engines)
        if target.gpu is not None and probes is not None and not engines[name].proven:
            try:
                prove_engine(folder, name, probes)
            except ParityError:
                for file in (folder / name, _passport_file(folder, name)):
                    file.unlink(missing_ok=True)
                write_manifest(folder, {k: v for k, v in engines.items() if k != name})
                raise
            engines = dict(read_manifest(folder).engines)
    return engines


def prove_engine(folder: Path, name: str, probes: Probes) -> Parity:
    """Compare an engine with ONNX Runtime on this GPU; from then on its passport says so."""
    engine = TensorRTEngine(folder, name, unproven=True)
    card = engine.card
    bf16 = card.precision == "bf16"  # which ONNX Runtime does not run on the CPU
    reference = OpenVinoEngine(folder, precision="fp32") if bf16 else OnnxEngine(folder)
    parity = check_parity(
        run_windows(reference, probes.windows),
        engine,
        probes,
        stage=f"ONNX {card.precision} -> {engine.description}",
        classes=class_names(card),
        # a reference of the same precision: two ways to round the same graph
        limits=LIMITS[card.precision],
    )
    engines = dict(read_manifest(folder).engines)
    engines[name] = engines[name].model_copy(
        update={"proven": True, "inspected": engine.inspect(), "memory_mb": engine.memory_mb}
    )
    _record(folder, engines)
    return parity


def _record(folder: Path, engines: Mapping[str, Passport]) -> Manifest:
    for name, passport in engines.items():
        with atomic_path(_passport_file(folder, name)) as temporary:
            temporary.write_text(passport.model_dump_json(indent=1))
    return write_manifest(folder, dict(engines))


def _sha256_if_there(path: Path) -> str | None:
    return file_sha256(path) if path.is_file() else None


def _passport_file(folder: Path, name: str) -> Path:
    return folder / f"{name.removesuffix('.engine')}.json"


def probes_of_scans(folder: Path, scans: list[Path]) -> Probes:
    """Windows of scans, prepared as the model's card says, to prove engines on."""
    card = read_model(find_model(folder))[1]
    windows: dict[str, Float32] = {}
    for path in scans:
        stack = Stack(read_volume(path), card.recipe, window_depth=card.depth)
        # of a 3D graph, windows that lie beside each other
        starts = range(0, stack.depth, stack.window_slices)
        windows[str(path)] = np.stack([stack.window_at(start) for start in starts])
    return make_probes(windows)


def summary(folder: Path, served: Path | None) -> dict[str, Any]:
    """What an export folder holds, for people ("lines") and programs."""
    model = folder / MODEL_FILE
    _, card = read_model(model)
    manifest = read_manifest(folder)
    size = model.stat().st_size / 1e6
    batches = "dynamic batch" + (" and window" if card.options.dynamic_window else "")
    lines = [
        ("model", f"{model} ({card.precision}, {size:.1f} MB, opset {card.opset}, {batches})"),
        ("feed", f"{card.feed}, {card.provenance.network} of {card.provenance.method}"),
    ]
    proof: dict[str, Any] = {}
    if (folder / PARITY_FILE).is_file():
        proof = json.loads((folder / PARITY_FILE).read_text())
    for stage in proof.get("stages", []):
        lines.append(
            (
                "proven",
                f"{stage['stage']}: largest |Δ| {stage['max_abs']:.2g} of the spread, "
                f"{stage['disagreement']:.3%} of pixels differ, over {stage['windows']} windows",
            )
        )
    if "int8_layers" in proof:
        kept, lifted = len(proof["int8_layers"]), len(proof["lifted_layers"])
        lines.append(("int8", f"{kept} convolutions, {lifted} lifted back until the gate passed"))
    for name, passport in manifest.engines.items():
        state = "proven" if passport.proven else "not run yet: no such GPU here, or no scans"
        lines.append(
            (
                "engine",
                f"{folder / name} ({passport.family} {passport.version}, SM "
                f"{passport.capability}, {passport.engine_mb} MB, {passport.build_seconds} s; "
                f"{state})",
            )
        )
    if served is not None:
        lines.append(("triton", str(served)))
    engine = " --engine openvino" if card.precision == "bf16" else ""
    lines.append(("next", f"leuda infer SCAN.nii.gz --model {folder}{engine}"))
    return {
        "card": card.model_dump(mode="json"),
        "parity": proof,
        "engines": {k: v.model_dump(mode="json") for k, v in manifest.engines.items()},
        "triton": None if served is None else str(served),
        "lines": lines,
    }
