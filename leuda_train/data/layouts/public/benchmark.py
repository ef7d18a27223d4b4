"""what the public benchmarks have in common: the protocol that each keeps, and their splits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from leuda_deploy.errors import InputError
from leuda_deploy.machine.progress import Progress
from leuda_deploy.model.card import Code
from leuda_train.data.layouts.cohort_plan import CohortPlan, Pair, Side

# SNOMED CT, as DICOM has it (PS3.16)
ORGAN_CODES: Mapping[str, tuple[str, str]] = {
    "liver": ("10200004", "Liver"),
    "right_kidney": ("9846003", "Right kidney"),
    "left_kidney": ("18639004", "Left kidney"),
    "spleen": ("78961009", "Spleen"),
}
HEART_CODES: Mapping[str, tuple[str, str]] = {
    "MYO": ("49848007", "Left Ventricle Myocardium"),
    "LAC": ("82471001", "Left atrium"),
    "LVC": ("87878005", "Left ventricle"),
    "AA": ("54247002", "Ascending aorta"),
    "LV": ("87878005", "Left ventricle"),
    "RV": ("53085002", "Right ventricle"),
}


class PublicData(Protocol):
    """What a module of this folder has: where the files are expected, and which way it can go."""

    @property
    def LAYOUT(self) -> str:  # noqa: N802  (a module's constant)
        """The files of the download, for people."""

    @property
    def DIRECTIONS(self) -> tuple[str, ...]:  # noqa: N802
        """SOURCE-to-TARGET, the default first."""

    def plan(
        self, root: Path, out: Path, direction: str, labelled: str | None, progress: Progress
    ) -> CohortPlan:
        """Find and check the volumes, all paths absolute; what is converted goes under `out`."""


def snomed(table: Mapping[str, tuple[str, str]], names: Iterable[str]) -> dict[str, Code]:
    """The codes of all these names."""
    return {name: Code("SCT", *table[name]) for name in names}


def need(files: Iterable[Path], root: Path, layout: str) -> None:
    """Raises InputError, with the layout that was expected, unless every file is there."""
    missing = [path for path in files if not path.is_file()]
    if missing:
        more = f" (nor are {len(missing) - 1} others)" if len(missing) > 1 else ""
        where = missing[0].relative_to(root)
        raise InputError(f"{where} is not under {root}{more}; expected {layout}")


def take_labelled(order: Sequence[int], labelled: str | None) -> tuple[int, ...]:
    """The subjects that keep their labels: the first `labelled` of a published order, a quarter
    without it; so the 1-shot list is the beginning of the 4-shot list. Raises InputError.
    """
    if labelled is None:
        return tuple(order[: round(len(order) / 4)])
    if labelled == "all":
        return tuple(order)
    if not (labelled.isdecimal() and 1 <= int(labelled) <= len(order)):
        raise InputError(f"--labelled {labelled}: 1 to {len(order)} source volumes, or all")
    return tuple(order[: int(labelled)])


def unpaired_sides(
    scans: Mapping[str, Mapping[int, Pair]],
    test: Mapping[str, Sequence[int]],
    few: Sequence[int],
    source: str,
    target: str,
) -> tuple[Side, Side]:
    """Source and target of two modalities of different patients; scans and test by modality.

    The papers' test subjects of the source take no part. Labelled volumes stay in the order of
    `few`: see Cohort.with_labelled.
    """
    train = {m: [s for s in scans[m] if s not in test[m]] for m in (source, target)}
    return Side(
        modality=source.upper(),
        labelled=[scans[source][s] for s in few],
        unlabelled=[scans[source][s].image for s in train[source] if s not in few],
    ), Side(
        modality=target.upper(),
        labelled=[scans[target][s] for s in test[target]],
        unlabelled=[scans[target][s].image for s in train[target]],
        upper_bound=[scans[target][s].label for s in train[target]],
    )
