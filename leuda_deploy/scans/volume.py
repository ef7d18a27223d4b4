"""scan file <-> Volume: voxel values as stored, and where they stand in the patient."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from leuda_deploy.errors import InputError, one_line
from leuda_deploy.machine.files import atomic_path
from leuda_deploy.scans import gzip_array as compressed

COMMENT_EXTENSION = 6  # NIfTI-1 extension code "comment", where the label names are kept
MAX_SHEAR_DEGREES = 1.0
# What nibabel lets through for a file that is damaged, foreign, or says it is larger than memory.
UNREADABLE = (
    ImageFileError,
    HeaderDataError,
    OSError,
    EOFError,
    ValueError,
    OverflowError,
    MemoryError,
    zlib.error,
    compressed.DecodeError,
)


@dataclass(frozen=True, kw_only=True)
class Volume:
    """One scan. Values stay as stored (int16 CT stays int16) until a slab of them is needed.

    raw        (X, Y, Z), any real dtype and byte order; value = raw * slope + inter
    affine     (4, 4) float64, voxel index -> RAS+ world in mm
    header     the NIfTI header as read, or None for other formats
    shape      the shape on disk; (X, Y, Z) but for trailing axes of length 1
    """

    name: str
    raw: NDArray[Any]
    slope: float
    inter: float
    affine: NDArray[np.float64]
    header: Any
    shape: tuple[int, ...]

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel edge lengths along the array axes, in mm."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return (x, y, z)

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in millilitres."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000.0

    def with_scale(self, name: str, slope: float, inter: float) -> Volume:
        """The same voxels under another name and scale."""
        return replace(self, name=name, slope=slope, inter=inter)

    def with_values(self, values: NDArray[Any]) -> Volume:
        """Other values (X, Y, Z) on this scan's grid, e.g. its labels."""
        return replace(self, raw=values, slope=1.0, inter=0.0)


def read_volume(path: Path | str, *, frame: int | None = None, voxels: bool = True) -> Volume:
    """Read any scan that nibabel reads; 4D scans need `frame`.

    voxels=False reads the header alone: all is there but the values, which are 0 and take no room.

    Raises InputError for a missing, unreadable, non-real, 2D, unchosen-4D or degenerate scan.
    """
    path = Path(path)
    image = _load(path)
    if not isinstance(image, nib.spatialimages.SpatialImage):
        raise InputError(f"{path} is a {type(image).__name__}, not a volume")
    return _volume(path.name, path, image, frame, voxels=voxels)


def count_frames(path: Path | str) -> int:
    """How many 3D scans a file holds. Raises InputError as `read_volume` does."""
    return int(np.prod(_load(Path(path)).shape[3:]))


def volume_of(
    scan: Any, affine: NDArray[np.float64] | None = None, *, frame: int | None = None
) -> Volume:
    """A nibabel image, or an array (X, Y, Z) and its affine, as a scan; nothing is copied.

    Raises InputError as `read_volume` does.
    """
    if isinstance(scan, np.ndarray):
        if affine is None or np.shape(affine) != (4, 4):
            raise InputError("an array needs the affine (4, 4) that says where it lies")
        image: Any = _ArrayImage(scan, np.asarray(affine, dtype=np.float64))
    elif isinstance(scan, nib.spatialimages.SpatialImage):
        image = scan
    else:
        raise InputError(f"a scan is a file, a nibabel image or an array, not {type(scan)}")
    return _volume("scan", "scan", image, frame)


@dataclass(frozen=True)
class _ArrayImage:
    """An array with the few members of a nibabel image that are looked at."""

    dataobj: NDArray[Any]
    affine: NDArray[np.float64]
    header: None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.dataobj.shape

    def get_data_dtype(self) -> np.dtype[Any]:
        return self.dataobj.dtype


def _load(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"no such scan: {path}")
    try:
        return nib.load(path)
    except UNREADABLE as error:
        raise InputError(f"cannot read {path} as a scan: {one_line(error)}") from error


