"""arrays -> NIfTI files: labels and maps on a scan's own grid, and scans.

Whatever is written here is written beside its target first and moved into place.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from leuda_deploy.errors import InputError, printable
from leuda_deploy.machine.files import atomic_path
from leuda_deploy.machine.outside import open_file, parse_json
from leuda_deploy.scans.formats import gzip_array
from leuda_deploy.scans.volume import Volume, load_image

# All that is taken from a scan's header: numbers that say where its voxels lie.
GEOMETRY = (
    *("pixdim", "xyzt_units", "qform_code", "sform_code"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z"),
)
OWN_MARK = b"leuda"  # as the name of the intent: what we wrote is no scan
INTENT_NAME_AT = (328, 508)  # in a header of NIfTI-1, and of NIfTI-2
NIFTI2_BYTES = 540
COMMENT_EXTENSION = 6  # NIfTI-1 extension code "comment", where the label names are kept


def write_labels(
    path: Path | str, labels: NDArray[np.uint8], scan: Volume, names: Mapping[int, str]
) -> None:
    """Write labels on the scan's own grid: shape, affine, sform and qform with codes, bit for bit.

    The same labels give the same bytes. A reader never sees half a file.

    Args:
        path: *.nii.gz or *.nii.
        labels: (X, Y, Z) uint8.
        scan: The scan that was labelled.
        names: Label value -> structure, kept in a header extension.

    Raises:
        InputError: The path does not end in .nii.gz or .nii.
    """
    image = _on_grid(labels, scan)
    image.header.set_intent("label", name=OWN_MARK.decode())
    content = json.dumps({"leuda": {"labels": {str(k): v for k, v in names.items()}}})
    image.header.extensions.append(nib.nifti1.Nifti1Extension(COMMENT_EXTENSION, content.encode()))
    _save(image, Path(path))


def write_map(path: Path | str, values: NDArray[np.uint8], scan: Volume) -> None:
    """Write a map (X, Y, Z) uint8 that is no label, e.g. uncertainty, on the scan's own grid."""
    image = _on_grid(values, scan)
    image.header["intent_name"] = OWN_MARK
    _save(image, Path(path))


def is_own_output(path: Path) -> bool:
    """Whether a NIfTI file carries the mark of `write_labels` and `write_map`: it is no scan."""
    try:
        with open_file(path) as file:
            packed = file.read(2) == gzip_array.GZIP_MAGIC
        with gzip.open(path, "rb") if packed else path.open("rb") as stream:
            head = stream.read(NIFTI2_BYTES)
    except (OSError, EOFError, zlib.error):
        return False
    return any(head[at : at + 16].rstrip(b"\0") == OWN_MARK for at in INTENT_NAME_AT)


def write_scan(
    path: Path | str,
    stored: NDArray[Any],
    affine: NDArray[np.floating[Any]],
    *,
    scale: tuple[float, float] | None = None,
) -> None:
    """Write a scan or its labels from an array. The same content gives the same bytes.

    Args:
        path: *.nii.gz; what is there is replaced.
        stored: (X, Y, Z), as it is to lie in the file.
        affine: (4, 4), voxel index -> RAS+ world in mm.
        scale: Slope and intercept, value = slope * stored + intercept. None: the header has none.
    """
    image = nib.Nifti1Image(stored, affine)
    if scale is not None:
        image.header.set_slope_inter(*scale)
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    with atomic_path(path) as temporary:
        # zlib's level 3 for good: the bytes of a phantom are part of its cohort's hash
        temporary.write_bytes(gzip.compress(image.to_bytes(), compresslevel=3, mtime=0))


def _on_grid(values: NDArray[np.uint8], scan: Volume) -> Any:
    """An image with these values and exactly the scan's geometry, and nothing else of it."""
    assert values.shape == scan.raw.shape
    assert values.dtype == np.uint8
    data = values.reshape(scan.shape)
    if scan.header is None:
        image = nib.Nifti1Image(data, scan.affine)
        image.header.set_xyzt_units("mm")
    else:
        single = nib.Nifti2Image if isinstance(scan.header, nib.Nifti2Header) else nib.Nifti1Image
        # made anew: free text, unused bytes and extensions of a scan's header may name the patient
        header = single.header_class(endianness=scan.header.endianness)
        header.set_data_dtype(np.uint8)
        header.set_data_shape(data.shape)
        for field in GEOMETRY:
            header[field] = scan.header[field]
        # affine=None: nibabel then leaves sform and qform exactly as they stand in the header
        image = single(data, None, header)
    image.header["scl_slope"], image.header["scl_inter"] = 1, 0
    image.header["cal_min"], image.header["cal_max"] = 0, 0
    return image


def _save(image: Any, path: Path) -> None:
    check_label_path(path)
    with (
        atomic_path(path) as temporary,
        gzip_array.open_to_write(temporary, compress=path.name.endswith(".gz")) as stream,
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
    image = load_image(Path(path))
    for extension in getattr(image.header, "extensions", []):
        if extension.get_code() != COMMENT_EXTENSION:
            continue
        try:
            content = extension.get_content()
            text = content.decode() if isinstance(content, bytes) else str(content)
            labels = parse_json(text.rstrip("\x00"), "the comment")["leuda"]["labels"]
            return {int(value): printable(str(name)) for value, name in labels.items()}
        except (ValueError, KeyError, TypeError, AttributeError):  # an InputError is a ValueError
            continue  # somebody else's comment
    return {}
