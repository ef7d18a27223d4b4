"""`leuda listen` between real neighbours: dcmtk sends, Orthanc gets the results -> a JSON file.

    python benchmarks/neighbours/hospital_node.py benchmarks/results/hospital_node.json

Small CT studies (parts of phantoms) come in a burst from two senders, while the node is killed
(SIGKILL) again and again, and started anew. A sender that was not told that all is stored sends the
study again, as scanners do. In the end Orthanc must hold one SEG and one report of each study, with
the labels that the model gives without a network: their UIDs follow from the labels.

Needs Debian's orthanc and dcmtk.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from nibabel.affines import voxel_sizes
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from leuda_deploy import Segmenter, Settings
from leuda_deploy.jobs.dicom_out import Findings
from leuda_deploy.jobs.node.queue import Queue
from leuda_deploy.machine.files import write_json
from leuda_deploy.scans.dicom import read_series
from leuda_train.data.phantom.anatomy import draw_anatomy
from leuda_train.data.phantom.scanner import PROTOCOLS, draw_affine, render_ct

ORTHANC = shutil.which("Orthanc") or "/usr/sbin/Orthanc"
ROOT = Path(__file__).parents[2]
OURS = "2.25.7777"  # of the made studies: 2.25.7777STUDY.SERIES.IMAGE
ENGINE = "ort-cpu"  # the same in both, and the same labels whatever the threads
SENDERS = ("SCANNER_A", "SCANNER_B")
SLICES, SIDE = 8, 64
MOST_SECONDS = 3600.0


def write_studies(folder: Path, count: int) -> list[Path]:
    """Folders of one CT series each, no two alike."""
    rng = np.random.default_rng([0, 0])
    shape, affine = draw_affine(rng, PROTOCOLS["ct"])
    values = render_ct(draw_anatomy(rng, shape, affine), rng, voxel_sizes(affine))
    spacing = voxel_sizes(affine)
    x, y = ((n - min(n, SIDE)) // 2 for n in values.shape[:2])
    depth = values.shape[2]
    studies = []
    for k in range(count):
        start = int((depth - SLICES) * k / max(1, count))
        part = values[x : x + SIDE, y : y + SIDE, start : start + SLICES] + np.int16(k % 7)
        studies.append(folder / f"study_{k:03d}")
        write_series(studies[-1], part, spacing, k)
    return studies


def write_series(folder: Path, values: Any, spacing: Any, number: int) -> None:
    """A CT series of values (X, Y, Z), whose axes run left, back and up."""
    folder.mkdir(parents=True)
    for z in range(values.shape[2]):
        image = Dataset()
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID = CTImageStorage
        image.StudyInstanceUID = f"{OURS}{number:03d}.1"
        image.SeriesInstanceUID = f"{OURS}{number:03d}.1.1"
        image.SOPInstanceUID = f"{OURS}{number:03d}.1.1.{z + 1}"
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        image.FrameOfReferenceUID = f"{OURS}{number:03d}.2"
        image.PatientName, image.PatientID = f"Phantom^{number}", f"P{number:03d}"
        image.PatientBirthDate = image.PatientSex = image.AccessionNumber = ""
        image.StudyDate, image.StudyTime, image.StudyID = "20260101", "120000", str(number)
        image.ReferringPhysicianName = image.PositionReferenceIndicator = ""
        image.Modality, image.SeriesNumber, image.InstanceNumber = "CT", 1, z + 1
        image.SeriesDescription, image.Manufacturer = "made heart", "leuda phantom"
        image.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        image.Rows, image.Columns = values.shape[1], values.shape[0]
        image.PixelSpacing = [float(spacing[1]), float(spacing[0])]
        image.SliceThickness = float(spacing[2])
        image.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        image.ImagePositionPatient = [0.0, 0.0, round(float(spacing[2]) * z, 4)]
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.BitsAllocated, image.BitsStored, image.HighBit = 16, 16, 15
        image.PixelRepresentation = 1
        image.RescaleSlope, image.RescaleIntercept = 1, 0
        # patients lie with their left to higher columns, and their back to higher rows
        plane = values[::-1, ::-1, z].T
        image.PixelData = np.ascontiguousarray(plane, dtype=np.int16).tobytes()
        image.save_as(folder / f"{z:03d}.dcm", enforce_file_format=True)


def free_port() -> int:
    """A port that nobody has at the moment."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


