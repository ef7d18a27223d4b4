"""CHAOS T2-SPIR (20 MR) and BTCV (30 CT), unpaired -> CohortPlan, abdominal.

Data: Kavur et al., Med. Image Anal. 69, 2021; Landman et al., MICCAI 2015 "Beyond the Cranial
Vault". The test ids are those of the papers. CHAOS is converted to NIfTI beside cohort.toml, in
chaos_t2spir/; its folder MR and BTCV's folder Training are taken from the same root.
"""

from __future__ import annotations

from pathlib import Path

from leuda_deploy.machine.progress import Progress
from leuda_train.data.layouts.cohort_plan import CohortPlan, Pair
from leuda_train.data.layouts.public.anatomy import Rule, check_anatomy
from leuda_train.data.layouts.public.benchmark import (
    ORGAN_CODES,
    need,
    snomed,
    take_labelled,
    unpaired_sides,
)
from leuda_train.data.layouts.public.chaos import convert

LAYOUT = (
    "CHAOS: MR/1/T2SPIR/DICOM_anon/*.dcm and MR/1/T2SPIR/Ground/*.png, and BTCV: "
    "Training/img/img0001.nii.gz and Training/label/label0001.nii.gz"
)
DIRECTIONS = ("mr-to-ct", "ct-to-mr")
SUBJECTS = {
    "mr": (1, 2, 3, 5, 8, 10, 13, 15, 19, 20, 21, 22, 31, 32, 33, 34, 36, 37, 38, 39),
    "ct": (*range(1, 11), *range(21, 41)),
}
TEST = {"mr": (1, 13, 32, 38), "ct": (1, 9, 30, 32, 33, 39)}
# Which source volumes keep their labels: the first so many of these. The papers keep a quarter (4
# of 16 MR, 6 of 24 CT) and never published which. Drawn once, of those that are not test:
# random.Random(2022).sample(rest, len(rest)).
LABELLED_ORDER = {
    "mr": (22, 20, 21, 10, 39, 2, 36, 19, 15, 33, 31, 8, 5, 34, 3, 37),
    "ct": (
        *(31, 22, 27, 40, 38, 34),
        *(3, 29, 26, 23, 37, 7, 2, 8, 6, 10, 24, 28, 25, 4, 21, 36, 35, 5),
    ),
}
ORGANS = {  # raw label values
    "mr": {"liver": 63, "right_kidney": 126, "left_kidney": 189, "spleen": 252},
    "ct": {"liver": 6, "right_kidney": 2, "left_kidney": 3, "spleen": 1},
}
OTHERS = {"mr": (), "ct": (4, 5, *range(7, 14))}  # gallbladder, oesophagus, stomach to adrenals
SPACING_MM = (1.5, 1.5)  # about CHAOS's own pixels; 256 of them are 384 mm, and hold the organs
RULES = (
    Rule("liver", "right", "spleen"),
    Rule("right_kidney", "right", "left_kidney"),
    Rule("liver", "anterior", "right_kidney"),
    Rule("liver", "superior", "right_kidney"),
)


def plan(
    root: Path,
    out: Path,
    direction: str,
    labelled: str | None,
    progress: Progress,
) -> CohortPlan:
    """Find, convert and check the volumes. root and out absolute; CHAOS is converted under `out`.

    direction is one of DIRECTIONS. Raises InputError, and MissingExtraError without pydicom.
    """
    source, target = direction.split("-to-")
    few = take_labelled(LABELLED_ORDER[source], labelled)
    scans = {"mr": _chaos(root, out), "ct": _btcv(root)}
    total, done = sum(map(len, scans.values())), 0
    for modality, pairs in scans.items():
        for subject, pair in pairs.items():
            if modality == "mr":
                convert(root / "MR" / str(subject), pair)
            check_anatomy(pair.label, ORGANS[modality], RULES)
            done += 1
            progress(done, total, pair.label.name)
    sides = unpaired_sides(scans, TEST, few, source, target)
    return CohortPlan(
        name=f"chaos-btcv-{direction}-{len(few)}-labelled",
        about=(
            f"CHAOS T2-SPIR and BTCV, abdominal {direction}. The modalities are of different",
            f"patients. Labelled {source.upper()} volumes: {' '.join(map(str, few))},",
            f"the first {len(few)} of this project's published order. The labels of the others are",
            "not used. The source's own test volumes of the papers take no part.",
        ),
        classes={
            organ: {"source": value, "target": ORGANS[target][organ]}
            for organ, value in ORGANS[source].items()
        },
        codes=snomed(ORGAN_CODES, ORGANS[source]),
        background={"source": OTHERS[source], "target": OTHERS[target]},
        axis="superior",
        spacing_mm=SPACING_MM,
        source=sides[0],
        target=sides[1],
        subject=r"(chaos_\d+|\d{4})",  # number 1 of CHAOS is not number 1 of BTCV
    )


def _chaos(root: Path, out: Path) -> dict[int, Pair]:
    """Patient -> the files that its series will be converted to."""
    series = [
        next((root / "MR" / str(s)).glob("T2SPIR/DICOM_anon/*.dcm"), None) for s in SUBJECTS["mr"]
    ]
    expected = [root / "MR" / str(s) / "T2SPIR" / "DICOM_anon" / "*.dcm" for s in SUBJECTS["mr"]]
    need([found or wanted for found, wanted in zip(series, expected, strict=True)], root, LAYOUT)
    folder = out / "chaos_t2spir"
    return {
        s: Pair(folder / f"chaos_{s:02}_image.nii.gz", folder / f"chaos_{s:02}_label.nii.gz")
        for s in SUBJECTS["mr"]
    }


def _btcv(root: Path) -> dict[int, Pair]:
    training = root / "Training"
    scans = {
        s: Pair(training / "img" / f"img{s:04}.nii.gz", training / "label" / f"label{s:04}.nii.gz")
        for s in SUBJECTS["ct"]
    }
    need([path for pair in scans.values() for path in pair], root, LAYOUT)
    return scans
