"""all voxels of a scan -> percentiles, mean and deviation, exact, in little memory.

No copy of the scan is made. Whole numbers of a narrow range are counted by value. Of all others,
the values at the ranks asked for are found digit by digit, 16 bits at a time, as a radix sort would
find them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from leuda_deploy.scans.volume import Volume

NARROW = 1 << 20  # distinct whole numbers that are counted one by one
PIECE = 1 << 18  # voxels that are looked at together
DIGIT_BITS = 16
LOWEST_CT = -1024.0  # Hounsfield units: what is darker was made up
# a place along the last axis -> which voxels (X, Y) of that plane count
Counts = Callable[[int], NDArray[np.bool_]]


class Distribution(Protocol):
    """The finite voxels of a scan that are no padding, in scanner units."""

    count: int

    def percentiles(self, percent: Sequence[float]) -> tuple[float, ...]:
        """numpy.percentile's linear rule."""
        ...

    def mean_and_deviation(self, low: float, high: float) -> tuple[float, float]:
        """Of the values clipped to [low, high]."""
        ...


def distribution_of(volume: Volume, inside: Counts | None = None) -> Distribution:
    """The distribution of a scan's values, its padding left out, and what is not inside."""
    padding = volume.padding or _circle(volume)
    raw = volume.raw
    if raw.dtype.kind in "iub" and raw.size and int(raw.max()) - int(raw.min()) < NARROW:
        return _Counted(volume, padding, inside)
    return _Ranked(volume, padding, inside)


def _circle(volume: Volume) -> tuple[float, float] | None:
    """The stored value that fills the corners of a CT, outside the circle that was scanned.

    It is known by being darker than anything a CT measures: no background of an MR scan is taken
    for it.
    """
    if min(volume.raw.shape) < 2:
        return None
    corners = volume.raw[:: volume.raw.shape[0] - 1, :: volume.raw.shape[1] - 1]
    corners = corners[..., :: volume.raw.shape[2] - 1]
    value = float(corners.flat[0])
    if (corners == corners.flat[0]).all() and value * volume.slope + volume.inter < LOWEST_CT:
        return value, value
    return None


def _pieces(raw: NDArray[Any], inside: Counts | None) -> Iterator[NDArray[Any]]:
    """All voxels, some at a time, in the machine's byte order."""
    for place, part in enumerate(np.moveaxis(raw, -1, 0)):
        flat = part.ravel(order="K") if inside is None else part[inside(place)]
        for start in range(0, flat.size, PIECE):
            piece = flat[start : start + PIECE]
            yield piece.astype(piece.dtype.newbyteorder("="), copy=False)


def _interpolated(percent: Sequence[float], count: int, at: dict[int, float]) -> tuple[float, ...]:
    """numpy.percentile's linear rule, from the values at the ranks that `_ranks` names."""
    found = []
    for rank in (np.asarray(percent) / 100.0 * (count - 1)).tolist():
        below, above = at[int(np.floor(rank))], at[int(np.ceil(rank))]
        found.append(below + (above - below) * (rank - np.floor(rank)))
    return tuple(float(value) for value in found)


def _ranks(percent: Sequence[float], count: int) -> list[int]:
    """The ranks from 0 whose values `percent` needs, rising."""
    rank = np.asarray(percent) / 100.0 * (count - 1)
    return sorted({*np.floor(rank).astype(int).tolist(), *np.ceil(rank).astype(int).tolist()})


class _Counted:
    """Whole numbers of a narrow range: how often each occurs."""

    def __init__(
        self, volume: Volume, padding: tuple[float, float] | None, inside: Counts | None
    ) -> None:
        raw = volume.raw
        low = int(raw.min())
        counts = np.zeros(int(raw.max()) - low + 1, dtype=np.int64)
        for piece in _pieces(raw, inside):
            counts += np.bincount(piece.astype(np.int64) - low, minlength=counts.size)
        if padding is not None:
            first, last = (int(np.clip(value - low, -1, counts.size)) for value in padding)
            counts[max(0, first) : last + 1] = 0
        present = np.flatnonzero(counts)
        values = (present + low).astype(np.float64) * volume.slope + volume.inter
        order = slice(None) if volume.slope > 0 else slice(None, None, -1)
        self._values, self._counts = values[order], counts[present][order]
        self.count = int(self._counts.sum())

    def percentiles(self, percent: Sequence[float]) -> tuple[float, ...]:
        last_rank = np.cumsum(self._counts) - 1
        at = {
            rank: float(self._values[np.searchsorted(last_rank, rank)])
            for rank in _ranks(percent, self.count)
        }
        return _interpolated(percent, self.count, at)

    def mean_and_deviation(self, low: float, high: float) -> tuple[float, float]:
        clipped = np.clip(self._values, low, high)
        mean = float(np.average(clipped, weights=self._counts))
        deviation = float(np.sqrt(np.average((clipped - mean) ** 2, weights=self._counts)))
        return mean, deviation


