"""scan file -> Volume: voxel values as stored, and where they stand in the patient."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel import orientations, spatialimages
from numpy.typing import NDArray

from leuda_deploy.errors import ScanError, reading
from leuda_deploy.scans.formats import gzip_array, is_other, read_other
from leuda_deploy.scans.formats.stored import OtherImage

MAX_SHEAR_DEGREES = 1.0
MAX_VOXELS = 1 << 58  # what an array can be at all
# gzipped or plain; what else nibabel unpacks (.bz2, .zst), it reads itself
READ_HERE = (".nii", ".nii.gz", ".img", ".img.gz", ".mgz", ".mgh", ".gz")


@dataclass(frozen=True, kw_only=True)
class Volume:
    """One scan. Values stay as stored (int16 CT stays int16) until a slab of them is needed.

    Attributes:
        name: What messages call it: the file's name.
        raw: (X, Y, Z), any real dtype and byte order. A value is raw * slope + inter.
        slope: See `raw`.
        inter: See `raw`.
        affine: (4, 4) float64, voxel index -> RAS+ world in mm.
        header: The NIfTI header as it was read; None for other formats.
        shape: The shape on disk: (X, Y, Z), and trailing axes of length 1 if there are any.
        padding: (lowest, highest) stored value that stands for no tissue; None: not said.
        more: The other channels, for a network that reads several scans of one grid together.
    """

    name: str
    raw: NDArray[Any]
    slope: float
    inter: float
    affine: NDArray[np.float64]
    header: Any
    shape: tuple[int, ...]
    padding: tuple[float, float] | None = None
    more: tuple[Volume, ...] = ()

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

    def with_padding(self, lowest: float, highest: float) -> Volume:
        """The same voxels, of which those with such stored values are no tissue."""
        return replace(self, padding=(lowest, highest))

    def with_values(self, values: NDArray[Any]) -> Volume:
        """Other values (X, Y, Z) on this scan's grid, e.g. its labels."""
        return replace(self, raw=values, slope=1.0, inter=0.0, padding=None)


def read_volume(path: Path | str, *, frame: int | None = None, voxels: bool = True) -> Volume:
    """Read a scan: NIfTI, NRRD, MetaImage, Analyze, MGH or another format that nibabel reads.

    Args:
        path: The file.
        frame: Which 3D scan of a 4D file, from 0. A file with one frame needs none.
        voxels: False reads the header alone. The values are then 0, and take no memory.

    Returns:
        The scan, its values as they are stored.

    Raises:
        ScanError: The file is missing, damaged or no scan; its values are not real numbers; it has
            fewer than three axes, or frames of which none was chosen; its affine is degenerate or
            sheared; or it is not measured in mm. `fault` says which.
    """
    path = Path(path)
    image = load_image(path)
    if not isinstance(image, spatialimages.SpatialImage | OtherImage):
        raise ScanError("no volume", f"{path} is a {type(image).__name__}, not a volume")
    return _volume(path.name, path, image, frame, voxels=voxels)


def count_frames(path: Path | str) -> int:
    """How many 3D scans a file holds. Raises ScanError if it cannot be read."""
    return prod(int(n) for n in load_image(Path(path)).shape[3:])


def volume_of(
    scan: Any, affine: NDArray[np.float64] | None = None, *, frame: int | None = None
) -> Volume:
    """A scan that is in memory. Nothing is copied.

    Args:
        scan: A nibabel image, or an array (X, Y, Z).
        affine: (4, 4) of an array, voxel index -> RAS+ world in mm.
        frame: As for `read_volume`.

    Raises:
        ScanError: As `read_volume` does.
    """
    if isinstance(scan, np.ndarray):
        if affine is None or np.shape(affine) != (4, 4):
            raise ScanError("no volume", "an array needs the affine (4, 4) that says where it lies")
        image: Any = _ArrayImage(scan, np.asarray(affine, dtype=np.float64))
    elif isinstance(scan, spatialimages.SpatialImage):
        image = scan
    else:
        raise ScanError(
            "no volume", f"a scan is a file, a nibabel image or an array, not {type(scan)}"
        )
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


def load_image(path: Path) -> Any:
    """The image of a file, its header read and its voxels not: nibabel's, or one like it.

    Raises ScanError.
    """
    if not path.is_file():
        raise ScanError("missing", f"no such scan: {path}")
    with reading(lambda what: ScanError("damaged", f"cannot read {path} as a scan: {what}")):
        if is_other(path):
            return read_other(path)
        gzip_array.check_header(path)
        return nib.load(path)


