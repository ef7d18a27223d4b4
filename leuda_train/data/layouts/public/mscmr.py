"""MS-CMRSeg 2019 (short-axis bSSFP and LGE of the same patients) -> CohortPlan, cardiac.

Data: Zhuang, TPAMI 41(12), 2019; Wu and Zhuang, TMI 2021. Patient N is one person in both folders,
so every split is by patient. bSSFP has labels for patients 1 to 25, LGE for 26 to 30 alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from leuda_deploy.machine.progress import Progress
from leuda_train.data.layouts.cohort_plan import CohortPlan, Pair, Side
from leuda_train.data.layouts.public.anatomy import Rule, check_all, check_same_side
from leuda_train.data.layouts.public.benchmark import HEART_CODES, need, snomed, take_labelled

LAYOUT = (
    "MS-CMRSeg: bssfp/patient1_C0.nii.gz and bssfp/patient1_C0_manual.nii.gz (patients 1 to 25), "
    "lge/patient1_LGE.nii.gz (1 to 30) and lge/patient26_LGE_manual.nii.gz (26 to 30)"
)
DIRECTIONS = ("bssfp-to-lge", "lge-to-bssfp")
BSSFP, LGE_WITHOUT_LABELS, LGE_WITH_LABELS = range(1, 26), range(1, 26), range(26, 31)
# The reverse direction has source labels of 26 to 30 alone, of whom there is no bSSFP. Five bSSFP
# patients are kept for its test; their LGE scans then take no part.
REVERSE_TEST = range(21, 26)
CLASSES = {"MYO": 200, "LV": 500, "RV": 600}
SPACING_MM = (1.3, 1.3)
# The bSSFP headers say 1.19 to 1.25 mm, but the same hearts are as many pixels wide as in LGE.
BSSFP_PIXEL_MM = (0.75, 0.75)
RULES = (Rule("RV", "right", "LV"), Rule("RV", "anterior", "LV"))


def plan(
    root: Path,
    out: Path,
    direction: str,
    labelled: str | None,
    progress: Progress,
) -> CohortPlan:
    """Find and check the volumes. root absolute; direction one of DIRECTIONS. Raises InputError."""
    bssfp = {n: _pair(root, "bssfp", n, "C0") for n in BSSFP}
    lge = {n: _pair(root, "lge", n, "LGE") for n in (*LGE_WITHOUT_LABELS, *LGE_WITH_LABELS)}
    every = [*bssfp.values(), *(lge[n] for n in LGE_WITH_LABELS)]
    labels = [pair.label for pair in every]
    need([*(p.image for p in (*bssfp.values(), *lge.values())), *labels], root, LAYOUT)
    check_all(labels, CLASSES, RULES, progress)
    check_same_side(labels, CLASSES["RV"], CLASSES["LV"], axis=2)
    forward = direction == DIRECTIONS[0]
    # a quarter of the 25 source volumes would be 6; the first four are this project's 4-shot list
    few = take_labelled(BSSFP if forward else LGE_WITH_LABELS, labelled or "4")
    source, target = _forward(bssfp, lge, few) if forward else _reverse(bssfp, lge, few)
    return CohortPlan(
        name=f"mscmr-{direction}-{len(few)}-shot",
        about=_about(direction, few),
        classes=CLASSES,
        codes=snomed(HEART_CODES, CLASSES),
        background=(),
        axis="array-2",  # double-oblique affines, mixed axis codes; slices are axis 2 in all
        spacing_mm=SPACING_MM,
        source=source,
        target=target,
        subject=r"(patient\d+)_",
    )


def _forward(bssfp: dict[int, Pair], lge: dict[int, Pair], few: Sequence[int]) -> tuple[Side, Side]:
    source = Side(
        modality="bSSFP",
        labelled=[bssfp[n] for n in few],
        unlabelled=[bssfp[n].image for n in BSSFP if n not in few],
        pixel_spacing_mm=BSSFP_PIXEL_MM,
    )
    target = Side(
        modality="LGE",
        labelled=[lge[n] for n in LGE_WITH_LABELS],
        unlabelled=[lge[n].image for n in LGE_WITHOUT_LABELS],
    )
    return source, target


def _reverse(bssfp: dict[int, Pair], lge: dict[int, Pair], few: Sequence[int]) -> tuple[Side, Side]:
    train = [n for n in BSSFP if n not in REVERSE_TEST]
    source = Side(
        modality="LGE",
        labelled=[lge[n] for n in few],
        unlabelled=[lge[n].image for n in _without((*train, *LGE_WITH_LABELS), few)],
    )
    target = Side(
        modality="bSSFP",
        labelled=[bssfp[n] for n in REVERSE_TEST],
        unlabelled=[bssfp[n].image for n in train],
        upper_bound=[bssfp[n].label for n in train],
        pixel_spacing_mm=BSSFP_PIXEL_MM,
    )
    return source, target


def _without(numbers: Iterable[int], few: Sequence[int]) -> list[int]:
    return [n for n in numbers if n not in few]


def _about(direction: str, few: Sequence[int]) -> list[str]:
    lines = [
        f"MS-CMRSeg 2019, cardiac cross-sequence MR, {direction}. Patient N is one person in",
        "both folders, so the split is by patient.",
        f"Labelled source patients: {' '.join(map(str, few))}. The labels of others are not used.",
        "The bSSFP pixel size in the headers is stale: the same hearts measure as many pixels as",
        "in LGE, so LGE's pixel size is used.",
    ]
    if direction == DIRECTIONS[1]:
        lines += [
            "LGE has labels for patients 26 to 30 alone, so at most five volumes can be labelled,",
            "and these cannot serve as test for any model of this cohort. Test: bSSFP of patients",
            "21 to 25, whose LGE scans take no part.",
        ]
    return lines


def _pair(root: Path, folder: str, number: int, sequence: str) -> Pair:
    stem = root / folder / f"patient{number}_{sequence}"
    return Pair(Path(f"{stem}.nii.gz"), Path(f"{stem}_manual.nii.gz"))
