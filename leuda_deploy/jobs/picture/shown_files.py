"""scan file + label file -> what a picture of them shows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np

from leuda_deploy.errors import InputError
from leuda_deploy.jobs.picture.flags import flags_of
from leuda_deploy.jobs.picture.overlay import Shown
from leuda_deploy.model.card import PALETTE, Structure
from leuda_deploy.scans.label_map import label_map_of, label_values
from leuda_deploy.scans.nifti import read_label_names
from leuda_deploy.scans.volume import read_volume

MOST_STRUCTURES = 40  # more are no labels to look at: the file is likely an image


def read_shown(
    scan: Path,
    labels: Path | None,
    modality: str = "",
    class_values: Mapping[str, int] = MappingProxyType({}),
) -> Shown:
    """Read a scan and its labels; names come from the labels' header, else from `class_values`.

    Else a structure is called by its value.

    Raises:
        InputError: A file cannot be read, the grids differ, or the labels are none.
    """
    volume = read_volume(scan)
    if labels is None:
        nothing = np.zeros(volume.raw.shape, np.uint8, order="F")
        return Shown(volume=volume, labels=nothing, structures=(), modality=modality)
    label = read_volume(labels)
    said = read_label_names(labels) or {value: name for name, value in class_values.items()}
    names = {value: name for value, name in said.items() if value > 0}
    values = sorted({*names, *label_values(label)} - {0})
    if len(values) > MOST_STRUCTURES:
        raise InputError(
            f"{labels} holds {len(values)} values, at most {MOST_STRUCTURES} can be shown: is it "
            "an image?"
        )
    class_of_raw = {value: number for number, value in enumerate(values, start=1)}
    found = label_map_of(label, class_of_raw=class_of_raw, like=volume).labels
    structures = [
        Structure(
            name=names.get(value, f"value {value}")[:500],
            value=number,
            colour=PALETTE[(number - 1) % len(PALETTE)],
        )
        for value, number in class_of_raw.items()
    ]
    return Shown(
        volume=volume,
        labels=found,
        structures=structures,
        modality=modality,
        flags=flags_of(found, structures, volume.voxel_ml),
    )
