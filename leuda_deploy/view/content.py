"""scenes -> what the page asks for: a list, the facts of each scene, and its files as NIfTI."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from isal import igzip
from numpy.typing import NDArray

from leuda_deploy.errors import InputError, LeudaError
from leuda_deploy.scans.dicom.rules import SeriesChoice
from leuda_deploy.scans.dicom.sources import is_dicom_source
from leuda_deploy.scans.label_map import check_same_grid
from leuda_deploy.scans.volume import Volume, read_volume
from leuda_deploy.view.label_files import LabelFiles, read_label_files
from leuda_deploy.view.scene import Scene
from leuda_deploy.view.thumbnail import draw_thumbnail

Every = tuple[int, int, int]
FULL: Every = (1, 1, 1)
KEPT = 2  # scenes whose label files stay in memory
AFFINE_TOLERANCE = 1e-3  # mm, between sform and qform
# what the page shows of a report
REPORTED = ("engine", "feed", "low_confidence", "domain", "flags", "seconds", "total_seconds")


class Content:
    """What there is to see. One scene's labels are read at a time, and the last few are kept."""

    def __init__(self, scenes: Sequence[Scene], class_values: Mapping[str, int]) -> None:
        self.scenes = tuple(scenes)
        self._class_values = class_values
        self._one_at_a_time = threading.Lock()
        self._kept = lru_cache(KEPT)(self._read)

    def list(self) -> list[dict[str, Any]]:
        """In order: name, share it is unsure of, whether it is unlike the scans of training."""
        return [
            {"name": scene.name, "unsure": scene.unsure, "unlike": scene.unlike}
            for scene in self.scenes
        ]

    def facts(self, index: int) -> dict[str, Any]:
        """What the page says of a scene before its voxels are read.

        Raises:
            InputError: The scan cannot be read.
        """
        scene = self.scenes[index]
        scan = read_header(scene)
        return {
            "name": scene.name,
            "shape": scan.raw.shape,
            "spacing_mm": [round(size, 3) for size in scan.spacing_mm],
            "tilt_degrees": round(tilt_degrees(scan), 1),
            "labels": _names(scene.labels),
            "uncertainty": scene.uncertainty.name if scene.uncertainty else None,
            "modality": scene.card.modality if scene.card else None,
            "report": {key: scene.report[key] for key in REPORTED if key in scene.report},
        }

    def structures(self, index: int) -> dict[str, Any]:
        """The rows of the table. Label files that cannot be used are a note, and no rows."""
        try:
            found = self.labels(index).structures
        except LeudaError as error:
            return {"structures": [], "note": f"No labels are shown: {error}"}
        return {"structures": [asdict(structure) for structure in found], "note": None}

    def labels(self, index: int) -> LabelFiles:
        """The label files of a scene. Raises InputError."""
        with self._one_at_a_time:
            return self._kept(index)

    def _read(self, index: int) -> LabelFiles:
        scene = self.scenes[index]
        structures = scene.card.structures if scene.card else ()
        return read_label_files(
            scene.labels,
            read_header(scene),
            names={structure.value: structure.name for structure in structures},
            class_values=self._class_values,
            colours={structure.name: structure.colour for structure in structures},
        )

    def file(self, index: int, which: str, every: Every = FULL) -> Path | bytes:
        """A file of a scene: as it lies on disk where a browser reads it alike, else as bytes.

        Args:
            index: Of the scene.
            which: scan, uncertainty, labels-0, labels-1 or difference.
            every: Only each n-th voxel along the array axes.

        Raises:
            InputError: It cannot be read, or lies on another grid than the scan.
            KeyError: There is no such file.
        """
        scene = self.scenes[index]
        if which == "scan" and every == FULL and served_as_it_lies(scene):
            return scene.scan
        # not packed: it goes no further than to this computer's browser
        return as_nifti(coarser(self.volume(index, which), every), level=None)

    def volume(self, index: int, which: str) -> Volume:
        """A file of a scene with its voxels. Raises as `file` does."""
        scene = self.scenes[index]
        if which == "scan":
            return read_scan(scene)
        scan = read_header(scene)
        if which == "uncertainty" and scene.uncertainty is not None:
            volume = read_volume(scene.uncertainty)
            check_same_grid(scan, volume)
            return volume
        if which == "difference" and len(scene.labels) == 2:
            return scan.with_values(self.labels(index).difference())
        wanted = {f"labels-{k}": k for k in range(len(scene.labels))}
        return scan.with_values(self.labels(index).labels[wanted[which]])

    def thumbnail(self, index: int) -> bytes:
        """A small PNG of a scene."""
        scan, labels = read_scan(self.scenes[index]), None
        try:
            found = self.labels(index)
            labels = found.labels[0] if found.labels else None
            colours = {s.value: s.colour for s in found.structures}
        except LeudaError:
            colours = {}
        return draw_thumbnail(scan, labels, colours)


