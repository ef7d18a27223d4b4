"""tissues -> an MR or CT scan of them, and the grid it was taken on.

A modality is a column of `APPEARANCE`, blur, noise and artefacts; a protocol is a field of view, a
resolution, and the ways in which scanners store the axes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from leuda_train.data.phantom.anatomy import Floats, T, Tissue, Vector, smooth_field

# Blood pools that share most of one subject's intensity draw.
BLOOD = ((T.LVC, T.LAC, T.AA, T.ARTERY), (T.RV, T.RA, T.PA, T.VEIN))


class Contrast(NamedTuple):
    """Intensity of a tissue: mean, spread between subjects, texture within one (all SDs)."""

    mean: float
    subject_sd: float
    texture_sd: float


# How each tissue looks: in bright-blood MR (1 = brightest; fat > marrow > blood > liver >
# myocardium) and in CT angiography (HU; left blood > right blood > myocardium > fat > lung).
APPEARANCE = {
    T.AIR: (Contrast(0.01, 0.0, 0.0), Contrast(-1000, 0, 0)),
    T.LUNG: (Contrast(0.04, 0.01, 0.01), Contrast(-820, 25, 25)),
    T.VESSEL: (Contrast(0.35, 0.02, 0.02), Contrast(120, 30, 20)),
    T.FAT: (Contrast(0.95, 0.04, 0.03), Contrast(-90, 8, 8)),
    T.MUSCLE: (Contrast(0.26, 0.03, 0.03), Contrast(52, 6, 8)),
    T.LIVER: (Contrast(0.36, 0.03, 0.02), Contrast(100, 8, 6)),
    T.CORTICAL: (Contrast(0.06, 0.01, 0.0), Contrast(850, 60, 40)),
    T.MARROW: (Contrast(0.75, 0.04, 0.04), Contrast(250, 30, 35)),
    T.WALL: (Contrast(0.28, 0.03, 0.02), Contrast(100, 8, 6)),
    T.MYO: (Contrast(0.28, 0.03, 0.02), Contrast(105, 8, 7)),
    T.LVC: (Contrast(0.62, 0.02, 0.02), Contrast(365, 22, 10)),
    T.LAC: (Contrast(0.60, 0.02, 0.02), Contrast(365, 22, 8)),
    T.AA: (Contrast(0.62, 0.02, 0.015), Contrast(370, 22, 6)),
    T.ARTERY: (Contrast(0.62, 0.02, 0.015), Contrast(370, 22, 6)),
    T.RV: (Contrast(0.56, 0.02, 0.02), Contrast(205, 22, 14)),
    T.RA: (Contrast(0.55, 0.02, 0.02), Contrast(205, 22, 18)),
    T.PA: (Contrast(0.58, 0.02, 0.015), Contrast(215, 22, 8)),
    T.VEIN: (Contrast(0.52, 0.02, 0.02), Contrast(205, 22, 18)),
}
MR, CT = 0, 1  # columns of APPEARANCE


class Protocol(NamedTuple):
    """How a modality samples the field: mm per voxel and mm of field, right/anterior/superior."""

    spacing: Vector
    field: Vector
    orientations: tuple[str, ...]  # array axis codes, as in nibabel.aff2axcodes


PROTOCOLS = {
    "mr": Protocol((1.6, 1.6, 4.0), (168, 168, 124), ("LPS", "PSR", "RAS")),
    "ct": Protocol((1.4, 1.4, 3.0), (164, 164, 120), ("LAS", "RAS", "LPS")),
}


def draw_affine(
    rng: np.random.Generator, protocol: Protocol
) -> tuple[tuple[int, int, int], Floats]:
    """Draw an oblique scan geometry: array shape and voxel -> RAS+ world affine (4, 4), mm."""
    spacing = np.array(protocol.spacing) * rng.uniform(0.94, 1.06, 3)[[0, 0, 2]]
    shape = np.rint(np.array(protocol.field) * rng.uniform(0.97, 1.03, 3) / spacing).astype(int)
    turn = rng.normal(size=3)
    turn *= rng.uniform(3, 10) / np.linalg.norm(turn)
    axes = Rotation.from_rotvec(turn, degrees=True).as_matrix() * spacing
    code = protocol.orientations[rng.integers(len(protocol.orientations))]
    order = ["RAS".find(c) if c in "RAS" else "LPI".find(c) for c in code]
    affine = np.eye(4)
    affine[:3, :3] = axes[:, order] * [1 if c in "RAS" else -1 for c in code]
    size = shape[order]
    centre = rng.normal([-15, 10, -150], [10, 10, 60])  # where the heart lies in the scanner
    affine[:3, 3] = centre - affine[:3, :3] @ ((size - 1) / 2)
    return (int(size[0]), int(size[1]), int(size[2])), affine


def _intensities(
    rng: np.random.Generator,
    tissue: NDArray[np.uint8],
    modality: int,
    spacing_mm: Floats,
) -> Floats:
    """Tissue map -> noise-free textured intensities (X, Y, Z) of a modality."""
    mean, subject_sd, texture_sd = np.array([APPEARANCE[t][modality] for t in Tissue], np.float32).T
    draw = rng.standard_normal(len(Tissue))
    for pool in BLOOD:
        draw[list(pool)] = draw[pool[0]] + 0.25 * draw[list(pool)]
    level = (mean + subject_sd * draw).astype(np.float32)
    texture = gaussian_filter(rng.standard_normal(tissue.shape, np.float32), 2.5 / spacing_mm)
    intensity: Floats = level[tissue] + texture_sd[tissue] * (texture / texture.std())
    return intensity


def render_mr(
    tissue: NDArray[np.uint8], rng: np.random.Generator, spacing_mm: Floats
) -> NDArray[np.float32]:
    """Tissue map (X, Y, Z) -> MR magnitude, arbitrary units of about 0-1200.

    `spacing_mm` (3,) is per array axis. Softened, with a coil bias field of about 25 % and
    Rician noise.
    """
    signal = _intensities(rng, tissue, MR, spacing_mm)
    signal = gaussian_filter(signal, 1.2 / spacing_mm)
    signal *= np.exp(0.14 * smooth_field(rng, tissue.shape, 4))
    real, imaginary = 0.03 * rng.standard_normal((2, *tissue.shape), np.float32)
    scale = rng.uniform(750, 1000)
    magnitude: NDArray[np.float32] = np.hypot(signal + real, imaginary).astype(np.float32)
    return magnitude * np.float32(scale)


def render_ct(
    tissue: NDArray[np.uint8], rng: np.random.Generator, spacing_mm: Floats
) -> NDArray[np.int16]:
    """Tissue map (X, Y, Z) -> CT in HU, int16, clipped to -1024..3071.

    `spacing_mm` (3,) is per array axis. Softened, with spatially correlated noise of 20-25 HU.
    """
    hu = gaussian_filter(_intensities(rng, tissue, CT, spacing_mm), 0.8 / spacing_mm)
    noise = gaussian_filter(rng.standard_normal(tissue.shape, np.float32), 0.9 / spacing_mm)
    hu += rng.uniform(20, 25) * noise / noise.std()
    return np.clip(np.rint(hu), -1024, 3071).astype(np.int16)
