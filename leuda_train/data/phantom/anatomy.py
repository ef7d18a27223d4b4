"""a voxel grid and a generator -> which tissue every voxel of one patient is made of.

Anatomy is drawn in the patient's own frame (mm, +x right, +y anterior, +z superior, the origin at
the heart) from two tables of implicit shapes, `BODY` and `HEART`, and sampled on the voxel grid
through the scan's affine. Subjects differ in pose, size, organ position and a smooth warp.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, zoom
from scipy.spatial.transform import Rotation

Floats = NDArray[np.floating]
Vector = tuple[float, float, float]


class Tissue(IntEnum):
    """What a voxel is made of."""

    AIR, LUNG, VESSEL, FAT, MUSCLE, LIVER, CORTICAL, MARROW, WALL = range(9)
    MYO, LVC, LAC, AA, RV, RA, PA = range(9, 16)
    ARTERY, VEIN = 16, 17  # aortic arch, descending aorta and pulmonary veins; venae cavae


T = Tissue

# The heart's frame: rows are base -> apex (left, anterior, inferior), base -> outflow tracts, and
# left ventricle -> septum (right).
LONG_AXIS = ((-0.650, 0.550, -0.524), (0.088, 0.738, 0.669), (0.755, 0.389, -0.528))
UPRIGHT = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


class Ellipsoid(NamedTuple):
    """Superellipsoid in mm: `power` 2 is an ellipsoid, 4 a rounded box; cut `base` mm behind."""

    centre: Vector
    radii: Vector
    frame: tuple[Vector, Vector, Vector] = UPRIGHT
    power: int = 2
    base: float = np.inf


class Tube(NamedTuple):
    """Everything within `radius` mm of a polyline."""

    points: tuple[Vector, ...]
    radius: float


class Structure(NamedTuple):
    """A shape filled with `tissue` inside a shell of `wall`, which is `wall_mm` thick."""

    tissue: Tissue
    shape: Ellipsoid | Tube
    wall: Tissue = Tissue.WALL
    wall_mm: float = 0.0


# Painted in order, later over earlier. The patient's midline is x = 14.
BODY = (
    Structure(T.LIVER, Ellipsoid((48, 0, -106), (92, 82, 60)), T.MUSCLE, 3),
    Structure(T.MUSCLE, Ellipsoid((-62, -12, -118), (58, 70, 60)), T.FAT, 3),  # stomach, spleen
    Structure(T.VEIN, Tube(((40, -12, -25), (34, -20, -120)), 11), wall_mm=1.5),  # inferior cava
    Structure(T.FAT, Tube(((2, -56, -120), (6, -52, 120)), 17)),  # posterior mediastinum
    Structure(T.FAT, Ellipsoid((8, 12, 75), (36, 42, 75), power=3)),  # superior mediastinum
    Structure(T.MARROW, Ellipsoid((14, 70, 35), (17, 5.5, 85), power=4), T.CORTICAL, 2),  # sternum
    *(
        Structure(T.MARROW, Ellipsoid((14, -80, z), (19, 16, 11), power=4), T.CORTICAL, 2)
        for z in range(-87, 117, 29)
    ),
    *(Structure(T.MUSCLE, Ellipsoid((14, -80, z), (18, 15, 4))) for z in range(-72, 102, 29)),
    Structure(T.MUSCLE, Tube(((2, -50, -120), (8, -53, 0), (12, -48, 120)), 6)),  # oesophagus
    Structure(T.AIR, Tube(((14, -34, 120), (12, -36, 50)), 7.5), T.WALL, 2),  # trachea
    Structure(T.AIR, Tube(((-32, -42, 24), (12, -36, 50), (52, -42, 28)), 5.5), T.WALL, 1.5),
)
HEART = (
    Structure(
        T.VEIN, Tube(((36, -4, 5), (34, -2, 40), (30, 2, 120)), 9), wall_mm=1.5
    ),  # superior cava
    Structure(T.RV, Ellipsoid((10, 26, -22), (43, 32, 25), LONG_AXIS), wall_mm=3),
    Structure(T.RV, Tube(((4, 32, -14), (-10, 37, 8)), 14)),  # outflow tract
    Structure(T.RA, Ellipsoid((43, 0, -16), (21, 25, 28)), wall_mm=2.5),
    Structure(T.PA, Tube(((-10, 38, 10), (-16, 30, 24), (-18, 12, 40), (-12, -8, 47)), 12.5)),
    Structure(T.PA, Tube(((-50, -28, 46), (-12, -8, 47), (16, -20, 42), (60, -28, 36)), 8.5)),
    Structure(T.ARTERY, Tube(((-42, -38, 12), (-10, -28, 4)), 6.5), wall_mm=1),
    Structure(T.ARTERY, Tube(((-40, -36, -14), (-10, -28, -4)), 6.5), wall_mm=1),
    Structure(T.ARTERY, Tube(((50, -38, 10), (10, -28, 4)), 6.5), wall_mm=1),
    Structure(T.ARTERY, Tube(((48, -38, -14), (10, -28, -4)), 6.5), wall_mm=1),
    Structure(
        T.WALL, Ellipsoid((-14, 4, -12), (48, 27, 27), LONG_AXIS, base=21), wall_mm=8
    ),  # annulus
    Structure(T.LAC, Ellipsoid((2, -24, 1), (28, 22, 26)), wall_mm=2.5),
    Structure(
        T.ARTERY,
        Tube(((6, -2, 78), (-6, -36, 82), (-12, -60, 60), (-12, -62, 0), (-8, -60, -130)), 11.5),
        wall_mm=1.5,
    ),
    Structure(
        T.AA, Tube(((-3, 4, 2), (5, 8, 18), (13, 11, 38), (14, 7, 60), (8, 0, 74)), 15), wall_mm=2
    ),
    Structure(T.LVC, Ellipsoid((-14, 4, -12), (47, 25, 25), LONG_AXIS, base=16), T.MYO, 11),
)
EPICARDIAL_FAT_MM = 4.0
CHEST_CENTRE, CHEST_RADII = (14.0, -15.0), (114.0, 78.0)  # inner chest wall, axial ellipse, mm


def smooth_field(rng: np.random.Generator, shape: tuple[int, ...], knots: int) -> Floats:
    """Draw a smooth random field (X, Y, Z) with `knots` unit-variance knots an axis."""
    field = rng.standard_normal((knots,) * 3).astype(np.float32)
    for size in shape:  # each pass interpolates the first axis and moves it to the end
        weights = zoom(np.eye(knots, dtype=np.float32), (size / knots, 1), order=3)
        field = np.tensordot(field, weights, axes=(0, 1))
    return field


def _to_patient(rng: np.random.Generator, shape: tuple[int, ...], affine: Floats) -> Floats:
    """Voxel grid -> patient coordinates (3, X*Y*Z) in mm, with random pose, build and warp."""
    turn = Rotation.from_euler("xyz", rng.normal(0, [3, 3, 4]), degrees=True).as_matrix()
    build = np.diag(1 / rng.normal(1, [0.04, 0.04, 0.03])) @ turn
    steps = build @ affine[:3, :3]
    grid = [np.arange(n, dtype=np.float32) - (n - 1) / 2 for n in shape]
    points = np.empty((3, *shape), np.float32)
    for axis, shift in enumerate(rng.normal([4, 0, -8], 2.5)):
        a, b, c = (np.float32(s) * g for s, g in zip(steps[axis], grid, strict=True))
        points[axis] = a[:, None, None] + b[:, None] + c + np.float32(shift)
        points[axis] += 2.2 * smooth_field(rng, shape, 5)
    return points.reshape(3, -1)


def _vector(values: Floats) -> Vector:
    x, y, z = values.tolist()
    return x, y, z


def _jitter(rng: np.random.Generator, shape: Ellipsoid | Tube) -> Ellipsoid | Tube:
    """Move a shape by about 1.2 mm and resize it by about 4 %."""
    shift, size = rng.normal(0, 1.2, 3), rng.uniform(0.94, 1.07)
    if isinstance(shape, Tube):
        points = tuple(_vector(shift + point) for point in shape.points)
        return Tube(points, shape.radius * size)
    radii = size * rng.uniform(0.97, 1.03, 3) * shape.radii
    return shape._replace(centre=_vector(shift + shape.centre), radii=_vector(radii))


def _distance(points: Floats, shape: Ellipsoid | Tube) -> Floats:
    """First-order signed distance (N,) in mm from points (3, N) to a shape's surface."""
    if isinstance(shape, Tube):
        ends = np.array(shape.points, np.float32)
        nearest = np.full(points.shape[1], np.inf, np.float32)
        for start, step in zip(ends[:-1], np.diff(ends, axis=0), strict=True):
            offset = points - start[:, None]
            along = np.clip(step @ offset / (step @ step), 0, 1)
            offset -= step[:, None] * along
            nearest = np.minimum(nearest, np.einsum("in,in->n", offset, offset))
        return np.sqrt(nearest) - shape.radius
    frame = np.array(shape.frame, np.float32)
    local = frame @ (points - np.array(shape.centre, np.float32)[:, None])
    radii = np.array(shape.radii, np.float32)[:, None]
    scaled = np.abs(local) / radii + 1e-4
    level = (scaled**shape.power).sum(0) ** (1 / shape.power)
    slope = np.sqrt((((scaled / level) ** (shape.power - 1) / radii) ** 2).sum(0))
    return np.where(local[0] < -shape.base, np.inf, (level - 1) / slope)