def _names(paths: Sequence[Path]) -> list[str]:
    """What the page calls files: by their folders too if two have one name."""
    names = [path.name for path in paths]
    if len(set(names)) < len(names):
        return [f"{path.parent.name}/{path.name}" for path in paths]
    return names


def read_scan(scene: Scene) -> Volume:
    """The scan with its voxels. Raises InputError."""
    return _read(scene, voxels=True)


def read_header(scene: Scene) -> Volume:
    """The scan without its voxels. Raises InputError."""
    return _read(scene, voxels=False)


def _read(scene: Scene, *, voxels: bool) -> Volume:
    if is_dicom_source(scene.scan):
        from leuda_deploy.scans.dicom import read_series

        choice = _choice(scene)
        found, partial = choice.of(scene.scan), choice.allow_partial
        return read_series(found, phase=scene.frame, allow_partial=partial, voxels=voxels).volume
    return read_volume(scene.scan, frame=scene.frame, voxels=voxels)


def _choice(scene: Scene) -> SeriesChoice:
    """The series that was labelled, as the report says; without one, the only one there is."""
    series, asked = scene.report.get("series"), scene.report.get("asked")
    uid = series.get("uid") if isinstance(series, dict) else None
    partial = isinstance(asked, dict) and asked.get("allow_partial") is True
    return SeriesChoice(wanted=uid if isinstance(uid, str) else None, allow_partial=partial)


def served_as_it_lies(scene: Scene) -> bool:
    """Whether a browser's NIfTI reader takes this file for what leuda does.

    That is a single file of one frame whose voxels are no 64-bit integers, and whose place in
    space has one meaning: nibabel prefers the sform, others the qform if its code is higher.
    """
    if is_dicom_source(scene.scan) or not scene.scan.name.endswith((".nii", ".nii.gz")):
        return False
    header = read_header(scene).header
    if header is None or max(header["dim"][4:]) > 1 or header.get_data_dtype().kind == "b":
        return False
    if header.get_data_dtype().kind in "iu" and header.get_data_dtype().itemsize > 4:
        return False
    sform, qform = header.get_sform(coded=True), header.get_qform(coded=True)
    if sform[1] == 0 or np.linalg.det(sform[0][:3, :3]) == 0:
        return False
    return bool(
        qform[1] <= sform[1] or np.allclose(sform[0], qform[0], rtol=0, atol=AFFINE_TOLERANCE)
    )


def tilt_degrees(volume: Volume) -> float:
    """How far the array axes are turned away from the nearest world axes, at most."""
    axes = np.abs(volume.affine[:3, :3]) / volume.spacing_mm
    return float(np.degrees(np.arccos(np.clip(axes.max(axis=0).min(), 0, 1))))


def coarser(volume: Volume, every: Every) -> Volume:
    """Only each n-th voxel along the array axes; the first one stays where it is."""
    if every == FULL:
        return volume
    x, y, z = every
    affine = volume.affine @ np.diag([x, y, z, 1.0])
    raw = volume.raw[::x, ::y, ::z]
    return replace(volume, raw=raw, affine=affine, header=None, shape=raw.shape)


def as_nifti(volume: Volume, *, level: int | None) -> bytes:
    """A volume as *.nii, in its own type where browsers read it; gzipped if there is a level."""
    raw = volume.raw
    if raw.dtype.kind == "b":
        raw = raw.astype(np.uint8)
    elif raw.dtype.itemsize > 4:
        raw = _narrowed(raw)
    image = nib.Nifti1Image(raw, volume.affine)
    image.header.set_slope_inter(volume.slope, volume.inter)
    image.header.set_xyzt_units("mm")
    image.set_sform(volume.affine, code=1)
    image.set_qform(volume.affine, code=1)
    content: bytes = image.to_bytes()
    return content if level is None else bytes(igzip.compress(content, compresslevel=level))


def _narrowed(raw: NDArray[Any]) -> NDArray[Any]:
    """64-bit values as int32 if they are whole and fit, else as float32."""
    if raw.dtype.kind in "iu" and raw.min() >= -(2**31) and raw.max() < 2**31:
        return raw.astype(np.int32)
    return raw.astype(np.float32)


def check_scenes(scenes: Sequence[Scene]) -> None:
    """Refuse a single scan that cannot be shown before a browser is opened. Raises InputError."""
    if len(scenes) == 1:
        read_header(scenes[0])
        for path in scenes[0].labels:
            if path.is_dir():
                raise InputError(f"{path} is a folder; labels are a file")
