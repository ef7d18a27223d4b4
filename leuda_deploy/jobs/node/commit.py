"""what a sender asks us to have stored (storage commitment, PS3.4 J) -> what of it we hold.

    QUEUE/commitments/*.json   the questions without an answer; they outlive the process

A sender asks after it has sent (N-ACTION). It is answered over an association of our own
(N-EVENT-REPORT), as it may have ended its own; so its port has to be known. Held is what lies on
the disk when the answer is made.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sqlite3
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from leuda_deploy.errors import InputError, LeudaError, keep_traceback, one_line, printable
from leuda_deploy.jobs.node.peers import Destination, Sender, Tls
from leuda_deploy.jobs.node.queue import Queue
from leuda_deploy.jobs.node.send import NotReachedError, NotTakenError
from leuda_deploy.machine.files import atomic_path, flush_folder
from leuda_deploy.machine.outside import read_json

_log = logging.getLogger(__name__)

FOLDER = "commitments"
MOST_IMAGES = 100_000  # of one question
MOST_BYTES = 64 << 20  # of one question, as a file
MOST_WAITING = 10_000  # questions
POLL_S = 0.5
ANSWER_S = 10.0  # for a scanner to take our call; the others wait for theirs meanwhile
FIRST_DELAY_S, LONGEST_DELAY_S, GIVE_UP_S = 2.0, 600.0, 24 * 3600.0
SUCCESS, PROCESSING_FAILURE, NO_SUCH_ACTION, NOT_AUTHORISED = 0x0000, 0x0110, 0x0123, 0x0124
INVALID_ARGUMENT = 0x0115
NO_SUCH_IMAGE, ANOTHER_CLASS = 0x0112, 0x0119  # why one is not held, PS3.3 C.14
ALL_HELD, SOME_FAILED = 1, 2  # types of event


class Commitments:
    """Questions of senders, and our answers.

    senders  who may ask: those whose port is known
    title    our AE title
    """

    def __init__(
        self, queue: Queue, senders: Sequence[Sender], *, title: str, tls: Tls | None
    ) -> None:
        self._queue, self._title, self._tls = queue, title, tls
        self._folder = queue.folder / FOLDER
        self._where = {
            f"{each.title}@{each.host}": Destination(
                title=each.title, host=each.host, port=each.port
            )
            for each in senders
            if each.host is not None and each.port is not None
        }
        self._tries: dict[Path, tuple[int, float]] = {}  # how often, and when again
        self._asked = threading.Event()

    @property
    def offered(self) -> bool:
        """Whether anybody could be answered."""
        return bool(self._where)

    def ask(self, sender: str, action: int, asked: Any) -> int:
        """Keep a question of a sender; the status of N-ACTION.

        sender  AET@HOST
        asked   pydicom.Dataset with TransactionUID and ReferencedSOPSequence
        """
        name = printable(sender, 80)
        if sender not in self._where:
            _log.warning("refused a commitment to %s: say its port, --from AET@HOST:PORT", name)
            return NOT_AUTHORISED
        if action != 1:
            return NO_SUCH_ACTION
        try:
            wanted = [
                (str(each.ReferencedSOPClassUID), str(each.ReferencedSOPInstanceUID))
                for each in asked.ReferencedSOPSequence
            ]
            transaction = str(asked.TransactionUID)
        except Exception as error:  # noqa: BLE001  (of a damaged data set, pydicom raises anything)
            _log.warning("refused a commitment to %s: %s", name, one_line(error))
            return INVALID_ARGUMENT
        if not (transaction.strip() and 0 < len(wanted) <= MOST_IMAGES):
            _log.warning("refused a commitment to %s: %d images", name, len(wanted))
            return INVALID_ARGUMENT
        number = hashlib.sha256(f"{sender} {transaction}".encode()).hexdigest()[:32]
        path = self._folder / f"{number}.json"
        question = {"to": sender, "transaction": transaction, "images": wanted}
        try:
            self._folder.mkdir(exist_ok=True)
            if sum(1 for _ in self._folder.iterdir()) >= MOST_WAITING:
                raise OSError("too many wait for an answer")
            with atomic_path(path) as temporary:
                temporary.write_text(json.dumps(question))
            flush_folder(self._folder)
        except OSError as error:
            _log.warning("cannot keep a commitment to %s: %s", name, one_line(error))
            return PROCESSING_FAILURE
        self._tries.pop(path, None)
        self._asked.set()
        return SUCCESS

    def answer_all(self, stop: threading.Event) -> None:
        """Answer what is asked, until `stop`; for a thread of its own."""
        while not stop.is_set():
            for path in sorted(self._folder.glob("[!.]*.json")):
                if not stop.is_set() and self._tries.get(path, (0, 0.0))[1] <= time.monotonic():
                    self._try(path)
            self._asked.wait(POLL_S)
            self._asked.clear()

    def _try(self, path: Path) -> None:
        try:
            self._answer(path)
        except (NotReachedError, NotTakenError, OSError, sqlite3.Error) as error:
            tries = self._tries.get(path, (0, 0.0))[0]
            delay = min(FIRST_DELAY_S * 2 ** min(tries, 20), LONGEST_DELAY_S)
            self._tries[path] = tries + 1, time.monotonic() + delay
            if path.is_file() and time.time() - path.stat().st_mtime > GIVE_UP_S:
                _log.warning("a commitment is given up: %s", one_line(error))
                self._done(path)
            else:
                _log.warning("a commitment is to be sent again: %s", one_line(error))
        except LeudaError as error:  # not as it was written
            _log.warning("a commitment cannot be answered: %s", one_line(error))
            self._tries[path] = 0, float("inf")
        except Exception as error:  # noqa: BLE001  (the thread goes on, whatever it is)
            _log.warning("a commitment: %s", keep_traceback(error))
            self._tries[path] = 0, float("inf")

    def _answer(self, path: Path) -> None:
        """Raises NotReachedError, NotTakenError; InputError if the file is none of ours."""
        question = read_json(path, most=MOST_BYTES, failed=InputError)
        if question["to"] not in self._where:
            raise InputError(f"--from AET@HOST:PORT names {question['to']} no more")
        where = self._where[question["to"]]
        event, answer = self._what_is_held(question)
        send_event(where, event, answer, title=self._title, tls=self._tls)
        self._done(path)
        missing = len(answer.get("FailedSOPSequence", ()))
        text = f"{len(question['images'])} images" + (f", {missing} of them not" * bool(missing))
        _log.info("said to %s what is held: %s", printable(where.title, 16), text)

    def _done(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self._tries.pop(path, None)

    def _what_is_held(self, question: Any) -> tuple[int, Any]:
        """The type of event, and its data set."""
        from pydicom import Dataset
        from pydicom.filereader import read_file_meta_info

        held: list[Dataset] = []
        failed: list[Dataset] = []
        for kind, image in question["images"]:
            item = Dataset()
            item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = kind, image
            path = self._queue.image(image)
            if path is None:
                item.FailureReason = NO_SUCH_IMAGE
            elif read_file_meta_info(path).MediaStorageSOPClassUID != kind:
                item.FailureReason = ANOTHER_CLASS
            (failed if "FailureReason" in item else held).append(item)
        answer = Dataset()
        answer.TransactionUID = question["transaction"]
        if held:
            answer.ReferencedSOPSequence = held
        if failed:
            answer.FailedSOPSequence = failed
        return (SOME_FAILED if failed else ALL_HELD), answer


def send_event(
    to: Destination, event: int, answer: Any, *, title: str, tls: Tls | None = None
) -> None:
    """Send an answer; when this returns, the other side has it.

    Raises:
        NotReachedError: There was no connection, or it broke off.
        NotTakenError: The other side refuses us, or the answer.
    """
    from pynetdicom import AE, build_role
    from pynetdicom.sop_class import (
        StorageCommitmentPushModel,
        StorageCommitmentPushModelInstance,
    )

    node = AE(ae_title=title)
    node.connection_timeout = node.acse_timeout = ANSWER_S
    node.add_requested_context(StorageCommitmentPushModel)
    where = f"{to.title}@{to.host}:{to.port}"
    association = node.associate(
        to.host,
        to.port,
        ae_title=to.title,
        ext_neg=[build_role(StorageCommitmentPushModel, scp_role=True)],
        tls_args=None if tls is None else (tls.calling(), to.host),
    )
    if not association.is_established:
        if association.is_rejected or association.rejected_contexts:
            raise NotTakenError(f"{where} takes no answer to its commitment from us ({title})")
        raise NotReachedError(f"{where} cannot be reached")
    try:
        status, _ = association.send_n_event_report(
            answer, event, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
        )
    finally:
        association.release()
    code = status.get("Status")
    if code is None:
        raise NotReachedError(f"{where} broke off")
    if code != SUCCESS:
        raise NotTakenError(f"{where} does not take our answer: status {code:#06x}")