def _near(points: Floats, shape: Ellipsoid | Tube, margin: float) -> NDArray[np.intp]:
    """Indices of the points inside a shape's bounding box, grown by `margin` mm."""
    if isinstance(shape, Tube):
        ends, reach = np.array(shape.points), shape.radius + margin
        low, high = ends.min(0) - reach, ends.max(0) + reach
    else:
        extent = np.linalg.norm(np.array(shape.radii)[:, None] * shape.frame, axis=0) + margin
        low, high = np.array(shape.centre) - extent, np.array(shape.centre) + extent
    inside = np.ones(points.shape[1], bool)
    for axis in range(3):
        inside &= (points[axis] > low[axis]) & (points[axis] < high[axis])
    return np.flatnonzero(inside)


def _paint(
    rng: np.random.Generator,
    tissue: NDArray[np.uint8],
    points: Floats,
    structures: tuple[Structure, ...],
    fat_mm: float = 0.0,
) -> None:
    """Paint jittered structures, walls before contents, the chambers on a bed of fat."""
    drawn = []
    for structure in structures:
        shape, wall = _jitter(rng, structure.shape), structure.wall_mm * rng.uniform(0.93, 1.07)
        near = _near(points, shape, wall + fat_mm)
        drawn.append((structure, wall, near, _distance(points[:, near], shape)))
    for structure, wall, near, distance in drawn:
        if fat_mm and isinstance(structure.shape, Ellipsoid):
            tissue[near[distance < wall + fat_mm]] = T.FAT
    for structure, wall, near, distance in drawn:
        tissue[near[distance < wall]] = structure.wall
        tissue[near[distance < 0]] = structure.tissue


