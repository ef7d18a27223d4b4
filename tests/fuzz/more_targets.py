"""studies, queues, keys, marks, files of nnU-Net and MONAI -> targets, as in `targets.py`."""

from __future__ import annotations

import io
import json
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np
from fuzz.target import Feed, Target, as_file, as_json
from support import makers

from leuda_deploy.model.export_folder import MODEL_FILE, SIGNATURE_FILE, write_manifest
from leuda_deploy.scans.dicom.rules import NO_RULES, SeriesRules, choose_series, read_rules
from leuda_deploy.view.marks import Marks
from leuda_deploy.view.scene import Scene, find_scenes

RULES = b"""modality = ["CT"]
description = ["portal*"]
orientation = ["axial"]
slice_thickness_mm = [0.5, 5.0]
prefer = "thinnest"
"""
MARKS = b"""scan,labels,frame,mark,marked
a.nii.gz,a_labels.nii.gz,,ok,2026-01-01T00:00:00+00:00
b.nii.gz,,2,look again,2026-01-01T00:00:00+00:00
"""
METHOD = b"""based_on = "le-uda-plus"
[objective]
lambda_intra = 0.5
"""
REPORT = {
    **{"scan": "a.nii", "labels": "a_labels.nii", "uncertainty": "u.nii"},
    **{"low_confidence": 0.1, "domain": {"fits": False}, "model": "m/model.onnx"},
    **{"volumes_ml": {"heart": 1.5}, "asked": {"frame": 1}},
}
TENSOR = {"num_channels": 2, "modality": "CT", "channel_def": {"0": "background", "1": "spleen"}}
METADATA = {
    **{"version": "0.5.0", "name": "Spleen", "task": "spleen", "data_source": "made"},
    "network_data_format": {
        "inputs": {"image": {**TENSOR, "num_channels": 1}},
        "outputs": {"pred": TENSOR},
    },
}
INFERENCE = {
    "imports": ["$import glob"],
    "roi": [16, 16, 16],
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "Orientationd", "axcodes": "RAS"},
            {"_target_": "Spacingd", "pixdim": [1.5, 1.5, 2.0], "mode": "bilinear"},
            {
                **{"_target_": "ScaleIntensityRanged", "a_min": -57, "a_max": 164},
                **{"b_min": 0, "b_max": 1, "clip": True},
            },
        ],
    },
    "inferer": {"_target_": "SlidingWindowInferer", "roi_size": "@roi", "overlap": 0.5},
    "postprocessing": {
        "_target_": "Compose",
        "transforms": [{"_target_": "AsDiscreted", "argmax": True}],
    },
}
SAMPLING = {"is_seg": False, "order_z": 0, "force_separate_z": None}
PLANS = {
    **{"dataset_name": "Dataset007_Blobs", "plans_name": "nnUNetPlans"},
    **{"image_reader_writer": "SimpleITKIO", "transpose_forward": [0, 1, 2]},
    "foreground_intensity_properties_per_channel": {
        "0": {"percentile_00_5": -900.0, "percentile_99_5": 400.0, "mean": 50.0, "std": 100.0}
    },
    "configurations": {
        "2d": {
            **{"preprocessor_name": "DefaultPreprocessor", "patch_size": [24, 32]},
            **{"spacing": [1.3, 0.9], "normalization_schemes": ["CTNormalization"]},
            "use_mask_for_norm": [False],
            "resampling_fn_data": "resample_data_or_seg_to_shape",
            "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
            "resampling_fn_data_kwargs": {**SAMPLING, "order": 3},
            "resampling_fn_probabilities_kwargs": {**SAMPLING, "order": 1},
            "architecture": {
                "network_class_name": "a.PlainConvUNet",
                "arch_kwargs": {"n_stages": 2},
                "_kw_requires_import": [],
            },
        }
    },
}
DATASET = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "grey": 1, "bright": 2},
    "numTraining": 1,
    "file_ending": ".nii.gz",
}


def _rules(path: Path) -> object:
    rules = read_rules(path)
    return [rules.against(found) for found in _found()]


