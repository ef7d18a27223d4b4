"""What `leuda export` is asked of a graph that is there already."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.makers import MakeModel

pytest.importorskip("cryptography", reason="the sign extra is not installed")

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from leuda_deploy.errors import InputError
from leuda_deploy.export.verify import verify
from leuda_deploy.model.export_folder import CARD_FILE, SIGNATURE_FILE, write_manifest
from leuda_deploy.model.model_file import ModelFile
from leuda_train.export.request import ExportRequest, export_as_asked


@pytest.fixture
def model(make_model: MakeModel, tmp_path: Path) -> Path:
    path = make_model(tmp_path / "export")
    (path.parent / CARD_FILE).write_text(ModelFile.open(path).card.to_json())
    write_manifest(path.parent)
    return path


def test_an_export_can_be_signed_and_nothing_else(model: Path, tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    private, public = tmp_path / "my.key", tmp_path / "my.pub"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    export_as_asked(ExportRequest(source=model, kind="onnx", sign=private))
    assert verify(model.parent, key=public).signed_by == str(public)


def test_what_cannot_be_asked_is_refused_and_nothing_is_written(
    model: Path, tmp_path: Path
) -> None:
    wrong = [
        ExportRequest(source=model, kind="onnx"),  # nothing is asked
        ExportRequest(source=tmp_path / "none.onnx", kind="onnx", sign=tmp_path / "none.key"),
        ExportRequest(source=model, kind="onnx", sign=tmp_path / "none.key"),
    ]
    for request in wrong:
        with pytest.raises(InputError):
            export_as_asked(request)
    assert not (model.parent / SIGNATURE_FILE).exists()
