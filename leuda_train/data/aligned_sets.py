"""the image sets of a run, aligned row by row: what batches are drawn from.

On disk as they are, or, where they fit, on the GPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leuda_train.config.streams import Stream
from leuda_train.loop.hardware import Hardware

RESIDENT_SHARE = 0.25  # of the GPU's free memory, that image sets may take


@dataclass(frozen=True, kw_only=True)
class AlignedSets:
    """Six image sets, (N, h, w) float32 each; rows of one family show the same slice.

    Memory-mapped, or, after `on_device`, tensors on the GPU.

    classes        K, background included, whether or not each is in the labels
    labels         (N, h, w) uint8, of the rows of the family that is supervised
    labelled_rows  the rows whose labels are trained on
    held_out_rows  rows that have labels, too, but are chosen by; none: nothing is chosen
    source_scans, target_scans  (N,) which scan a slice is of; those of a scan follow one another
    self_labelled_rows  source rows whose labels a teacher made; none of them is in the others
    known_shares   (K,) what `class_shares` is of labels that are not at hand
    """

    images: Mapping[Stream, NDArray[np.float32] | Tensor]
    classes: int
    labels: NDArray[np.uint8] | Tensor
    labelled_rows: NDArray[np.int64]
    held_out_rows: NDArray[np.int64] | None = None
    source_scans: NDArray[np.int64] | None = None
    target_scans: NDArray[np.int64] | None = None
    self_labelled_rows: NDArray[np.int64] | None = None
    known_shares: Tensor | None = None

    @cached_property
    def structure_rows(self) -> NDArray[np.int64]:
        """The labelled rows that show any structure."""
        return self._showing(self.labelled_rows)

    @cached_property
    def self_labelled_structure_rows(self) -> NDArray[np.int64]:
        """The rows labelled by a teacher that show any structure."""
        assert self.self_labelled_rows is not None
        return self._showing(self.self_labelled_rows)

    def _showing(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.array([r for r in rows if (self.labels[int(r)] > 0).any()], dtype=np.int64)

    @cached_property
    def class_shares(self) -> Tensor:
        """(K,) float32: the share of the labelled rows' pixels that each class has."""
        if self.known_shares is not None:
            return self.known_shares
        counts = torch.zeros(self.classes)
        for row in self.labelled_rows:
            label = self.labels[int(row)]
            label = label.cpu().numpy() if isinstance(label, Tensor) else label
            counts += torch.from_numpy(np.bincount(label.ravel(), minlength=self.classes))
        return counts / counts.sum()

    def on_device(self, hardware: Hardware) -> AlignedSets:
        """The same sets on the GPU where they fit `RESIDENT_SHARE` of its free memory."""
        *images, labels = on_device([*self.images.values(), self.labels], hardware)
        return replace(self, images=dict(zip(self.images, images, strict=True)), labels=labels)


def on_device(
    sets: Sequence[NDArray[Any] | Tensor], hardware: Hardware
) -> list[NDArray[Any] | Tensor]:
    """The sets as tensors on the GPU if all of them fit there; else, and on CPUs, as they are."""
    if hardware.device.type != "cuda":
        return list(sets)
    free, _ = torch.cuda.mem_get_info(hardware.device)
    if sum(images.nbytes for images in sets) > RESIDENT_SHARE * free:
        return list(sets)
    return [torch.from_numpy(np.array(images)).to(hardware.device) for images in sets]


def take_rows(images: NDArray[Any] | Tensor, rows: NDArray[np.int64], hardware: Hardware) -> Tensor:
    """Some rows of a set (N, h, w), on the device.

    From host memory they go through pinned memory, so that the next batch is drawn and copied while
    the device is still busy with this one.
    """
    if isinstance(images, Tensor):
        return images[torch.from_numpy(rows).to(images.device)]
    chosen = torch.from_numpy(images[rows])
    if hardware.device.type == "cuda":
        chosen = chosen.pin_memory()
    return chosen.to(hardware.device, non_blocking=True)