def _volume(
    name: str, path: Path | str, image: Any, frame: int | None, *, voxels: bool = True
) -> Volume:
    affine = np.asarray(image.affine, dtype=np.float64)
    _check_affine(affine, path)
    shape = tuple(int(n) for n in image.shape)
    if image.get_data_dtype().kind not in "iufb":
        raise InputError(f"{path} holds {image.get_data_dtype()} values; a scan has real numbers")
    if len(shape) < 3 or min(shape) < 1:
        raise InputError(f"{path} has shape {shape}; a scan has three axes of at least one voxel")
    frames = int(np.prod(shape[3:]))
    if frames > 1 and frame is None:
        raise InputError(
            f"{path} is 4D with {frames} frames; choose one with --frame 0..{frames - 1}"
        )
    if frame is not None and not 0 <= frame < frames:
        raise InputError(f"{path} has {frames} frame(s); --frame {frame} is not in 0..{frames - 1}")
    _check_units(image.header, path)
    raw, slope, inter = np.broadcast_to(image.get_data_dtype().type(0), shape[:3]), 1.0, 0.0
    if voxels:
        raw, slope, inter = _stored_values(image, path, frame or 0)
    return Volume(
        name=name,
        raw=raw,
        slope=slope,
        inter=inter,
        affine=affine,
        header=image.header.copy() if isinstance(image.header, nib.Nifti1Header) else None,
        shape=shape if frames == 1 else shape[:3],
    )


def _check_units(header: Any, path: Path | str) -> None:
    """Refuse scans measured in metres or microns; unknown is taken for mm, as everybody does."""
    code = int(header["xyzt_units"]) % 8 if isinstance(header, nib.Nifti1Header) else 0
    if code in (1, 3):
        unit = "metres" if code == 1 else "microns"
        raise InputError(f"{path} is measured in {unit}; convert its header to mm")


def _stored_values(image: Any, path: Path | str, frame: int) -> tuple[NDArray[Any], float, float]:
    """One frame (X, Y, Z) as it lies on disk and its scale: int16 is never blown up to float64."""
    proxy, shape = image.dataobj, (*image.shape[:3], -1)
    try:
        # exactly this class: its children (AFNI) scale in other ways, which only they know
        if type(proxy) is not nib.arrayproxy.ArrayProxy:
            return np.asanyarray(proxy).reshape(shape, order="F")[..., frame], 1.0, 0.0
        slope, inter = float(proxy.slope), float(proxy.inter)
        with np.errstate(over="ignore"):  # the size that a damaged header states
            if isinstance(proxy.file_like, str) and compressed.is_gzip(Path(proxy.file_like)):
                return _unpacked_frame(proxy, frame), slope, inter
            return (
                np.asanyarray(proxy.get_unscaled()).reshape(shape, order="F")[..., frame],
                slope,
                inter,
            )
    except UNREADABLE as error:
        raise InputError(
            f"cannot read the voxels of {path} (truncated or damaged?): {one_line(error)}"
        ) from error


def _unpacked_frame(proxy: Any, frame: int) -> NDArray[Any]:
    """One frame of a gzipped scan; the other frames are passed over and never held."""
    plane, frames = tuple(proxy.shape[:3]), int(np.prod(proxy.shape[3:]))
    frame_bytes = int(np.prod(plane, dtype=object)) * proxy.dtype.itemsize
    return compressed.read_array(
        Path(proxy.file_like),
        offset=int(proxy.offset) + frame * frame_bytes,
        shape=plane,
        dtype=proxy.dtype,
        order="F",
        last=frame == frames - 1,
    )


def _check_affine(affine: NDArray[np.float64], path: Path | str) -> None:
    """Refuse geometry that has no planes to slice: not finite, flat, or sheared."""
    axes = affine[:3, :3]
    lengths = np.linalg.norm(axes, axis=0)
    if not np.isfinite(affine).all() or (lengths < 1e-6).any():
        raise InputError(f"{path} has a degenerate affine (voxel sizes {lengths.tolist()} mm)")
    cosines = (axes / lengths).T @ (axes / lengths)
    shear = float(
        np.degrees(np.arcsin(np.clip(np.abs(cosines[~np.eye(3, dtype=bool)]).max(), 0, 1)))
    )
    if shear > MAX_SHEAR_DEGREES:
        raise InputError(
            f"{path} is sheared by {shear:.1f} degrees (gantry tilt?); "
            "resample it to an orthogonal grid"
        )


