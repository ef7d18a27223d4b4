"""export folder + private key -> manifest.sig; export folder + public key -> a manifest to trust.

The manifest holds the SHA-256 of every file and the passport of every engine, so a signature of its
bytes (Ed25519, RFC 8032) is one of the whole export: who can write a JSON cannot make an engine
"proven". Keys are PEM files as OpenSSL makes them:

    openssl genpkey -algorithm ed25519 -out KEY
    openssl pkey -in KEY -pubout -out KEY.pub
"""

from __future__ import annotations

import base64
import binascii
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from leuda_deploy.errors import InputError, MissingExtraError, ModelError, reading
from leuda_deploy.machine.files import atomic_path
from leuda_deploy.machine.outside import read_bytes
from leuda_deploy.model.export_folder import (
    MANIFEST_FILE,
    MAX_MANIFEST_BYTES,
    SIGNATURE_FILE,
    Manifest,
    parse_manifest,
)

MAX_KEY_BYTES = 64 << 10


def sign_export(folder: Path, key: Path) -> Path:
    """Sign an export as it is now; returns the signature's file.

    Raises:
        InputError: The key cannot be read, or is no Ed25519 private key.
        ModelError: The folder has no manifest that can be used.
        MissingExtraError: `cryptography` is not installed.
    """
    private = private_key(key)
    content = _manifest_bytes(folder)
    parse_manifest(content, folder / MANIFEST_FILE)
    target = folder / SIGNATURE_FILE
    with atomic_path(target) as temporary:
        temporary.write_bytes(base64.b64encode(private.sign(content)) + b"\n")
    return target


def signed_manifest(folder: Path, key: Path) -> Manifest:
    """The manifest of an export that the owner of this public key has signed.

    Raises:
        InputError: The key cannot be read, or is no Ed25519 public key.
        ModelError: The export is not signed, or not by this key, or was altered since.
        MissingExtraError: `cryptography` is not installed.
    """
    public = _public_key(key)
    content = _manifest_bytes(folder)
    path = folder / SIGNATURE_FILE
    if not path.is_file():
        raise ModelError(f"{folder} is not signed: it has no {SIGNATURE_FILE}")
    from cryptography.exceptions import InvalidSignature

    try:
        public.verify(
            base64.b64decode(read_bytes(path, failed=ModelError), validate=False), content
        )
    except (InvalidSignature, binascii.Error) as error:
        raise ModelError(
            f"{folder} was not signed with the key of {key}, or was altered since"
        ) from error
    return parse_manifest(content, folder / MANIFEST_FILE)


def private_key(path: Path) -> Any:
    """An Ed25519 private key from a PEM file without a password. Raises as `sign_export` does."""
    _need_cryptography("signing an export")
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    with reading(lambda what: InputError(f"{path} is no private key in PEM: {what}")):
        key = load_pem_private_key(read_bytes(path, most=MAX_KEY_BYTES), password=None)
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError(f"{path} is no Ed25519 key: openssl genpkey -algorithm ed25519 -out KEY")
    return key


def _public_key(path: Path) -> Any:
    _need_cryptography("checking a signature")
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    with reading(lambda what: InputError(f"{path} is no public key in PEM: {what}")):
        key = load_pem_public_key(read_bytes(path, most=MAX_KEY_BYTES))
    if not isinstance(key, Ed25519PublicKey):
        raise InputError(f"{path} is no Ed25519 key: openssl pkey -in KEY -pubout -out KEY.pub")
    return key


def _need_cryptography(what: str) -> None:
    if find_spec("cryptography") is None:
        raise MissingExtraError(what, "cryptography", "sign")


def _manifest_bytes(folder: Path) -> bytes:
    return read_bytes(folder / MANIFEST_FILE, most=MAX_MANIFEST_BYTES, failed=ModelError)