class Orthanc:
    """Orthanc on this computer, for as long as the block lasts."""

    def __init__(self, folder: Path) -> None:
        self.dicom_port, self.http_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.http_port}"
        self._folder = folder

    @contextmanager
    def running(self) -> Iterator[Orthanc]:
        """Wait until it answers."""
        self._folder.mkdir(parents=True, exist_ok=True)
        config = {
            "Name": "Orthanc of the test",
            "StorageDirectory": str(self._folder / "storage"),
            "IndexDirectory": str(self._folder / "storage"),
            "HttpPort": self.http_port,
            "DicomPort": self.dicom_port,
            "DicomAet": "ORTHANC",
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "Plugins": [],
        }
        path = self._folder / "orthanc.json"
        path.write_text(json.dumps(config))
        with (self._folder / "orthanc.log").open("w") as log:
            process = subprocess.Popen([ORTHANC, str(path)], stdout=log, stderr=log)
            try:
                self._wait(process)
                yield self
            finally:
                process.terminate()
                process.wait(timeout=30)

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        for _ in range(300):
            with suppress(OSError):
                self.get("/system")
                return
            if process.poll() is not None:
                break
            time.sleep(0.2)
        raise SystemExit(f"Orthanc does not start: {self._folder / 'orthanc.log'}")

    def get(self, path: str) -> Any:
        """A resource of its REST interface, JSON or bytes."""
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            content = answer.read()
        return content if path.endswith("/file") else json.loads(content)

    def results(self) -> list[Dataset]:
        """All SEG and SR objects that it holds."""
        found = []
        for series in self.get("/series"):
            said = self.get(f"/series/{series}")
            if said["MainDicomTags"]["Modality"] in ("SEG", "SR"):
                for instance in said["Instances"]:
                    content = self.get(f"/instances/{instance}/file")
                    found.append(pydicom.dcmread(pydicom.filebase.DicomBytesIO(content)))
        return found


