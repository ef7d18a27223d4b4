"""every reader of what others wrote -> a sound input for it, and how to feed it another.

Scans, models and what leuda itself writes stand here; studies, queues, keys and the files of other
programs in `more_targets.py`.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np
from fuzz.more_targets import MORE
from fuzz.target import Target, as_file, as_json
from support import makers

from leuda_deploy.bench.bench import parse_shape, read_earlier
from leuda_deploy.errors import InputError
from leuda_deploy.jobs.find_jobs import Job, with_frames
from leuda_deploy.jobs.outputs import is_done
from leuda_deploy.machine.memory import parse_bytes
from leuda_deploy.model.card import parse_card
from leuda_deploy.model.export_folder import (
    MANIFEST_FILE,
    MODEL_FILE,
    PARITY_FILE,
    read_manifest,
    read_proof,
)
from leuda_deploy.model.model_file import ModelFile
from leuda_deploy.proof.trial import Trial, read_trial
from leuda_deploy.scans.nifti import read_label_names, write_labels
from leuda_deploy.scans.stack import Stack
from leuda_deploy.scans.volume import read_volume

SHAPE = (5, 4, 3)
MOST_VOXELS = 1 << 22  # of a scan that is gone through: a damaged header may state many, in order


def _image(kind: type) -> nib.spatialimages.SpatialImage:
    values = np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(np.int16)
    return kind(values, np.diag([0.8, 0.9, 2.5, 1.0]))


def _nifti(kind: type, *, labels: bool = False) -> bytes:
    image = _image(kind)
    image.header["descrip"] = b"made"
    comment = json.dumps({"leuda": {"labels": {"1": "heart", "2": "aorta"}}}).encode()
    if labels:
        image.header.extensions.append(nib.nifti1.Nifti1Extension(6, comment))
    return bytes(image.to_bytes())


def _nrrd() -> bytes:
    head = (
        "NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\n"
        "sizes: 5 4 3\nspace directions: (0.8,0,0) (0,0.9,0) (0,0,2.5)\nendian: little\n"
        "encoding: gzip\nspace origin: (1,2,3)\n\n"
    )
    return head.encode() + gzip.compress(bytes(range(120)), mtime=0)


def _mha() -> bytes:
    head = (
        "ObjectType = Image\nNDims = 3\nBinaryDataByteOrderMSB = False\nCompressedData = True\n"
        "TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 1 2 3\nElementSpacing = 0.8 0.9 2.5\n"
        "DimSize = 5 4 3\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    )
    return head.encode() + zlib.compress(bytes(range(120)))


def _scan(name: str) -> Callable[[bytes, Path], object]:
    def feed(content: bytes, folder: Path) -> object:
        path = folder / name
        path.write_bytes(gzip.compress(content, 1, mtime=0) if name.endswith("gz") else content)
        header = read_volume(path, frame=0, voxels=False)
        if header.raw.size > MOST_VOXELS:
            return header
        volume = read_volume(path, frame=0)
        stack = Stack(volume, makers.make_card().recipe)
        write_labels(folder / "out.nii", np.zeros(volume.raw.shape, np.uint8), volume, {1: "a"})
        return stack.intensity

    return feed


def _names(content: bytes, folder: Path) -> object:
    (folder / "l.nii").write_bytes(content)
    names = read_label_names(folder / "l.nii")
    assert all(name.isprintable() for name in names.values())
    return names


@cache
def _slices() -> tuple[bytes, ...]:
    from support.dicom_series import make_series

    written = []
    for dataset in make_series():
        buffer = io.BytesIO()
        dataset.save_as(buffer, enforce_file_format=True)
        written.append(buffer.getvalue())
    return tuple(written)


def _dicom(content: bytes, folder: Path) -> object:
    from leuda_deploy.scans.dicom.series import read_series

    series = folder / "series"
    series.mkdir(exist_ok=True)
    for number, sound in enumerate(_slices()):
        (series / f"{number}.dcm").write_bytes(content if number == 2 else sound)
    return read_series(series).volume


@cache
def _export() -> tuple[bytes, bytes]:
    import tempfile

    from leuda_deploy.machine.files import file_sha256
    from leuda_deploy.model.export_folder import write_manifest

    with tempfile.TemporaryDirectory() as name:
        model = makers.make_model(Path(name))
        assert len(file_sha256(model)) == 64
        write_manifest(Path(name))
        return model.read_bytes(), (Path(name) / MANIFEST_FILE).read_bytes()


def _manifest_with_engine() -> bytes:
    import tempfile

    from support.engine_files import with_engine

    with tempfile.TemporaryDirectory() as name:
        makers.make_model(Path(name))
        with_engine(Path(name))
        return (Path(name) / MANIFEST_FILE).read_bytes()


def _card(content: bytes, folder: Path) -> object:
    card = parse_card(content.decode("utf-8", "surrogateescape"), "a.onnx")
    assert card.name.isprintable()
    return card.to_json()


def _model(path: Path) -> object:
    from leuda_deploy.export.to_triton import server_config

    model = ModelFile.open(path)
    return server_config(model.graph(), model.card, 8)


def _trial(path: Path) -> object:
    trial = read_trial(path)
    return trial and trial.failure is None and (trial.batch, trial.best_ms)


def _report(content: bytes, folder: Path) -> object:
    (folder / "a.json").write_bytes(content)
    job = Job(scan=folder / "a.nii", output=folder / "a.nii.gz")
    return is_done(job, "0" * 64, "1" * 64, {}, overlay=True)


def _options(content: bytes, folder: Path) -> object:
    """Each option's text by itself; one that is refused must not hide the others."""
    text = content.decode("utf-8", "replace")
    parsers: tuple[Callable[[str], object], ...] = (
        parse_bytes,
        parse_shape,
        lambda frame: with_frames(Job(scan=folder, output=folder / "a.nii.gz"), frame),
    )
    for parse in parsers:
        with suppress(InputError):
            parse(text)
    return None