@cache
def _found() -> tuple[object, ...]:
    from leuda_deploy.scans.dicom.find import find_series

    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "s.zip").write_bytes(_zip())
        return tuple(find_series(Path(name) / "s.zip"))


@cache
def _zip() -> bytes:
    from support.dicom_series import make_series

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as opened:
        for number, made in enumerate(make_series()):
            image = io.BytesIO()
            made.save_as(image, enforce_file_format=True)
            when = zipfile.ZipInfo(f"study/{number}.dcm", (2026, 1, 1, 0, 0, 0))
            when.compress_type = zipfile.ZIP_DEFLATED
            opened.writestr(when, image.getvalue())
    return buffer.getvalue()


def _study(name: str, rules: SeriesRules = NO_RULES) -> Feed:
    def read(path: Path) -> object:
        from leuda_deploy.scans.dicom import read_series
        from leuda_deploy.scans.dicom.find import find_series

        return read_series(choose_series(find_series(path), rules, source=path)).volume

    return as_file(name, read)


def _directory() -> bytes:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MediaStorageDirectoryStorage

    listed = Dataset()
    listed.file_meta = FileMetaDataset()
    listed.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    listed.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    listed.file_meta.MediaStorageSOPInstanceUID = "1.2.9"
    listed.DirectoryRecordSequence = [Dataset() for _ in range(5)]
    for number, record in enumerate(listed.DirectoryRecordSequence):
        record.ReferencedFileID = ["A", f"IM{number}"]
    buffer = io.BytesIO()
    listed.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _listed(content: bytes, folder: Path) -> object:
    if not (folder / "A").is_dir():
        (folder / "A").mkdir()
        with zipfile.ZipFile(io.BytesIO(_zip())) as opened:
            for number, name in enumerate(opened.namelist()):
                (folder / "A" / f"IM{number}").write_bytes(opened.read(name))
    return _study("DICOMDIR")(content, folder)


def _queue_file() -> bytes:
    from leuda_deploy.jobs.node.database import DATABASE
    from leuda_deploy.jobs.node.queue import Queue

    with tempfile.TemporaryDirectory() as name:
        queue = Queue(Path(name))
        for series, image in (("1.2", "1.2.1"), ("1.2", "1.2.2"), ("1.3", "1.3.1")):
            queue.take(series, image, b"x", sender="A", modality="CT")
        queue.labelled(1, {"dicom_seg": "1.2.9"})
        queue.close()
        return (Path(name) / DATABASE).read_bytes()


def _queue(content: bytes, folder: Path) -> object:
    """As the node opens it: what is there, what is next, what is taken."""
    from leuda_deploy.jobs.node.database import DATABASE
    from leuda_deploy.jobs.node.queue import Queue
    from leuda_deploy.view.dashboard import state_of

    place = folder / "queue"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    (place / DATABASE).write_bytes(content)
    queue = Queue(place)
    try:
        queue.recover()
        queue.next_received(quiet_s=0)
        queue.next_labelled()
        queue.take("1.2", "1.2.3", b"y", sender="B", modality="MR")
        json.dumps(state_of(queue))
        return queue.retry_failed()
    finally:
        queue.close()


