"""export folder or model file -> what it is, whether it is whole, and whether it fits here."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

from leuda_deploy.engines.tensorrt.engine_fit import installed_version, misfits, remedy
from leuda_deploy.errors import ModelError
from leuda_deploy.machine.files import file_sha256
from leuda_deploy.machine.gpu import Gpu, find_gpu
from leuda_deploy.machine.outside import read_json, read_text
from leuda_deploy.model.card import MAX_CARD_BYTES, parse_card
from leuda_deploy.model.export_folder import (
    CARD_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    Manifest,
    passport_file,
    read_manifest,
)
from leuda_deploy.model.model_file import ModelFile
from leuda_deploy.model.passport import Passport
from leuda_deploy.model.signature import signed_manifest


@dataclass(frozen=True, kw_only=True)
class EngineFinding:
    """One engine: what it was built for, why it cannot run here (nothing: it can), what to do."""

    name: str
    family: str
    target: str
    precision: str
    proven: bool
    misfits: list[str]
    remedy: str


@dataclass(frozen=True, kw_only=True)
class Verified:
    """An export that is whole: every file is what its manifest says.

    model_sha256    of the model file, as `sha256sum` prints it and `leuda infer` reports it
    content_sha256  over graph, weights and card, as the card inside the file says
    uncoded         structures without a code for DICOM
    signed_by       the key with which the signature was checked; None: it was not looked at
    """

    model: str
    name: str
    precision: str
    feed: str
    window: tuple[int, ...]
    structures: list[str]
    licence: str
    model_sha256: str
    content_sha256: str
    gpu: str | None
    files: int
    uncoded: list[str] = field(default_factory=list)
    signed_by: str | None = None
    engines: list[EngineFinding] = field(default_factory=list)

    def as_dict(self) -> dict[str, object]:
        """For --json."""
        return asdict(self)


def verify(path: Path | str, *, key: Path | None = None) -> Verified:
    """Check model file, card, manifest and passports. Nothing is run.

    Args:
        path: Export folder, or a model file by itself.
        key: Public key (PEM) of who must have signed the export.

    Returns:
        What it is. That an engine does not fit this machine is a finding, not an error.

    Raises:
        ModelError: In one line: something is missing, damaged, foreign or altered.
    """
    path = Path(path)
    model = ModelFile.open(path)
    signed = signed_manifest(model.folder, key) if key is not None else None
    card, gpu = model.card, find_gpu()
    manifest = Manifest(files={})
    if signed is not None or path.is_dir():
        manifest = signed or read_manifest(path)
        _check_files(model, manifest)
        written = model.folder / CARD_FILE
        text = read_text(written, most=MAX_CARD_BYTES, failed=ModelError)
        if parse_card(text, str(written)) != card:
            raise ModelError(f"{written} is not the card of {model.path}")
    engines = [_finding(model, name, passport, gpu) for name, passport in manifest.engines.items()]
    return Verified(
        model=str(model.path),
        name=card.name,
        precision=card.precision,
        feed=card.feed,
        window=card.window,
        structures=[structure.name for structure in card.structures],
        uncoded=[structure.name for structure in card.structures if structure.code is None],
        licence=card.licence,
        model_sha256=model.sha256,
        content_sha256=card.sha256,
        gpu=f"{gpu.name} (SM {gpu.capability})" if gpu else None,
        files=len(manifest.files),
        signed_by=None if key is None else str(key),
        engines=engines,
    )


def _finding(model: ModelFile, name: str, passport: Passport, gpu: Gpu | None) -> EngineFinding:
    version = installed_version(passport.family)
    wrong = misfits(passport, onnx_sha256=model.sha256, gpu=gpu, version=version)
    return EngineFinding(
        name=name,
        family=f"{passport.family} {passport.version}",
        target=f"{passport.target} (SM {passport.capability})",
        precision=passport.precision,
        proven=passport.proven,
        misfits=[str(misfit) for misfit in wrong],
        remedy=remedy(model.folder, passport, gpu, wrong) if wrong else "",
    )


def _check_files(model: ModelFile, manifest: Manifest) -> None:
    folder = model.folder
    for name, wanted in manifest.files.items():
        if not (folder / name).is_file():
            raise ModelError(f"{folder / name} is missing, though the manifest lists it")
        found = model.sha256 if name == MODEL_FILE else file_sha256(folder / name)
        if found != wanted:
            raise ModelError(
                f"{folder / name} is damaged or was altered (sha256 {found[:12]}, the manifest "
                f"says {wanted[:12]})"
            )
    if MODEL_FILE not in manifest.files:
        raise ModelError(f"{folder / MANIFEST_FILE} does not list {MODEL_FILE}")
    for engine in folder.glob("*.engine"):
        if engine.name not in manifest.engines:
            raise ModelError(f"{engine} is a foreign engine: the manifest does not know it")
    for name, passport in manifest.engines.items():
        if manifest.files.get(name) != passport.sha256:
            raise ModelError(f"the passport of {folder / name} is of another engine")
        beside = folder / passport_file(name)
        content = read_json(beside, failed=ModelError)
        if content != passport.model_dump(mode="json"):
            raise ModelError(f"{beside} is not the passport in the manifest")
