"""A made CT series of five slices, as DICOM data sets and as a folder of files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

DEPTH, ROWS, COLUMNS = 5, 6, 8
VALUES = np.arange(DEPTH * ROWS * COLUMNS).reshape(DEPTH, ROWS, COLUMNS).astype(np.int16) - 100
ORIENTATION = [1, 0, 0, 0, 1, 0]


def make_image(index: int, series: str, **other: Any) -> Dataset:
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = CTImageStorage
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    made.PatientID, made.PatientName, made.PatientBirthDate, made.PatientSex = "1", "A^B", "", ""
    made.StudyInstanceUID, made.SeriesInstanceUID = "1.2.3", series
    made.StudyDate = made.StudyTime = made.AccessionNumber = made.StudyID = ""
    made.ReferringPhysicianName = made.PositionReferenceIndicator = ""
    made.FrameOfReferenceUID, made.Modality, made.SeriesDescription = "1.2.4", "CT", series
    made.Rows, made.Columns, made.PixelSpacing = ROWS, COLUMNS, [0.7, 0.8]
    made.SeriesNumber, made.InstanceNumber, made.SliceThickness = 1, index + 1, 2.5
    made.ImageOrientationPatient = ORIENTATION
    made.ImagePositionPatient = [-10.0, -20.0, 30.0 + 2.5 * index]
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 16, 16, 15, 1
    made.RescaleSlope, made.RescaleIntercept = 2, -1024
    made.PixelData = VALUES[index].tobytes()
    for name, value in other.items():
        setattr(made, name, value)
    return made


def write_images(folder: Path, images: list[Dataset]) -> Path:
    folder.mkdir(exist_ok=True)
    for made in images:
        name = f"{np.random.default_rng(abs(hash(made.SOPInstanceUID))).integers(1 << 40)}.dcm"
        made.save_as(folder / name, enforce_file_format=True)
    return folder


def make_series(**other: Any) -> list[Dataset]:
    return [make_image(k, "1.2.5", **other) for k in range(DEPTH)]
