"""A made CT series of five slices, as DICOM data sets and as a folder of files.

And series as scanners write them: tilted, uneven, in phases, in one file of many frames.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    generate_uid,
)

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
    made.PixelData = VALUES[index % DEPTH].tobytes()
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


PIXEL_MM = (0.7, 0.8)  # from row to row, and from column to column


def smooth(shape: tuple[int, int, int]) -> NDArray[np.int16]:
    """(D, H, W) values of a smooth body on air, as CT has them."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    inside = np.clip(1.4 - np.sqrt((x * 1.5) ** 2 + (y * 1.2) ** 2 + (0.8 * z) ** 2), 0, 1)
    values = -1000 + 1400 * inside + 60 * np.sin(5 * x + 3 * y + 2 * z) * inside
    return np.rint(values).astype(np.int16)


def make_slices(
    values: NDArray[Any],
    positions: list[list[float]],
    series: str = "1.2.50",
    *,
    signed: bool = False,
    **other: Any,
) -> list[Dataset]:
    """One image a slice (D, H, W) at each position; int16 as it is, uint16 as value + 1024."""
    made = []
    for k, (plane, position) in enumerate(zip(values, positions, strict=True)):
        image = make_image(k, series)
        image.Rows, image.Columns, image.PixelSpacing = *plane.shape, list(PIXEL_MM)
        image.ImagePositionPatient = position
        image.RescaleSlope = 1
        if signed:
            image.PixelRepresentation, image.RescaleIntercept = 1, 0
            image.PixelData = plane.astype(np.int16).tobytes()
        else:
            image.PixelRepresentation, image.RescaleIntercept = 0, -1024
            image.PixelData = (plane.astype(np.int32) + 1024).astype(np.uint16).tobytes()
        image.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        image.StudyDate, image.StudyTime, image.Manufacturer = "20260101", "120000", "maker"
        for name, value in other.items():
            setattr(image, name, value)
        made.append(image)
    return made


def even(count: int, step: float = 2.5, tilt_degrees: float = 0.0) -> list[list[float]]:
    shift = np.tan(np.radians(tilt_degrees))
    return [[-10.0, -20.0 + step * k * shift, 30.0 + step * k] for k in range(count)]


def _item(**values: Any) -> Dataset:
    made = Dataset()
    for name, value in values.items():
        setattr(made, name, value)
    return made


def make_enhanced(
    values: NDArray[Any], positions: list[list[float]], *, modality: str = "CT", times: int = 1
) -> Dataset:
    """One file of all slices (D, H, W), `times` over: the first time as they are, then 10 more."""
    made = make_image(0, "1.2.60")
    storage = EnhancedCTImageStorage if modality == "CT" else EnhancedMRImageStorage
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = storage
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    made.Modality, made.Manufacturer = modality, "maker"
    made.StudyDate, made.StudyTime = "20260101", "120000"
    made.ContentDate, made.ContentTime = "20260101", "120000"
    for name in ("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing"):
        delattr(made, name)
    del made.RescaleSlope, made.RescaleIntercept, made.SliceThickness
    made.Rows, made.Columns = values.shape[1:]
    made.PixelRepresentation, made.NumberOfFrames = 0, len(values) * times
    made.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    made.SharedFunctionalGroupsSequence = Sequence(
        [
            _item(
                PixelMeasuresSequence=Sequence(
                    [_item(PixelSpacing=list(PIXEL_MM), SliceThickness=2.5)]
                ),
                PlaneOrientationSequence=Sequence(
                    [_item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])]
                ),
                PixelValueTransformationSequence=Sequence(
                    [_item(RescaleSlope=1, RescaleIntercept=-1024, RescaleType="HU")]
                ),
            )
        ]
    )
    made.PerFrameFunctionalGroupsSequence = Sequence(
        [
            _item(
                PlanePositionSequence=Sequence([_item(ImagePositionPatient=position)]),
                FrameContentSequence=Sequence(
                    [
                        _item(
                            TemporalPositionIndex=time + 1,
                            StackID="1",
                            InStackPositionNumber=k + 1,
                            DimensionIndexValues=[1, k + 1, time + 1],
                        )
                    ]
                ),
            )
            for k, position in enumerate(positions)
            for time in range(times)
        ]
    )
    planes = [plane + 10 * time for plane in values for time in range(times)]
    made.PixelData = (np.stack(planes).astype(np.int32) + 1024).astype(np.uint16).tobytes()
    return made
