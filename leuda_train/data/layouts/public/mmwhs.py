"""MM-WHS 2017 (20 MR, 20 CT, unpaired) -> CohortPlan, cardiac.

Data: Zhuang and Shen, Med. Image Anal. 31, 2016; Zhuang et al., Med. Image Anal. 58, 2019. The test
ids are those of SIFA (Chen et al., TMI 2020), which the later papers keep.
"""

from __future__ import annotations

from pathlib import Path

from leuda_deploy.machine.progress import Progress
from leuda_train.data.layouts.cohort_plan import CohortPlan, Pair, Value
from leuda_train.data.layouts.public.anatomy import Rule, check_all
from leuda_train.data.layouts.public.benchmark import (
    HEART_CODES,
    need,
    snomed,
    take_labelled,
    unpaired_sides,
)

LAYOUT = (
    "MM-WHS 2017: mr_train/mr_train_1001_image.nii.gz, mr_train/mr_train_1001_label.nii.gz, "
    "ct_train/ct_train_1001_image.nii.gz and so on, 1001 to 1020 of both"
)
DIRECTIONS = ("mr-to-ct", "ct-to-mr")
SUBJECTS = tuple(range(1001, 1021))
TEST = {"mr": (1007, 1009, 1018, 1019), "ct": (1003, 1008, 1014, 1019)}
# Which source volumes keep their labels: the first 1 of these are our 1-shot list, the first 4 our
# 4-shot list. The papers never published theirs. Drawn once, of the 16 that are not test:
# random.Random(2022).sample(rest, 16).
LABELLED_ORDER = {
    "mr": (
        *(1012, 1010, 1011, 1005),
        *(1020, 1001, 1016, 1008, 1006, 1014, 1013, 1004, 1003, 1015, 1002, 1017),
    ),
    "ct": (
        *(1012, 1010, 1011, 1006),
        *(1020, 1001, 1017, 1009, 1007, 1015, 1013, 1005, 1004, 1016, 1002, 1018),
    ),
}
# One released MR label file has 421 where 420 is meant; everyone who trained on it reads it so.
CLASSES: dict[str, Value] = {"MYO": 205, "LAC": (420, 421), "LVC": 500, "AA": 820}
BACKGROUND = (550, 600, 850)  # right atrium, right ventricle, pulmonary artery
SPACING_MM = (1.0, 1.0)  # 256 pixels span the whole CT field of view (about 200 mm) and any heart
VALUES = {"LVC": 500, "LAC": 420, "AA": 820, "RA": 550, "RV": 600}
RULES = (
    Rule("RA", "right", "LVC"),
    Rule("RV", "anterior", "LAC"),
    Rule("AA", "superior", "LVC"),
)


def plan(
    root: Path,
    out: Path,
    direction: str,
    labelled: str | None,
    progress: Progress,
) -> CohortPlan:
    """Find and check the volumes. root absolute; direction one of DIRECTIONS. Raises InputError."""
    source, target = direction.split("-to-")
    scans = {modality: _scans(root, modality) for modality in (source, target)}
    few = take_labelled(LABELLED_ORDER[source], labelled)
    every = [pair.label for pairs in scans.values() for pair in pairs.values()]
    need([*every, *(p.image for pairs in scans.values() for p in pairs.values())], root, LAYOUT)
    check_all(every, VALUES, RULES, progress)
    sides = unpaired_sides(scans, TEST, few, source, target)
    return CohortPlan(
        name=f"mmwhs-{direction}-{len(few)}-shot",
        about=(
            f"MM-WHS 2017, cardiac {direction}. The two modalities are of different patients.",
            f"Labelled {source.upper()} volumes: {' '.join(map(str, few))},",
            f"the first {len(few)} of this project's published order. The labels of the others are",
            "not used. The source's own test volumes of the papers take no part.",
            "421 in one released label file is a slip for 420.",
        ),
        classes=CLASSES,
        codes=snomed(HEART_CODES, CLASSES),
        background=BACKGROUND,
        axis="anterior",
        spacing_mm=SPACING_MM,
        source=sides[0],
        target=sides[1],
    )


def _scans(root: Path, modality: str) -> dict[int, Pair]:
    """Subject -> files, whether they are there or not."""
    stem = root / f"{modality}_train" / f"{modality}_train"
    return {
        s: Pair(Path(f"{stem}_{s}_image.nii.gz"), Path(f"{stem}_{s}_label.nii.gz"))
        for s in SUBJECTS
    }
