"""A signed export: forged manifests, foreign keys and altered files are refused."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from support.engine_files import with_engine
from support.makers import MakeModel

from leuda_deploy.errors import InputError, ModelError
from leuda_deploy.export.verify import verify
from leuda_deploy.model.export_folder import (
    CARD_FILE,
    MANIFEST_FILE,
    SIGNATURE_FILE,
    read_manifest,
    write_manifest,
)
from leuda_deploy.model.model_file import ModelFile
from leuda_deploy.model.passport import Passport
from leuda_deploy.model.signature import sign_export, signed_manifest

Keys = tuple[Path, Path]


def make_keys(folder: Path, name: str) -> Keys:
    key = Ed25519PrivateKey.generate()
    private, public = folder / name, folder / f"{name}.pub"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return make_keys(tmp_path, "key")


@pytest.fixture
def export(tmp_path: Path, make_model: MakeModel) -> Path:
    folder = tmp_path / "export"
    folder.mkdir()
    model = ModelFile.open(make_model(folder))
    (folder / CARD_FILE).write_text(model.card.to_json())
    write_manifest(folder)
    return folder


def test_a_signed_export_is_told_from_all_others(export: Path, keys: Keys, tmp_path: Path) -> None:
    private, public = keys
    with pytest.raises(ModelError):  # not signed
        verify(export, key=public)
    sign_export(export, private)
    assert verify(export, key=public).signed_by == str(public)
    assert verify(export).signed_by is None
    assert ModelFile.open_signed(export, public).manifest == read_manifest(export)
    _, other = make_keys(tmp_path, "other")
    with pytest.raises(ModelError):
        verify(export, key=other)


def test_who_can_write_a_json_cannot_make_an_engine_proven(export: Path, keys: Keys) -> None:
    private, public = keys
    with_engine(export, proven=False)
    sign_export(export, private)
    (passport,) = signed_manifest(export, public).engines.values()
    assert not passport.proven
    manifest = json.loads((export / MANIFEST_FILE).read_text())
    for engine in manifest["engines"].values():
        engine["proven"] = True
    (export / MANIFEST_FILE).write_text(json.dumps(manifest))
    forged = read_manifest(export).engines
    assert all(isinstance(engine, Passport) and engine.proven for engine in forged.values())
    with pytest.raises(ModelError):
        ModelFile.open_signed(export, public)


def test_a_new_manifest_has_no_old_signature(export: Path, keys: Keys) -> None:
    private, public = keys
    sign_export(export, private)
    write_manifest(export)
    assert not (export / SIGNATURE_FILE).exists()
    assert SIGNATURE_FILE not in read_manifest(export).files
    with pytest.raises(ModelError):
        signed_manifest(export, public)


def test_another_model_beside_a_signed_manifest_is_refused(
    export: Path, keys: Keys, make_model: MakeModel
) -> None:
    private, public = keys
    sign_export(export, private)
    make_model(export, name="another")
    with pytest.raises(ModelError):
        ModelFile.open_signed(export, public)


@pytest.mark.parametrize("content", [b"", b"no key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n"])
def test_what_is_no_key_is_refused(
    export: Path, keys: Keys, tmp_path: Path, content: bytes
) -> None:
    private, public = keys
    (tmp_path / "bad").write_bytes(content)
    with pytest.raises(InputError):
        sign_export(export, tmp_path / "bad")
    sign_export(export, private)
    for wrong in (tmp_path / "bad", private, tmp_path / "missing"):
        with pytest.raises(InputError):
            verify(export, key=wrong)
    (export / SIGNATURE_FILE).write_bytes(b"%%%")
    with pytest.raises(ModelError):
        verify(export, key=public)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here")
def test_keys_of_openssl_are_read(export: Path, tmp_path: Path) -> None:
    private, public = tmp_path / "k", tmp_path / "k.pub"
    subprocess.run(
        ["openssl", "genpkey", "-algorithm", "ed25519", "-out", private],
        check=True,
        capture_output=True,
    )
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True)
    sign_export(export, private)
    assert verify(export, key=public).signed_by