def _volume(
    name: str, path: Path | str, image: Any, frame: int | None, *, voxels: bool = True
) -> Volume:
    affine, header = _geometry(image)
    _check_affine(affine, path)
    shape = tuple(int(n) for n in image.shape)
    if image.get_data_dtype().kind not in "iufb":
        raise ScanError(
            "no real numbers",
            f"{path} holds {image.get_data_dtype()} values; a scan has real numbers",
        )
    if len(shape) < 3 or min(shape) < 1:
        raise ScanError(
            "axes", f"{path} has shape {shape}; a scan has three axes of at least one voxel"
        )
    frames = prod(shape[3:])
    if frames > 1 and frame is None:
        raise ScanError(
            "frames", f"{path} is 4D with {frames} frames; choose one with --frame 0..{frames - 1}"
        )
    if frame is not None and not 0 <= frame < frames:
        raise ScanError(
            "frames", f"{path} has {frames} frame(s); --frame {frame} is not in 0..{frames - 1}"
        )
    if prod(shape[:3]) > MAX_VOXELS:
        raise ScanError("damaged", f"{path} states {' x '.join(map(str, shape))} voxels")
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
        header=header,
        shape=shape if frames == 1 else shape[:3],
    )


def _geometry(image: Any) -> tuple[NDArray[np.float64], Any]:
    """The affine of an image, and a NIfTI header that says the same; None for other formats.

    An sform that is flat though it has a code gives way to a qform that is sound.
    """
    affine = np.asarray(image.affine, dtype=np.float64)
    if not isinstance(image.header, nib.Nifti1Header):
        return affine, None
    header = image.header.copy()
    if _is_flat(affine) and int(header["sform_code"]) > 0 and int(header["qform_code"]) > 0:
        try:
            with np.errstate(all="ignore"):
                other = np.asarray(header.get_qform(), dtype=np.float64)
        except (ValueError, nib.spatialimages.HeaderDataError):
            return affine, header
        if not _is_flat(other):
            header.set_sform(other, code=int(header["qform_code"]))
            return other, header
    return affine, header


def _is_flat(affine: NDArray[np.float64]) -> bool:
    """Whether an affine has an axis without length, or numbers that are none."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    return not np.isfinite(affine).all() or bool((lengths < 1e-6).any())


def _check_units(header: Any, path: Path | str) -> None:
    """Refuse scans measured in metres or microns; unknown is taken for mm, as everybody does."""
    code = int(header["xyzt_units"]) % 8 if isinstance(header, nib.Nifti1Header) else 0
    if code in (1, 3):
        unit = "metres" if code == 1 else "microns"
        raise ScanError("units", f"{path} is measured in {unit}; convert its header to mm")


def _stored_values(image: Any, path: Path | str, frame: int) -> tuple[NDArray[Any], float, float]:
    """One frame (X, Y, Z) as it lies on disk and its scale: int16 is never blown up to float64."""
    proxy, shape = image.dataobj, (*image.shape[:3], -1)
    with reading(
        lambda what: ScanError(
            "damaged", f"cannot read the voxels of {path} (truncated or damaged?): {what}"
        )
    ):
        # exactly this class: its children (AFNI) scale in other ways, which only they know
        if type(proxy) is not nib.arrayproxy.ArrayProxy:
            return np.asanyarray(proxy).reshape(shape, order="F")[..., frame], 1.0, 0.0
        slope, inter = float(proxy.slope), float(proxy.inter)
        if isinstance(proxy.file_like, str) and proxy.file_like.lower().endswith(READ_HERE):
            return _frame_of_file(proxy, frame), slope, inter
        with np.errstate(over="ignore"):  # the size that a damaged header states
            unscaled = np.asanyarray(proxy.get_unscaled())
        return unscaled.reshape(shape, order="F")[..., frame], slope, inter


def _frame_of_file(proxy: Any, frame: int) -> NDArray[Any]:
    """One frame; the others are passed over and never held."""
    plane, frames = tuple(proxy.shape[:3]), int(np.prod(proxy.shape[3:]))
    frame_bytes = int(np.prod(plane, dtype=object)) * proxy.dtype.itemsize
    return gzip_array.read_array(
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
    if _is_flat(affine):
        raise ScanError(
            "degenerate", f"{path} has a degenerate affine (voxel sizes {lengths.tolist()} mm)"
        )
    cosines = (axes / lengths).T @ (axes / lengths)
    shear = float(
        np.degrees(np.arcsin(np.clip(np.abs(cosines[~np.eye(3, dtype=bool)]).max(), 0, 1)))
    )
    if shear > MAX_SHEAR_DEGREES:
        raise ScanError(
            "sheared",
            f"{path} is sheared by {shear:.1f} degrees (gantry tilt?); "
            "resample it to an orthogonal grid",
        )
    if np.isnan(orientations.io_orientation(affine)).any():
        raise ScanError(
            "degenerate", f"{path} has voxels of {lengths.tolist()} mm, flat beside their length"
        )
