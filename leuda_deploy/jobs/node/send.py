"""a result's file -> another node, by C-STORE or, over the web, by STOW-RS."""

from __future__ import annotations

import os
from pathlib import Path

from leuda_deploy.errors import LeudaError, MissingExtraError, one_line
from leuda_deploy.jobs.node.peers import Destination, Tls, WebDestination

AUTHORIZATION = "LEUDA_RETURN_AUTHORIZATION"  # a header's value, which no list of processes shows
WEB_S = (10.0, 120.0)  # to connect, and without an answer
WARNINGS = range(0xB000, 0xC000)  # it is stored, if not quite as it was sent


class NotReachedError(LeudaError):
    """Nobody answers there, or not to the end: to be tried again for as long as it takes."""


class NotTakenError(LeudaError):
    """It answers, and does not take the object."""


def send(
    path: Path, to: Destination | WebDestination, *, title: str, tls: Tls | None = None
) -> None:
    """Send one DICOM object; when this returns, the other side has said that it is stored.

    Args:
        path: The object.
        to: Who gets it.
        title: Our AE title.
        tls: How to keep it secret on the way.

    Raises:
        NotReachedError: There was no connection, or it broke off.
        NotTakenError: The other side refuses us, the kind of object, or this one.
    """
    if isinstance(to, WebDestination):
        _send_web(path, to, tls)
        return
    from pydicom.filereader import read_file_meta_info
    from pynetdicom import AE, build_context

    meta = read_file_meta_info(path)
    node = AE(ae_title=title)
    node.connection_timeout = 10
    context = build_context(meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID)
    where = f"{to.title}@{to.host}:{to.port}"
    association = node.associate(
        to.host,
        to.port,
        contexts=[context],
        ae_title=to.title,
        tls_args=None if tls is None else (tls.calling(), to.host),
    )
    if not association.is_established:
        if association.is_rejected:
            raise NotTakenError(f"{where} refuses us ({title})")
        if association.rejected_contexts:
            raise NotTakenError(f"{where} does not take {meta.MediaStorageSOPClassUID.name}")
        raise NotReachedError(f"{where} cannot be reached")
    try:
        status = association.send_c_store(path)
    except (ValueError, RuntimeError, OSError) as error:
        raise NotTakenError(f"{where} does not take {path.name}: {one_line(error)}") from error
    finally:
        association.release()
    code = status.get("Status") if status else None
    if code is None:
        raise NotReachedError(f"{where} broke off")
    if code != 0 and code not in WARNINGS:
        said = f"status {code:#06x} {status.get('ErrorComment', '')}".rstrip()
        raise NotTakenError(f"{where} does not take {path.name}: {said}")


def _send_web(path: Path, to: WebDestination, tls: Tls | None) -> None:
    """The same by STOW-RS."""
    import pydicom

    try:
        import requests
        from dicomweb_client import DICOMwebClient
    except ImportError as error:
        raise MissingExtraError("sending by STOW-RS", "dicomweb-client", "node") from error
    with requests.Session() as session:
        if (authorization := os.environ.get(AUTHORIZATION)) is not None:
            session.headers["Authorization"] = authorization
        if tls is not None:
            session.cert, session.verify = (str(tls.certificate), str(tls.key)), str(tls.authority)
        client = DICOMwebClient(url=to.url, session=session, timeout=WEB_S)
        client.set_http_retry_params(retry=False)
        try:
            answer = client.store_instances([pydicom.dcmread(path)])
        except requests.HTTPError as error:
            code = error.response.status_code
            kind = NotTakenError if code < 500 else NotReachedError
            raise kind(f"{to.url} does not take {path.name}: status {code}") from error
        except requests.RequestException as error:
            raise NotReachedError(f"{to.url} cannot be reached: {one_line(error)}") from error
    for failed in answer.get("FailedSOPSequence") or ():
        reason = int(failed.get("FailureReason", 0))
        raise NotTakenError(f"{to.url} does not take {path.name}: reason {reason:#06x}")
