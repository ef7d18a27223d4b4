"""queue + model + peers -> a node that labels what comes and sends the results back.

images come  pynetdicom's threads   |   label  caller   |   send  a thread of its own

One series is labelled at a time, by the model that stays open. What waiting cannot mend fails with
its reason; a full disk or an archive that does not answer is tried again, ever less often.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from shutil import rmtree

from leuda_deploy.errors import LeudaError, keep_traceback, one_line, printable
from leuda_deploy.inference.segmenter import Segmenter
from leuda_deploy.jobs.find_jobs import DICOM_ENDINGS, Job
from leuda_deploy.jobs.node.commit import Commitments
from leuda_deploy.jobs.node.database import Entry
from leuda_deploy.jobs.node.peers import Destination, WebDestination
from leuda_deploy.jobs.node.queue import Queue
from leuda_deploy.jobs.node.receive import Door, Receiver
from leuda_deploy.jobs.node.send import NotReachedError, NotTakenError, send
from leuda_deploy.jobs.prepare import NO_WISHES, Wishes, scanner_modality
from leuda_deploy.jobs.run_jobs import run_job

_log = logging.getLogger(__name__)

POLL_S = 0.5
FIRST_DELAY_S, LONGEST_DELAY_S = 2.0, 600.0
MOST_REFUSALS = 8  # of an archive that answers, and does not take a result


@dataclass(frozen=True, kw_only=True)
class NodeSettings:
    """How a node works.

    door         where and from whom images are taken
    destination  who gets the results; None: they stay in the queue's folder
    kinds        what is made and sent: see DICOM_ENDINGS
    quiet_s      a series is complete when nothing came for so long, and nobody sends it
    keep_s       how long the files of what is done are kept
    show_names   whether the log may name patients
    """

    door: Door = field(default_factory=Door)
    destination: Destination | WebDestination | None = None
    kinds: tuple[str, ...] = ("dicom_seg", "dicom_sr")
    quiet_s: float = 10.0
    keep_s: float = 24 * 3600.0
    show_names: bool = False
    wishes: Wishes = NO_WISHES


class Node:
    """A queue that is filled, worked off and emptied."""

    def __init__(self, queue: Queue, segmenter: Segmenter, settings: NodeSettings) -> None:
        self.queue, self.segmenter, self.settings = queue, segmenter, settings
        door = settings.door
        self.commitments = Commitments(queue, door.senders, title=door.title, tls=door.tls)
        self.receiver = Receiver(queue, door, self._say_received, self.commitments)
        self._stop = threading.Event()
        self._send_now = threading.Event()

    @contextmanager
    def open(self) -> Iterator[None]:
        """Within the block images are taken, and results sent.

        Raises:
            InputError: Another process works on the queue, or the port cannot be had.
        """
        with self.queue.exclusively():
            if left := self.queue.recover():
                _log.info("%d series were under way when the last process ended", left)
            with self.receiver.listening():
                threads = [threading.Thread(target=self._send_all, name="leuda-send", daemon=True)]
                if self.commitments.offered:
                    answer, stop = self.commitments.answer_all, [self._stop]
                    threads.append(threading.Thread(target=answer, args=stop, daemon=True))
                for thread in threads:
                    thread.start()
                try:
                    yield
                finally:
                    self._stop.set()
                    self._send_now.set()
                    for thread in threads:
                        thread.join(timeout=1 / len(threads))

    def work(self) -> None:
        """Label what is complete, until the process is told to stop."""
        while not self._stop.is_set():
            if (entry := self._next()) is not None:
                self._label(entry)
            else:
                self._stop.wait(POLL_S)

    def _next(self) -> Entry | None:
        """The next complete series; a disk that is full for the moment ends nothing."""
        try:
            self.queue.clear(self.settings.keep_s)
            return self.queue.next_received(quiet_s=self.settings.quiet_s, busy=self.receiver.busy)
        except (sqlite3.Error, OSError) as error:
            _log.warning("the queue cannot be used now: %s", one_line(error))
            return None

    def _label(self, entry: Entry) -> None:
        try:
            self.queue.begin(entry.id)
            if (against := self._passed_over(entry)) is not None:
                _log.info("%s: passed over: %s", self._name(entry), against)
                self.queue.end(entry.id, "passed over", against)
                return
            results = self._results(entry)
            self.queue.labelled(entry.id, results)
            _log.info("%s: labelled", self._name(entry))
            self._send_now.set()
        except (OSError, MemoryError, sqlite3.Error) as error:
            why = one_line(error)
            _log.warning("%s: to be tried again: %s", self._name(entry), why)
            self._safely(lambda: self.queue.later(entry.id, "received", why, _delay(entry)))
        except LeudaError as error:
            why = one_line(error)
            _log.warning("%s: failed: %s", self._name(entry), why)
            self._safely(lambda: self.queue.end(entry.id, "failed", why))
        except Exception as error:  # noqa: BLE001  (one bad series stops no other)
            why = keep_traceback(error)
            _log.warning("%s: failed: %s", self._name(entry), why)
            self._safely(lambda: self.queue.end(entry.id, "failed", why))
        except BaseException:  # told to stop
            self._safely(lambda: self.queue.put_back(entry.id))
            raise

    def _passed_over(self, entry: Entry) -> str | None:
        """Why this series is not for this model; None if it is."""
        from leuda_deploy.scans.dicom import find_series

        card = self.segmenter.card
        for found in find_series(self.queue.images(entry.id)):
            if not (found.images or found.faults):
                continue
            meant = scanner_modality(card.modality)
            if meant is not None and found.modality != meant:
                return f"modality {found.modality}, and the model is for {card.modality}"
            if (against := card.series.against(found)) is not None:
                return against
        return None

    def _results(self, entry: Entry) -> dict[str, str]:
        """Label a series; kind -> SOPInstanceUID of what was written."""
        import pydicom

        folder = self.queue.results(entry.id)
        if folder.exists():  # of a process that was killed at it
            rmtree(folder)
        folder.mkdir(parents=True)
        job = Job(
            scan=self.queue.images(entry.id),
            output=folder / "labels.nii.gz",
            dicom={kind: _path(folder, kind) for kind in self.settings.kinds},
        )
        report = run_job(job, self.segmenter, overlay=False, wishes=self.settings.wishes)
        if report.not_written:
            kind, why = next(iter(report.not_written.items()))
            raise LeudaError(f"no {kind}: {why}")
        return {
            kind: str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID)
            for kind, path in job.dicom.items()
        }

    # --- a thread of its own

    def _send_all(self) -> None:
        destination = self.settings.destination
        while destination is not None and not self._stop.is_set():
            try:
                entry = self.queue.next_labelled()
                if entry is not None:
                    self._send(entry, destination)
                    continue
            except (sqlite3.Error, OSError) as error:
                _log.warning("the queue cannot be used now: %s", one_line(error))
            except Exception as error:  # noqa: BLE001  (the thread goes on, whatever it is)
                _log.warning("sending: %s", keep_traceback(error))
            self._send_now.wait(POLL_S)
            self._send_now.clear()

    def _send(self, entry: Entry, to: Destination | WebDestination) -> None:
        door = self.settings.door
        try:
            for kind, _ in self.queue.to_send(entry.id):
                path = _path(self.queue.results(entry.id), kind)
                if not path.is_file():
                    self.queue.end(entry.id, "failed", f"{path} is not there any more")
                    return
                send(path, to, title=door.title, tls=door.tls)
                self.queue.was_sent(entry.id, kind)
            _log.info("%s: sent to %s", self._name(entry), to.title)
        except (NotReachedError, NotTakenError) as error:
            why = one_line(error)
            if isinstance(error, NotTakenError) and entry.attempts + 1 >= MOST_REFUSALS:
                _log.warning("%s: failed: %s", self._name(entry), why)
                self.queue.end(entry.id, "failed", why)
            else:
                _log.warning("%s: to be sent again: %s", self._name(entry), why)
                self.queue.later(entry.id, "labelled", why, _delay(entry))

    # --- said

    def _say_received(self, series: str, sender: str) -> None:
        _log.info("images come from %s", sender)

    def _name(self, entry: Entry) -> str:
        what = f"series {entry.id} ({entry.images} images of {entry.sender})"
        if not self.settings.show_names:
            return what
        return f"{what} of {_patient(self.queue.images(entry.id))}"

    def _safely(self, change: Callable[[], None]) -> None:
        """Change the queue, if the disk lets us; else the next start finds the entry running."""
        try:
            change()
        except (sqlite3.Error, OSError) as error:
            _log.warning("the queue cannot be used now: %s", one_line(error))


def _path(folder: Path, kind: str) -> Path:
    return folder / DICOM_ENDINGS[kind].removeprefix("_")


def _delay(entry: Entry) -> float:
    """Seconds until the next try: twice as long each time."""
    return float(min(FIRST_DELAY_S * 2 ** min(entry.attempts, 20), LONGEST_DELAY_S))


def _patient(images: Path) -> str:
    import pydicom

    for path in images.glob("*.dcm"):
        try:
            dataset = pydicom.dcmread(path, specific_tags=["PatientName", "PatientID"])
            name, number = dataset.get("PatientName", ""), dataset.get("PatientID", "")
            return printable(f"{name} ({number})", 100)
        except Exception:  # noqa: BLE001  (of a damaged file, pydicom raises anything)
            continue
    return "?"