class ListenProcess:
    """`leuda listen` in a process of its own, which can be killed and started again."""

    def __init__(self, folder: Path, to: Orthanc, *, quiet_s: float, more: list[str]) -> None:
        self.queue, self.port = folder / "queue", free_port()
        self._log = folder / "listen.log"
        self._command = [
            *(sys.executable, "-m", "leuda_train", "listen", "--queue", str(self.queue)),
            *("--engine", ENGINE),
            *("--port", str(self.port), "--return", f"ORTHANC@127.0.0.1:{to.dicom_port}"),
            *("--quiet", str(quiet_s), "--threads", "1", *more),
            *(part for title in SENDERS for part in ("--from", f"{title}@127.0.0.1")),
        ]
        self.process: subprocess.Popen[bytes] | None = None
        self.peak_mb = 0.0

    def start(self) -> None:
        """Start it, and return when it answers a C-ECHO."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with self._log.open("a") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log, env=environment)
        for _ in range(600):
            if self.process.poll() is not None:
                raise SystemExit(f"leuda listen ended: {self.said()[-2000:]}")
            echo = ["echoscu", "-aet", SENDERS[0], "-aec", "LEUDA", "127.0.0.1", str(self.port)]
            if subprocess.run(echo, capture_output=True, check=False).returncode == 0:
                return
            time.sleep(0.2)
        raise SystemExit("leuda listen does not answer")

    def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None
        with suppress(OSError, IndexError):
            status = Path(f"/proc/{self.process.pid}/status").read_text()
            self.peak_mb = max(self.peak_mb, int(status.split("VmHWM:")[1].split()[0]) / 1000)
        self.process.kill()
        self.process.wait()

    def said(self) -> str:
        """All that it logged."""
        return self._log.read_text()


def send_all(studies: list[Path], title: str, port: int, tries: Counter[str]) -> None:
    """Send studies one after another; each until the other side says that all is stored."""
    for study in studies:
        command = ["storescu", "-aet", title, "-aec", "LEUDA", "127.0.0.1", str(port), "+sd"]
        while True:
            tries[study.name] += 1
            if subprocess.run([*command, str(study)], capture_output=True).returncode == 0:
                break
            time.sleep(0.5)


def moments_of(kills: int, studies: int) -> list[Callable[[dict[str, int], int], bool]]:
    """When to kill: half of the times as so many images have come, then as so many are sent.

    The latter while another is labelled, or waits to be sent. On a slow machine all takes longer,
    and the moments are the same.
    """
    early, late = kills // 2, kills - kills // 2
    images = [studies * SLICES * (k + 1) // (early + 1) for k in range(early)]
    sent = [studies * k // (late + 1) for k in range(1, late + 1)]
    return [
        *(lambda counts, come, at=at: come >= at for at in images),
        *(
            lambda counts, come, at=at: (
                counts.get("sent", 0) >= at
                and counts.get("running", 0) + counts.get("labelled", 0) > 0
            )
            for at in sent
        ),
    ]


def expected(studies: list[Path], model: Path | None) -> set[str]:
    """UIDs of the SEGs that the model gives without a network."""
    segmenter = Segmenter(model, Settings(engine=ENGINE, threads=1))
    uids = set()
    for study in studies:
        series = read_series(study)
        found = segmenter(series.volume)
        findings = Findings(
            labels=found.labels,
            series=series,
            card=segmenter.card,
            model_sha256=segmenter.sha256,
            low_confidence=found.low_confidence,
        )
        uids.add(findings.uid("SEG", "binary"))
    return uids


def measure(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """The burst and the kills."""
    studies = write_studies(folder / "studies", args.studies)
    wanted = expected(studies, args.model)
    tries = Counter[str]()
    more = [] if args.model is None else ["--model", str(args.model)]
    with Orthanc(folder / "orthanc").running() as orthanc:
        node = ListenProcess(folder, orthanc, quiet_s=args.quiet, more=more)
        node.start()
        began = time.monotonic()
        threads = [
            threading.Thread(target=send_all, args=(studies[i::2], title, node.port, tries))
            for i, title in enumerate(SENDERS)
        ]
        for thread in threads:
            thread.start()
        kills, received_s, killed_while = 0, 0.0, Counter[str]()
        queue = Queue(node.queue)
        moments = moments_of(args.kills, len(studies))
        while (now := time.monotonic()) - began < MOST_SECONDS:
            sending = any(thread.is_alive() for thread in threads)
            received_s = received_s or (0.0 if sending else now - began)
            counts = queue.counts()
            if moments and moments[0](counts, sum(entry.images for entry in queue.entries(1000))):
                killed_while["a sender sends"] += sending
                killed_while["a series is labelled"] += counts.get("running", 0) > 0
                killed_while["results wait to be sent"] += counts.get("labelled", 0) > 0
                moments.pop(0)
                node.kill()
                node.start()
                kills += 1
            elif counts.get("sent", 0) + counts.get("failed", 0) == len(studies) and not sending:
                break
            time.sleep(0.02)
        seconds = time.monotonic() - began
        node.kill()
        results = orthanc.results()
        if args.pictures is not None:
            take_pictures(args.pictures, orthanc, queue, studies)
        kinds = Counter(each.Modality for each in results)
        a_study = Counter((each.StudyInstanceUID, each.Modality) for each in results)
        segs = {each.SOPInstanceUID for each in results if each.Modality == "SEG"}
        entries = queue.entries(10 * len(studies))
    return {
        "studies": len(studies),
        "images": len(studies) * SLICES,
        "senders": len(SENDERS),
        "kills": kills,
        "killed_while": dict(killed_while),
        "sent_again_by_senders": sum(tries.values()) - len(studies),
        "in_orthanc": dict(kinds),
        "studies_with_both": sum(
            a_study[f"{OURS}{k:03d}.1", kind] == 1 for k in range(len(studies)) for kind in
            ("SEG", "SR")
        ) // 2,
        "twice": sum(count - 1 for count in a_study.values()),
        "lost": len(wanted - segs),
        "labels_as_without_a_network": len(wanted & segs),
        "queue": dict(Counter(entry.state for entry in entries)),
        "seconds": round(seconds, 1),
        "all_received_after_seconds": round(received_s, 1),
        "peak_memory_mb": round(node.peak_mb),
    }  # fmt: skip


def take_pictures(folder: Path, orthanc: Orthanc, queue: Queue, studies: list[Path]) -> None:
    """Orthanc's page of the first study, and our own page, as Chromium draws them."""
    from leuda_deploy.view.dashboard import Dashboard

    store = ["storescu", "-aet", "SCANNER_A", "-aec", "ORTHANC", "127.0.0.1"]
    middle = studies[len(studies) // 2]
    subprocess.run([*store, str(orthanc.dicom_port), "+sd", str(middle)], check=True)
    number = int(middle.name.split("_")[1])
    study = next(
        each
        for each in orthanc.get("/studies")
        if orthanc.get(f"/studies/{each}")["MainDicomTags"]["StudyID"] == str(number)
    )
    server = Dashboard(queue, {"model": "phantom-heart"})
    threading.Thread(target=server.serve_forever, daemon=True).start()
    pages = {
        "orthanc": f"{orthanc.url}/app/explorer.html#study?uuid={study}",
        "dashboard": server.url,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, url in pages.items():
        subprocess.run(
            [
                *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
                *("--window-size=1100,800", "--virtual-time-budget=8000"),
                *(f"--screenshot={folder / f'{name}.png'}", url),
            ],
            capture_output=True,
            check=True,
            timeout=120,
        )
    for each in orthanc.results():
        if each.StudyInstanceUID == f"{OURS}{number:03d}.1":
            each.save_as(folder / f"{each.Modality.lower()}.dcm")
    shutil.copytree(middle, folder / "series", dirs_exist_ok=True)
    server.shutdown()


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--studies", type=int, default=50)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--quiet", type=float, default=2.0)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--note", default="", help="what else is to be known of the machine")
    parser.add_argument("--pictures", type=Path, help="folder for screenshots (Chromium)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="leuda-node-") as folder:
        found = measure(Path(folder), args)
    versions = {name: version(name) for name in ("leuda", "pynetdicom", "highdicom")}
    dcmtk = subprocess.run(["storescu", "--version"], capture_output=True, text=True, check=False)
    orthanc = subprocess.run([ORTHANC, "--version"], capture_output=True, text=True, check=False)
    versions["dcmtk"] = dcmtk.stdout.split()[2]
    versions["orthanc"] = orthanc.stdout.split()[1]
    content = {
        "command": f"python benchmarks/neighbours/hospital_node.py {args.out}",
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {args.note}".rstrip(", "),
        "versions": versions,
        **found,
    }
    write_json(args.out, content)
    print(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