@cache
def _signed() -> tuple[bytes, bytes, bytes, bytes]:
    """Model, manifest, signature, public key."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from leuda_deploy.model.export_folder import MANIFEST_FILE
    from leuda_deploy.model.signature import sign_export

    private = Ed25519PrivateKey.from_private_bytes(b"leuda fuzzes signatures and keys")
    pem, secret = serialization.Encoding.PEM, serialization.NoEncryption()
    with tempfile.TemporaryDirectory() as name:
        folder, key = Path(name), Path(name) / "key"
        model = makers.make_model(folder)
        write_manifest(folder)
        key.write_bytes(private.private_bytes(pem, serialization.PrivateFormat.PKCS8, secret))
        signature = sign_export(folder, key).read_bytes()
        public = private.public_key().public_bytes(
            pem, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return model.read_bytes(), (folder / MANIFEST_FILE).read_bytes(), signature, public


def _signature(which: int) -> Target:
    """An export of which one file is another: manifest (1), signature (2) or the key (3)."""
    from leuda_deploy.model.export_folder import MANIFEST_FILE

    names = (MODEL_FILE, MANIFEST_FILE, SIGNATURE_FILE, "key.pub")

    def feed(content: bytes, folder: Path) -> object:
        from leuda_deploy.model.signature import signed_manifest

        for number, name in enumerate(names):
            (folder / name).write_bytes(content if number == which else _signed()[number])
        return signed_manifest(folder, folder / "key.pub")

    return Target(lambda: _signed()[which], feed)


def _marks(path: Path) -> object:
    marks = Marks(path)
    scene = Scene(scan=Path("a.nii.gz"), labels=(Path("a_labels.nii.gz"),))
    marks.set(scene, "look again")
    again = Marks(path)
    assert again.of(scene) == "look again"
    return again


def _view(content: bytes, folder: Path) -> object:
    """A folder of results, of which the report is another."""
    for name in ("a.nii", "a_labels.nii", "u.nii"):
        (folder / name).touch()
    (folder / "a_labels.json").write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [(scene.name, scene.unsure, scene.unlike) for scene in find_scenes(folder)]


def _plans(which: str) -> Feed:
    def feed(content: bytes, folder: Path) -> object:
        from leuda_train.export.elsewhere.nnunet_plans import read_plans

        for name, said in (("plans.json", PLANS), ("dataset.json", DATASET)):
            (folder / name).write_bytes(content if name == which else as_json(said)())
        return read_plans(folder, "2d").structures

    return feed


def _dataset(content: bytes, folder: Path) -> object:
    from leuda_train.data.layouts.nnunet import plan, read_dataset

    for name in ("imagesTr/a_0000.nii.gz", "imagesTr/b_0000.nii.gz", "labelsTr/a.nii.gz"):
        path = folder / name
        if not path.is_file():
            path.parent.mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4)), path)
    (folder / "dataset.json").write_bytes(content)
    found = read_dataset(folder)
    return plan(found, found, name="c")


def _bundle(which: str) -> Feed:
    def feed(content: bytes, folder: Path) -> object:
        from leuda_train.export.elsewhere.monai_bundle import read_bundle

        for place in ("configs", "models"):
            (folder / place).mkdir(exist_ok=True)
        (folder / "models" / "model.onnx").touch()
        for name, said in (("metadata.json", METADATA), ("inference.json", INFERENCE)):
            (folder / "configs" / name).write_bytes(content if name == which else as_json(said)())
        return read_bundle(folder).recipe

    return feed


def _method(path: Path) -> object:
    from leuda_train.config.load import load_config

    return load_config("demo", str(path)).objective


def _constant(content: bytes) -> Callable[[], bytes]:
    return lambda: content


MORE: dict[str, Target] = {
    "marks": Target(_constant(MARKS), as_file("marks.csv", _marks)),
    "view": Target(as_json(REPORT), _view),
    "method": Target(_constant(METHOD), as_file("m.toml", _method)),
    "nnunet-plans": Target(as_json(PLANS), _plans("plans.json")),
    "nnunet-model": Target(as_json(DATASET), _plans("dataset.json")),
    "nnunet-dataset": Target(as_json(DATASET), _dataset),
    "monai-metadata": Target(as_json(METADATA), _bundle("metadata.json")),
    "monai-inference": Target(as_json(INFERENCE), _bundle("inference.json")),
    "queue": Target(_queue_file, _queue),
}
if find_spec("cryptography") is not None:
    MORE |= {
        name: _signature(which)
        for which, name in enumerate(("signed-manifest", "signature", "key"), start=1)
    }
if find_spec("highdicom") is not None:
    MORE |= {
        "rules": Target(_constant(RULES), as_file("r.toml", _rules)),
        "study-zip": Target(_zip, _study("s.zip")),
        "dicomdir": Target(_directory, _listed),
    }