def write_labels(
    path: Path | str, labels: NDArray[np.uint8], scan: Volume, names: Mapping[int, str]
) -> None:
    """Write labels on the scan's own grid: shape, affine, sform and qform with codes, bit for bit.

    labels (X, Y, Z) uint8; names label value -> structure, kept in a header extension.
    Written beside the target first and moved into place, so a reader never sees half a file.
    """
    image = _on_grid(labels, scan)
    image.header.set_intent("label", name="leuda")
    content = json.dumps({"leuda": {"labels": {str(k): v for k, v in names.items()}}})
    image.header.extensions.append(nib.nifti1.Nifti1Extension(COMMENT_EXTENSION, content.encode()))
    _save(image, Path(path))


def write_map(path: Path | str, values: NDArray[np.uint8], scan: Volume) -> None:
    """Write a map (X, Y, Z) uint8 that is no label, e.g. uncertainty, on the scan's own grid."""
    _save(_on_grid(values, scan), Path(path))


def _on_grid(values: NDArray[np.uint8], scan: Volume) -> Any:
    """An image with these values and exactly the scan's geometry, and nothing else of it."""
    if values.shape != scan.raw.shape or values.dtype != np.uint8:
        raise AssertionError(
            f"values {values.shape} {values.dtype} do not fit scan {scan.raw.shape}"
        )
    data = values.reshape(scan.shape)
    if scan.header is None:
        image = nib.Nifti1Image(data, scan.affine)
        image.header.set_xyzt_units("mm")
    else:
        single = nib.Nifti2Image if isinstance(scan.header, nib.Nifti2Header) else nib.Nifti1Image
        header = single.header_class.from_header(scan.header, check=False)
        header.extensions.clear()  # a scan's extensions and free text may name the patient
        header["descrip"], header["aux_file"] = b"", b""
        header.set_data_dtype(np.uint8)
        header.set_data_shape(data.shape)
        header["pixdim"] = scan.header["pixdim"]  # set_data_shape loses those beyond the shape
        # affine=None: nibabel then leaves sform and qform exactly as they stand in the header
        image = single(data, None, header)
    image.header["scl_slope"], image.header["scl_inter"] = 1, 0
    image.header["cal_min"], image.header["cal_max"] = 0, 0
    return image


def _save(image: Any, path: Path) -> None:
    check_label_path(path)
    with (
        atomic_path(path) as temporary,
        compressed.open_to_write(temporary, compress=path.name.endswith(".gz")) as stream,
    ):
        image.to_stream(stream)


def check_label_path(path: Path, scan: Path | None = None) -> None:
    """Refuse, before any work is done, a label file that is not NIfTI or is the scan itself."""
    if not path.name.endswith((".nii", ".nii.gz")):
        raise InputError(f"labels are written as NIfTI; name {path} *.nii.gz or *.nii")
    if scan is not None and path.exists() and scan.exists() and path.samefile(scan):
        raise InputError(f"the labels would replace the scan {scan}; choose another --output")


def read_label_names(path: Path | str) -> dict[int, str]:
    """Label value -> structure, from the header extension that `write_labels` wrote; else empty."""
    image = _load(Path(path))
    for extension in getattr(image.header, "extensions", []):
        if extension.get_code() != COMMENT_EXTENSION:
            continue
        try:
            content = extension.get_content()
            text = content.decode() if isinstance(content, bytes) else str(content)
            labels = json.loads(text.rstrip("\x00"))["leuda"]["labels"]
            return {int(value): str(name) for value, name in labels.items()}
        except (UnicodeDecodeError, ValueError, KeyError, TypeError, AttributeError):
            continue  # somebody else's comment
    return {}
