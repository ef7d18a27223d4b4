"""what the user says of other nodes -> who may send, who gets results, and TLS."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from leuda_deploy.errors import InputError, one_line

LOCAL = ("127.0.0.1", "localhost", "::1")
MAX_TITLE = 16  # characters of an AE title, as the format has it


@dataclass(frozen=True, kw_only=True)
class Sender:
    """An AE title that may send; from this host alone, if one is named.

    port  of the host, on which it takes answers to what it asks us to have stored
    """

    title: str
    host: str | None = None
    port: int | None = None


@dataclass(frozen=True, kw_only=True)
class Destination:
    """Where results go."""

    title: str
    host: str
    port: int


@dataclass(frozen=True, kw_only=True)
class WebDestination:
    """Where results go by DICOMweb (STOW-RS), e.g. https://pacs.example/dicom-web."""

    url: str

    @property
    def title(self) -> str:
        """What the log calls it."""
        return self.url


@dataclass(frozen=True, kw_only=True)
class Tls:
    """Files (PEM) with which connections are kept secret, both ways.

    certificate, key  this node's own
    authority         who signs the others'; a sender without such a certificate is refused
    """

    certificate: Path
    key: Path
    authority: Path

    def accepting(self) -> ssl.SSLContext:
        """For senders. Raises InputError if a file cannot be used."""
        return self._context(ssl.Purpose.CLIENT_AUTH)

    def calling(self) -> ssl.SSLContext:
        """For the destination. Raises InputError if a file cannot be used."""
        return self._context(ssl.Purpose.SERVER_AUTH)

    def _context(self, purpose: ssl.Purpose) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(purpose, cafile=str(self.authority))
            context.load_cert_chain(str(self.certificate), str(self.key))
        except (OSError, ssl.SSLError) as error:
            files = f"{self.certificate}, {self.key}, {self.authority}"
            raise InputError(f"cannot use {files} for TLS: {one_line(error)}") from error
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.verify_mode = ssl.CERT_REQUIRED
        return context


def parse_sender(text: str) -> Sender:
    """ "SCANNER", "SCANNER@10.0.0.5" or "SCANNER@10.0.0.5:104". Raises InputError."""
    title, at, host = text.partition("@")
    port = None
    if found := re.fullmatch(r"([^:]*):(\d+)", host):
        host, port = found[1], int(found[2])
    if (at and not host) or (port is not None and not 0 < port < 1 << 16):
        raise InputError(f"--from reads AET, AET@HOST or AET@HOST:PORT, not {text!r}")
    return Sender(title=check_title(title, "--from"), host=host or None, port=port)


def parse_destination(text: str) -> Destination | WebDestination:
    """ "PACS@10.0.0.9:104", or "https://pacs.example/dicom-web". Raises InputError."""
    if text.startswith(("http://", "https://")):
        parts = urlsplit(text)
        if parts.username or parts.password or parts.query or not parts.hostname:
            raise InputError(
                "--return: a URL holds no user or query; see LEUDA_RETURN_AUTHORIZATION"
            )
        if parts.scheme == "http" and parts.hostname not in LOCAL:
            raise InputError(f"--return {text} would send patients' images unsealed: use https")
        return WebDestination(url=text.rstrip("/"))
    title, _, address = text.partition("@")
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 1 << 16):
        raise InputError(f"--return reads AET@HOST:PORT or https://..., not {text!r}")
    return Destination(title=check_title(title, "--return"), host=host, port=int(port))


def check_title(title: str, option: str) -> str:
    """An AE title that can be one. Raises InputError."""
    title = title.strip()
    if not (0 < len(title) <= MAX_TITLE and title.isascii() and title.isprintable()) or (
        "\\" in title
    ):
        raise InputError(
            f"{option}: an AE title has 1 to {MAX_TITLE} letters or digits, not {title!r}"
        )
    return title