def _chest(rng: np.random.Generator, points: Floats) -> NDArray[np.uint8]:
    """Lungs inside a chest wall of muscle with slanted ribs, fat, and air around it; (N,)."""
    x, y = ((points[i] - CHEST_CENTRE[i]) / CHEST_RADII[i] for i in (0, 1))
    level = np.sqrt(x * x + y * y) + 1e-4
    slope = np.hypot(x / CHEST_RADII[0], y / CHEST_RADII[1]) / level
    depth = (level - 1) / slope  # mm outside the inner chest wall
    muscle = rng.uniform(10, 13)
    fat = muscle + rng.uniform(4, 10)
    tissue = np.select(
        [depth < 0, depth < muscle, depth < fat], [T.LUNG, T.MUSCLE, T.FAT], T.AIR
    ).astype(np.uint8)
    between = (points[2] + 0.35 * points[1] + rng.uniform(0, 27)) % 27 - 13.5
    rib = np.hypot(depth - 6, 0.8 * between)
    tissue[rib < 5] = T.CORTICAL
    tissue[rib < 3] = T.MARROW
    return tissue


def draw_anatomy(
    rng: np.random.Generator, shape: tuple[int, int, int], affine: Floats
) -> NDArray[np.uint8]:
    """Draw one patient on a voxel grid whose middle is near the heart.

    `affine` (4, 4) maps voxels to RAS+ mm. Returns the `Tissue` of every voxel, uint8 (X, Y, Z).
    """
    points = _to_patient(rng, shape, affine)
    tissue = _chest(rng, points)
    speckle = gaussian_filter(rng.standard_normal(shape, np.float32), 1.2).ravel()
    tissue[(tissue == T.LUNG) & (speckle > 1.9 * speckle.std())] = T.VESSEL
    _paint(rng, tissue, points, BODY)
    turn = Rotation.from_euler("xyz", rng.normal(0, 4, 3), degrees=True).as_matrix()
    pose = (turn / rng.uniform(0.95, 1.08)).astype(np.float32)
    heart = pose @ points + rng.normal(0, 2, (3, 1)).astype(np.float32)
    _paint(rng, tissue, heart, HEART, EPICARDIAL_FAT_MM)
    return tissue.reshape(shape)