def _cohort(path: Path) -> object:
    from leuda_train.data.cohort import read_spec

    return read_spec(path).structures


def _config(path: Path) -> object:
    from leuda_train.config.load import load_config

    return load_config(str(path), "le-uda")


def _checkpoint(path: Path) -> object:
    from leuda_train.loop.checkpoint import load

    return load(path)


@cache
def _state() -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save(
        {"step": 3, "student": {"w": torch.arange(6.0).reshape(2, 3)}, "rng": [1, 2]}, buffer
    )
    return buffer.getvalue()


def _trial_json() -> bytes:
    trial = Trial(
        engine="openvino",
        description="OpenVINO",
        window_ms={1: 2.0, 2: 1.5},
        growth_bytes={1: 9, 2: 9},
    )
    return trial.model_dump_json(indent=1).encode()


COHORT = b"""name = "c"
subject = '(\\d+)'
[classes]
heart = 1
aorta = { source = 2, target = [3, 4] }
[slices]
axis = "superior"
spacing_mm = [1.0, 1.0]
background_values = 9
[source]
modality = "MR"
labelled = { images = "a/*_image.nii.gz", labels = "a/*_label.nii.gz" }
[target]
modality = "CT"
unlabelled = { images = ["b/*.nii.gz"] }
"""
PROOF = {
    "stages": [{"stage": "PyTorch -> ORT", "max_abs": 1e-5, "disagreement": 0.0, "windows": 64}],
    "int8_layers": ["a"],
    "lifted_layers": [],
}
BENCH = {
    "shape": [8, 8, 8],
    "engines": [{"engine": "ort-cpu", "p50_seconds": 1.5, "peak_mb": 90.1}],
}
REPORT = {
    **{"scan": "a.nii", "labels": "a.nii.gz", "model_sha256": "1" * 64, "scan_sha256": "0" * 64},
    **{"volumes_ml": {}, "asked": {}, "written": {"labels": "2" * 64}, "not_written": {}},
}


def _shipped_config() -> bytes:
    import leuda_train

    return (Path(leuda_train.__file__).parent / "configs" / "demo.toml").read_bytes()


TARGETS: dict[str, Target] = {
    "nifti1": Target(lambda: _nifti(nib.Nifti1Image), _scan("a.nii")),
    "nifti1-gz": Target(lambda: _nifti(nib.Nifti1Image, labels=True), _scan("a.nii.gz")),
    "nifti2": Target(lambda: _nifti(nib.Nifti2Image), _scan("a.nii")),
    "mgz": Target(lambda: bytes(_image(nib.MGHImage).to_bytes()), _scan("a.mgz")),
    "nrrd": Target(_nrrd, _scan("a.nrrd")),
    "mha": Target(_mha, _scan("a.mha")),
    "label-names": Target(lambda: _nifti(nib.Nifti1Image, labels=True), _names),
    "card": Target(lambda: makers.make_card().to_json().encode(), _card),
    "onnx": Target(lambda: _export()[0], as_file(MODEL_FILE, _model)),
    "manifest": Target(
        _manifest_with_engine, as_file(MANIFEST_FILE, lambda p: read_manifest(p.parent))
    ),
    "proof": Target(as_json(PROOF), as_file(PARITY_FILE, lambda p: read_proof(p.parent))),
    "trial": Target(_trial_json, as_file("t.json", _trial)),
    "bench": Target(as_json(BENCH), as_file("b.json", read_earlier)),
    "report": Target(as_json(REPORT), _report),
    "options": Target(lambda: b"512x512x100", _options),
    "cohort": Target(lambda: COHORT, as_file("cohort.toml", _cohort)),
    "config": Target(_shipped_config, as_file("run.toml", _config)),
}
if find_spec("torch") is not None:
    TARGETS["checkpoint"] = Target(_state, as_file("last.pt", _checkpoint))
if find_spec("highdicom") is not None:
    TARGETS["dicom"] = Target(lambda: _slices()[2], _dicom)
TARGETS |= MORE