class _Ranked:
    """Any other numbers: the values at the ranks that are asked for."""

    def __init__(
        self, volume: Volume, padding: tuple[float, float] | None, inside: Counts | None
    ) -> None:
        self._volume, self._padding, self._inside = volume, padding, inside
        self.count = sum(piece.size for piece in self._wanted())

    def _wanted(self) -> Iterator[NDArray[Any]]:
        """The finite voxels that are no padding, as stored, some at a time."""
        for piece in _pieces(self._volume.raw, self._inside):
            keep = np.isfinite(piece)
            if self._padding is not None:
                keep &= ~((piece >= self._padding[0]) & (piece <= self._padding[1]))
            yield piece[keep]

    def percentiles(self, percent: Sequence[float]) -> tuple[float, ...]:
        ranks = _ranks(percent, self.count)
        rising = self._volume.slope > 0
        stored = self._stored_at([rank if rising else self.count - 1 - rank for rank in ranks])
        at = {
            rank: value * self._volume.slope + self._volume.inter
            for rank, value in zip(ranks, stored, strict=True)
        }
        return _interpolated(percent, self.count, at)

    def mean_and_deviation(self, low: float, high: float) -> tuple[float, float]:
        def clipped() -> Iterator[NDArray[np.float64]]:
            for piece in self._wanted():
                values = piece.astype(np.float64) * self._volume.slope + self._volume.inter
                yield np.clip(values, low, high)

        mean = sum(float(values.sum()) for values in clipped()) / self.count
        squares = sum(float(((values - mean) ** 2).sum()) for values in clipped())
        return mean, float(np.sqrt(squares / self.count))

    def _stored_at(self, ranks: list[int]) -> list[float]:
        """The stored values at these ranks, as float64."""
        bits = 8 * _key_type(self._volume.raw.dtype).itemsize
        # rank -> (the leading bits of its key, how many keys with the same bits lie below it)
        known = {rank: (0, rank) for rank in ranks}
        for shift in range(bits - DIGIT_BITS, -1, -DIGIT_BITS):
            counts = self._count_digits({prefix for prefix, _ in known.values()}, shift, bits)
            for rank, (prefix, within) in known.items():
                last = np.cumsum(counts[prefix]) - 1
                digit = int(np.searchsorted(last, within))
                below = int(last[digit - 1]) + 1 if digit else 0
                known[rank] = (prefix << DIGIT_BITS | digit, within - below)
        keys = np.array([known[rank][0] for rank in ranks], dtype=np.uint64)
        dtype = self._volume.raw.dtype
        values: list[float] = _of_keys(keys.astype(_key_type(dtype)), dtype).astype(float).tolist()
        return values

    def _count_digits(
        self, prefixes: set[int], shift: int, bits: int
    ) -> dict[int, NDArray[np.int64]]:
        """How often each next digit occurs behind each prefix."""
        counts = {prefix: np.zeros(1 << DIGIT_BITS, dtype=np.int64) for prefix in prefixes}
        for piece in self._wanted():
            keys = _keys(piece)
            digits = (keys >> keys.dtype.type(shift)).astype(np.int64) & ((1 << DIGIT_BITS) - 1)
            for prefix, found in counts.items():
                behind = digits
                if shift + DIGIT_BITS < bits:
                    behind = digits[(keys >> keys.dtype.type(shift + DIGIT_BITS)) == prefix]
                found += np.bincount(behind, minlength=found.size)
        return counts


def _key_type(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(f"u{min(8, max(4, dtype.itemsize))}")


def _keys(values: NDArray[Any]) -> NDArray[Any]:
    """Unsigned numbers that rise as the values do."""
    key = _key_type(values.dtype)
    top = key.type(1 << (8 * key.itemsize - 1))
    if values.dtype.kind == "f":
        bits = values.astype(f"f{key.itemsize}", copy=False).view(key)
        rising: NDArray[Any] = np.where(bits & top, ~bits, bits | top)
        return rising
    if values.dtype.kind == "u" or values.dtype.kind == "b":
        return values.astype(key)
    shifted: NDArray[Any] = values.astype(f"i{key.itemsize}").view(key) ^ top
    return shifted


def _of_keys(keys: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """The values that have these keys."""
    top = keys.dtype.type(1 << (8 * keys.dtype.itemsize - 1))
    if dtype.kind == "f":
        bits = np.where(keys & top, keys ^ top, ~keys)
        numbers: NDArray[Any] = bits.view(f"f{keys.dtype.itemsize}")
        return numbers
    if dtype.kind == "u" or dtype.kind == "b":
        return keys
    whole: NDArray[Any] = (keys ^ top).view(f"i{keys.dtype.itemsize}")
    return whole
