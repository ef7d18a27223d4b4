"""export folder -> the name of each file in it, and manifest.json: what belongs to it, by SHA-256.

exports/NAME/model.onnx               the model file
exports/NAME/card.json                its card, to read
exports/NAME/parity.json              what its proof found
exports/NAME/model.TARGET.engine      a TensorRT engine built from it
exports/NAME/model.TARGET.json        the engine's passport, to read; the manifest holds it, too
exports/NAME/manifest.json            SHA-256 of everything, passports
exports/NAME/manifest.sig             its signature, if it was signed
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from leuda_deploy.errors import InputError, ModelError, describe
from leuda_deploy.machine.files import atomic_path, file_sha256
from leuda_deploy.machine.outside import parse_json, read_bytes, read_json
from leuda_deploy.model.card import Text
from leuda_deploy.model.passport import Passport

PHANTOM_MODEL = Path(__file__).with_name("phantom-heart")  # a link to exports/, a folder in a wheel
MODEL_FILE, CARD_FILE, PARITY_FILE = "model.onnx", "card.json", "parity.json"
MANIFEST_FILE, SIGNATURE_FILE = "manifest.json", "manifest.sig"
UNLISTED = (MANIFEST_FILE, SIGNATURE_FILE)  # what the manifest does not list
ENGINE_ENDING = ".engine"
MAX_MANIFEST_BYTES = 8 << 20
FileName = Annotated[str, Field(pattern=r"^[\w.+-]{1,200}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Manifest(BaseModel):
    """Files of an export folder and their SHA-256; the passport of each engine among them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    files: dict[FileName, Sha256]
    engines: dict[FileName, Passport] = {}


def engine_file(target: str) -> str:
    """Name of the engine for a target, such as "rtx-ampere"."""
    return f"model.{target}{ENGINE_ENDING}"


def passport_file(engine: str) -> str:
    """Name of the file beside an engine that holds its passport."""
    return f"{engine.removesuffix(ENGINE_ENDING)}.json"


def check_replaceable(output: Path) -> None:
    """An export replaces an earlier export without engines, and nothing else. Raises InputError.

    Every file of the folder must be the one that its manifest names, by hash: what a user added or
    changed is not ours.
    """
    if output.name in ("", ".."):  # such a folder holds other things by its nature
        raise InputError(f"{output} cannot be an export; give it a name: -o exports/NAME")
    if not output.exists() and not output.is_symlink():
        return
    if output.is_symlink() or not output.is_dir():
        raise InputError(f"{output} is a file or a link; an export is a folder: -o exports/NAME")
    files = sorted(path.name for path in output.iterdir())
    engines = [name for name in files if name.endswith(ENGINE_ENDING)]
    if files and MANIFEST_FILE not in files:
        raise InputError(
            f"{output} holds other things than an export ({files[0]}, and no {MANIFEST_FILE}); "
            "choose another -o"
        )
    if engines:
        raise InputError(f"{output} holds engines ({engines[0]}); remove it or choose another -o")
    if files:
        _check_all_ours(output, files)


def _check_all_ours(output: Path, files: list[str]) -> None:
    try:
        known = read_manifest(output).files
    except ModelError as error:
        raise InputError(f"{error}; choose another -o") from error
    for name in files:
        path = output / name
        ours = path.is_file() and not path.is_symlink() and known.get(name) == file_sha256(path)
        if name not in UNLISTED and not ours:
            raise InputError(
                f"{path} was not written by the export in {output}, or was changed since; move it "
                "away or choose another -o"
            )


def write_manifest(
    folder: Path,
    engines: Mapping[str, Passport] | None = None,
    *,
    known: Mapping[str, str] | None = None,
) -> Manifest:
    """Write folder/manifest.json over the files that are in the folder now.

    A signature that was there is of another manifest: it is removed.

    known  SHA-256 of files that were hashed already, by name
    """
    known = known or {}
    files = {
        path.name: known.get(path.name) or file_sha256(path)
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name not in UNLISTED and not path.name.startswith(".")
    }
    manifest = Manifest(files=files, engines=dict(engines or {}))
    (folder / SIGNATURE_FILE).unlink(missing_ok=True)
    with atomic_path(folder / MANIFEST_FILE) as temporary:
        temporary.write_text(manifest.model_dump_json(indent=1))
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an export folder. Raises ModelError in one line if it cannot be used."""
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise ModelError(f"{folder} has no {MANIFEST_FILE}; it was not written by `leuda export`")
    return parse_manifest(read_bytes(path, most=MAX_MANIFEST_BYTES, failed=ModelError), path)


def parse_manifest(content: bytes, path: Path) -> Manifest:
    """The manifest that a file holds. Raises ModelError."""
    try:
        return Manifest.model_validate(parse_json(content, str(path), failed=ModelError))
    except ValidationError as error:
        raise ModelError(f"{path} is not valid: {describe(error)}") from error


class ProofStage(BaseModel):
    """What the export found about one engine, as far as it is shown."""

    stage: Text
    max_abs: float
    disagreement: float
    windows: int


class ProofTiling(BaseModel):
    """What the export found about one way of scoring less of a slice.

    pixels   share of those of windows over all of it
    refused  why it is not used; None: it is
    """

    whole: tuple[int, int] | None
    air: float | None
    pixels: float
    refused: Text | None


class Proof(BaseModel):
    """What an export says of its proof, as far as it is shown."""

    stages: tuple[ProofStage, ...] = ()
    int8_layers: tuple[Text, ...] | None = None
    lifted_layers: tuple[Text, ...] = ()
    tilings: tuple[ProofTiling, ...] = ()
    no_search: Text | None = None


def read_proof(folder: Path) -> tuple[dict[str, Any], Proof]:
    """What the export found, all of it and what is shown of it; empty if it holds none.

    Raises ModelError.
    """
    path = folder / PARITY_FILE
    if not path.is_file():
        return {}, Proof()
    content = read_json(path, most=MAX_MANIFEST_BYTES, failed=ModelError)
    try:
        return content, Proof.model_validate(content)
    except ValidationError as error:
        raise ModelError(f"{path} is not valid: {describe(error)}") from error


def default_model() -> Path:
    """The folder of the phantom model that comes with leuda. Raises ModelError if it is missing."""
    folder = PHANTOM_MODEL.resolve()
    if not folder.is_dir():
        raise ModelError(
            f"the phantom model that comes with leuda is not at {folder}; give --model"
        )
    return folder
