"""the download of a public benchmark -> cohort.toml, with the splits that the papers use.

mmwhs.py       MM-WHS 2017: cardiac MR and CT
chaos_btcv.py  CHAOS T2-SPIR MR and BTCV CT: abdominal   (chaos.py: its DICOM series -> NIfTI)
mscmr.py       MS-CMRSeg 2019: cardiac bSSFP and LGE MR
benchmark.py   what these have in common: the protocol that each keeps
anatomy.py     labels whose organs lie where no patient has them: an array flipped on its affine
"""

from __future__ import annotations

from pathlib import Path

from leuda_deploy.errors import InputError
from leuda_deploy.machine.progress import Progress, no_progress
from leuda_train.data.layouts.cohort_plan import CohortPlan, check_free, write_plan
from leuda_train.data.layouts.public import chaos_btcv, mmwhs, mscmr
from leuda_train.data.layouts.public.benchmark import PublicData

BENCHMARKS: dict[str, PublicData] = {"mmwhs": mmwhs, "chaos-btcv": chaos_btcv, "mscmr": mscmr}


def write_benchmark(
    name: str,
    root: Path,
    out: Path,
    *,
    direction: str | None = None,
    labelled: str | None = None,
    progress: Progress = no_progress,
) -> CohortPlan:
    """Write the cohort.toml of a benchmark whose download lies under `root` as `out`.

    direction  SOURCE-to-TARGET; without it, the benchmark's first
    labelled   how many source volumes keep their labels, or "all"; without it, the benchmark's own
              number: 4 of 16, 6 of 24 (BTCV), 4 (MS-CMRSeg)

    Raises InputError if a file is missing, if `out` exists, for a label volume that is flipped
    against its affine, and for all that `read_cohort` refuses; nothing is written then, but for
    the converted CHAOS scans. Raises MissingExtraError where CHAOS is asked for without pydicom.
    """
    module = BENCHMARKS[name]
    if not root.is_dir():
        raise InputError(f"no such folder: {root}; expected {module.LAYOUT}")
    check_free(out)
    directions = module.DIRECTIONS
    direction = direction or directions[0]
    if direction not in directions:
        raise InputError(f"{name} goes {' or '.join(directions)}, not {direction!r}")
    plan = module.plan(root.resolve(), out.resolve().parent, direction, labelled, progress)
    write_plan(plan, out)
    return plan
