"""nothing -> a cohort of MR/CT heart phantoms, with labels.

No subject is scanned twice, so the two modalities are unpaired.
"""

from __future__ import annotations

import filecmp
import os
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray

from leuda_deploy.errors import InputError
from leuda_deploy.machine.files import atomic_path
from leuda_deploy.machine.progress import Progress, no_progress
from leuda_deploy.scans.nifti import write_scan
from leuda_train.data.phantom.anatomy import T, Tissue, draw_anatomy
from leuda_train.data.phantom.scanner import PROTOCOLS, draw_affine, render_ct, render_mr

# Raw label values of MM-WHS; every other tissue is 0.
RAW_LABEL = {T.MYO: 205, T.LAC: 420, T.LVC: 500, T.AA: 820, T.RA: 550, T.RV: 600, T.PA: 850}


class Role(NamedTuple):
    """A part in the cohort: its first subject number, modality, image and label folders."""

    first: int
    modality: str
    images: str
    labels: str | None


SUBJECTS_PER_ROLE = 500  # the room between first numbers
ROLES = {
    "source_labelled": Role(1001, "mr", "mr_labelled", "mr_labelled"),
    "source_unlabelled": Role(1501, "mr", "mr_unlabelled", None),
    "target_unlabelled": Role(2001, "ct", "ct_unlabelled", "ct_upper_bound"),
    "target_test": Role(2501, "ct", "ct_test", "ct_test"),
}

COHORT_TOML = """\
# A cohort: which scan plays which role.
name = "phantom-heart"

[classes]             # name = raw value in the label files; model class numbers follow this order, background is 0
MYO = 205
LAC = 420
LVC = 500
AA = 820

[codes]               # name = [scheme, value, meaning], for DICOM
MYO = ["SCT", "49848007", "Left Ventricle Myocardium"]
LAC = ["SCT", "82471001", "Left atrium"]
LVC = ["SCT", "87878005", "Left ventricle"]
AA = ["SCT", "54247002", "Ascending aorta"]

[slices]
axis = "superior"             # world direction (right | anterior | superior) or array axis ("array-0" | "array-1" | "array-2")
spacing_mm = [2.5, 2.5]        # in-plane grid of the network; "native" keeps each scan's own
background_values = [0, 550, 600, 850]   # raw label values that count as background; any other undeclared value is an error

[source]
modality = "MR"
labelled = { images = "mr_labelled/*_image.nii.gz", labels = "mr_labelled/*_label.nii.gz" }
unlabelled = { images = "mr_unlabelled/*_image.nii.gz" }

[target]
modality = "CT"
unlabelled = { images = "ct_unlabelled/*_image.nii.gz" }
upper_bound = { labels = "ct_upper_bound/*_label.nii.gz" }  # for the upper bound alone
test = { images = "ct_test/*_image.nii.gz", labels = "ct_test/*_label.nii.gz" }
"""  # noqa: E501


def _write_subject(out: Path, role: Role, number: int, seed: int) -> None:
    rng = np.random.default_rng([seed, number])
    shape, affine = draw_affine(rng, PROTOCOLS[role.modality])
    spacing = voxel_sizes(affine)
    tissue = draw_anatomy(rng, shape, affine)
    if role.modality == "mr":
        image = render_mr(tissue, rng, spacing)
        stored = np.rint(image).astype(np.int16) if rng.random() < 0.5 else image
        inter = 0
    else:
        inter = (0, -1024)[rng.integers(2)]  # some scanners store HU + 1024
        stored = render_ct(tissue, rng, spacing) - np.int16(inter)
    name = f"{role.modality}_{number}"
    _write_new(out / role.images / f"{name}_image.nii.gz", stored, affine, (1.0, inter))
    if role.labels:
        raw = np.array([RAW_LABEL.get(t, 0) for t in Tissue], np.int16)
        label = out / role.labels / f"{name}_label.nii.gz"
        _write_new(label, raw[tissue], affine, (1.0, 0.0))


def _write_new(
    path: Path,
    stored: NDArray[Any],
    affine: NDArray[np.floating[Any]],
    scale: tuple[float, float],
) -> None:
    """Write a scan, or leave it if it stands there. Raises InputError if another one does."""
    if not os.path.lexists(path):
        write_scan(path, stored, affine, scale=scale)
        return
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / path.name
        write_scan(made, stored, affine, scale=scale)
        if not (path.is_file() and filecmp.cmp(made, path, shallow=False)):
            raise InputError(
                f"{path} is another scan than the one that would be written there: of another "
                "seed, or changed since; choose an empty folder"
            )


def write_cohort(  # noqa: PLR0913  (a number of subjects a role)
    out: Path,
    *,
    seed: int = 0,
    source_labelled: int = 4,
    source_unlabelled: int = 8,
    target_unlabelled: int = 8,
    target_test: int = 4,
    progress: Progress = no_progress,
) -> Path:
    """Write MR source and CT target phantoms under `out` and return the path of `cohort.toml`.

    A subject depends on `seed` and its own number alone, so the size of one role changes no other.
    Scans of another cohort already there would join this one, so they raise InputError, and so do
    a cohort.toml or scans that are not those that would be written: nothing is replaced.
    """
    counts = (source_labelled, source_unlabelled, target_unlabelled, target_test)
    if not all(0 <= count <= SUBJECTS_PER_ROLE for count in counts):
        raise InputError(f"a role has 0 to {SUBJECTS_PER_ROLE} subjects, not {counts}")
    plan = [
        (role, role.first + i)
        for role, count in zip(ROLES.values(), counts, strict=True)
        for i in range(count)
    ]
    names = {f"{role.modality}_{number}" for role, number in plan}
    for found in sorted(out.glob("*/*.nii.gz")):
        if found.name.rsplit("_", 1)[0] not in names:
            raise InputError(f"{found} is not of this cohort; choose an empty folder")
    path = out / "cohort.toml"
    if os.path.lexists(path) and not (path.is_file() and path.read_bytes() == COHORT_TOML.encode()):
        raise InputError(f"{path} is another cohort, or was changed since; choose an empty folder")
    for done, (role, number) in enumerate(plan, start=1):
        _write_subject(out, role, number, seed)
        progress(done, len(plan), f"{role.modality}_{number}")
    with atomic_path(path) as temporary:
        temporary.write_text(COHORT_TOML, encoding="utf-8")
    return path
