"""intensities of the scans a model was made for + those of a scan -> does it look like one of them.

A look at five figures, not a proof: it catches another modality, another unit, a cropped or an
inverted scan, not a patient with another disease.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from leuda_deploy.scans.intensity import Intensity

FIGURES = ("low", "high", "lower quartile", "median", "upper quartile")
ENDS = {
    "low": "low end",
    "high": "high end",
}  # in scanner units; the others are shares between them
# A scan this many spreads away does not look like the scans of training. Few of them make the
# spread uncertain, which the least spread allows for. Phantoms: CT among CT 1.1 at most, MR 12.
Z_LIMIT = 4.0
LEAST_SPREAD = 0.05  # of every figure, in units of the clipped range


class IntensityProfile(BaseModel):
    """What the unlabelled target scans of training look like, by figure (see `figures`).

    scans         how many there are
    mean, spread  over the scans, a number a figure; the spread is their standard deviation
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    scans: Annotated[int, Field(ge=1)]
    mean: Annotated[tuple[float, ...], Field(min_length=5, max_length=5)]
    spread: Annotated[tuple[float, ...], Field(min_length=5, max_length=5)]


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """How far a scan is from a profile.

    fits    whether it looks like the scans of the profile
    z       spreads between it and the profile's mean, of the figure that is furthest
    figure  which one that is, of FIGURES
    value   its value in this scan
    usual   its mean in the profile
    """

    fits: bool
    z: float
    figure: str
    value: float
    usual: float

    def __str__(self) -> str:
        end = ENDS.get(self.figure)
        here = f"{self.value:.4g}" if end else f"{self.value:.0%} of their range"
        there = f"{self.usual:.4g}" if end else f"{self.usual:.0%}"
        return (
            f"the {end or self.figure} of its intensities is at {here}, at {there} in the scans "
            "the model was made for "
            f"(z = {self.z:.1f}, at most {Z_LIMIT:g} is usual)"
        )


def figures(intensity: Intensity) -> tuple[float, ...]:
    """Clip limits in scanner units; quartiles as shares of the clipped range, 0 to 1."""
    low, high = intensity.low, intensity.high
    shares = (np.clip(intensity.quartiles, low, high) - low) / (high - low)
    return (low, high, *shares.tolist())


def profile_of(scans: Sequence[Intensity]) -> IntensityProfile:
    """The profile of these scans, of which there is at least one."""
    every = np.array([figures(scan) for scan in scans])
    return IntensityProfile(
        scans=len(scans),
        mean=tuple(every.mean(axis=0).tolist()),
        spread=tuple(every.std(axis=0).tolist()),
    )


def likeness(scan: Intensity, profile: IntensityProfile) -> Likeness:
    """How far a scan's figures are from the profile's, in spreads."""
    found, mean = np.array(figures(scan)), np.array(profile.mean)
    reach = np.array([mean[1] - mean[0]] * 2 + [1.0] * 3)
    spread = np.hypot(profile.spread, LEAST_SPREAD * reach)
    z = np.abs(found - mean) / spread
    worst = int(z.argmax())
    return Likeness(
        fits=bool(z[worst] <= Z_LIMIT),
        z=round(float(z[worst]), 2),
        figure=FIGURES[worst],
        value=float(found[worst]),
        usual=float(mean[worst]),
    )
