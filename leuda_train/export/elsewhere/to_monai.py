"""an export -> a MONAI bundle's metadata and graph.

    DIR/NAME/configs/metadata.json   what `python -m monai.bundle verify_metadata` accepts
    DIR/NAME/models/model.onnx       the model file, its card inside

The card says more than a bundle can: how a scan becomes windows, and what the scores mean. So there
is no inference.json: MONAI's own transforms do not do what every recipe says.
"""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path
from typing import Any

from leuda_deploy.errors import InputError
from leuda_deploy.machine.files import atomic_folder, write_json
from leuda_deploy.machine.outside import read_json
from leuda_deploy.model.card import ModelCard
from leuda_deploy.model.export_folder import MODEL_FILE
from leuda_deploy.model.model_file import ModelFile
from leuda_deploy.proof.parity import class_names

SCHEMA = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
    "meta_schema_20240725.json"
)
METADATA, EXPORTED = "configs/metadata.json", "exported by leuda"
FORMATS = {"CT": "hounsfield", "MR": "magnitude", "MRI": "magnitude"}


def to_monai(model: ModelFile, root: Path) -> Path:
    """Write the export as a bundle; returns its folder.

    Raises InputError if something else is there: a bundle of others holds their weights.
    """
    folder = root / model.card.name
    if os.path.lexists(folder) and not _is_ours(folder):
        raise InputError(
            f"{folder} is there already, and leuda did not write all of it; choose another "
            "--monai, or move it away"
        )
    with atomic_folder(folder) as temporary:
        (temporary / "configs").mkdir()
        (temporary / "models").mkdir()
        write_json(temporary / "configs" / "metadata.json", bundle_metadata(model.card))
        (temporary / "models" / MODEL_FILE).write_bytes(model.content)
    return folder


def _is_ours(folder: Path) -> bool:
    """Whether a folder holds what `to_monai` writes, and nothing else."""
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    if folder.is_symlink() or there != {"configs", "models", METADATA, f"models/{MODEL_FILE}"}:
        return False
    try:
        said = read_json(folder / METADATA)
    except InputError:
        return False
    changes = said.get("changelog") if isinstance(said, dict) else None
    return isinstance(changes, dict) and str(changes.get("1.0.0", "")).startswith(EXPORTED)


def bundle_metadata(card: ModelCard) -> dict[str, Any]:
    """The table of metadata.json."""
    version, said = metadata.version("leuda"), card.provenance
    names = [structure.name for structure in card.structures]
    return {
        "schema": SCHEMA,
        "version": "1.0.0",
        "changelog": {"1.0.0": f"{EXPORTED} {version}"},
        "monai_version": _installed("monai"),
        "pytorch_version": said.versions.get("torch", "none is needed"),
        "numpy_version": metadata.version("numpy"),
        "required_packages_version": {"leuda": version, "onnxruntime": _onnx_runtime()},
        "name": card.name,
        "task": f"Segmentation of {', '.join(names)} on {card.modality}",
        "description": f"{said.network} of {said.method}; model.onnx holds leuda's model card",
        "authors": "not stated",
        "copyright": card.licence,
        "data_source": said.cohort,
        "data_type": "nibabel",
        "eval_metrics": {f"dice_{name}": dice for name, dice in (said.test_dice or {}).items()},
        "intended_use": "Not a medical device: what it finds has to be looked at",
        "network_data_format": {
            "inputs": {"image": _tensor(card, card.channels or ("image",), inputs=True)},
            "outputs": {"pred": _tensor(card, class_names(card), inputs=False)},
        },
    }


def _tensor(card: ModelCard, names: tuple[str, ...], *, inputs: bool) -> dict[str, Any]:
    modality = card.modality.upper().replace(",", " ").split()
    format_of = next((FORMATS[word] for word in modality if word in FORMATS), "raw")
    sides: list[int | str] = [*card.window]
    if card.options.dynamic_window:
        sides = [f"{card.options.window_multiple}*n"] * len(sides)
    known = card.recipe.normalisation == "minmax" if inputs else card.probabilities
    return {
        "type": "image",
        "format": format_of if inputs else "segmentation",
        **({"modality": card.modality} if inputs else {}),
        "num_channels": len(names),
        "spatial_shape": sides,
        "dtype": "float32",
        "value_range": [-1 if inputs else 0, 1] if known else [],
        "is_patch_data": True,
        "channel_def": {str(k): name for k, name in enumerate(names)},
    }


def _installed(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none is needed"


def _onnx_runtime() -> str:
    from leuda_deploy.engines.runtimes import import_onnx_runtime

    return str(import_onnx_runtime().__version__)
