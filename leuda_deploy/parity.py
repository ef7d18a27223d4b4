"""two engines, same windows -> they agree, or the candidate is refused."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from leuda_deploy.errors import ParityError
from leuda_deploy.sliding_window import Engine

Float32 = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How far a candidate may be off: largest |Δlogit|, share of pixels with another label."""

    max_abs: float
    disagreement: float


# Measured differences of fp32 graphs are of the order of 1e-5 (another order of summation);
# a wrong weight, a dropped layer or swapped classes are at 1e-2 and far above.
FP32 = Limits(max_abs=2e-3, disagreement=1e-4)


@dataclass(frozen=True, kw_only=True)
class Parity:
    """What was found between a reference and a candidate."""

    stage: str
    windows: int
    max_abs: float
    mean_abs: float
    disagreement: float
    worst_window: int
    not_finite: int
    limits: Limits

    def as_dict(self) -> dict[str, object]:
        """For parity.json."""
        return asdict(self)


def check_parity(
    reference: Engine,
    candidate: Engine,
    windows: Float32,
    *,
    stage: str,
    limits: Limits = FP32,
    batch: int = 8,
) -> Parity:
    """Run both on windows (N, 1, h, w) and compare logits and labels.

    Raises ParityError, naming stage and window, if a limit is passed or a value is not finite.
    """
    largest = np.zeros(len(windows))
    total = differing = pixels = not_finite = values = 0.0
    for start in range(0, len(windows), batch):
        group = np.ascontiguousarray(windows[start : start + batch])
        expected, found = reference(group), candidate(group)
        if expected.shape != found.shape:
            raise ParityError(f"{stage}: logits {found.shape} instead of {expected.shape}")
        not_finite += float(np.count_nonzero(~np.isfinite(found)))
        gap = np.abs(expected.astype(np.float64) - found)
        largest[start : start + batch] = gap.max(axis=(1, 2, 3))
        total += float(gap.sum())
        values += gap.size
        differing += float(np.count_nonzero(expected.argmax(axis=1) != found.argmax(axis=1)))
        pixels += gap.size / gap.shape[1]
    parity = Parity(
        stage=stage,
        windows=len(windows),
        max_abs=float(largest.max()),
        mean_abs=total / values,
        disagreement=differing / pixels,
        worst_window=int(largest.argmax()),
        not_finite=int(not_finite),
        limits=limits,
    )
    if parity.not_finite:
        raise ParityError(f"{stage}: {parity.not_finite} logits are not finite")
    # written so that a NaN fails, too
    if not parity.max_abs <= limits.max_abs:
        raise ParityError(
            f"{stage}: largest |Δlogit| {parity.max_abs:.3g} in window {parity.worst_window}, "
            f"allowed {limits.max_abs:g}; nothing was kept"
        )
    if not parity.disagreement <= limits.disagreement:
        raise ParityError(
            f"{stage}: {parity.disagreement:.2%} of pixels get another label, "
            f"allowed {limits.disagreement:.2%}; nothing was kept"
        )
    return parity


def probe_windows(samples: Float32, seed: int = 0) -> Float32:
    """Real windows (N, h, w), then the same count over eight of noise: (M, 1, h, w) float32."""
    rng = np.random.default_rng(seed)
    count = max(1, len(samples) // 8)
    noise = rng.normal(samples.mean(), samples.std(), size=(count, *samples.shape[1:]))
    return np.concatenate([samples, noise.astype(np.float32)])[:, None]
