"""findings -> what writes each DICOM object of them, by its name in a report; SEG before SR."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leuda_deploy.errors import InputError

if TYPE_CHECKING:
    from leuda_deploy.jobs.dicom_out.findings import Findings
    from leuda_deploy.jobs.dicom_out.seg import SegType


def makers(findings: Findings, seg_type: SegType) -> dict[str, Callable[[Path], None]]:
    """To be called in this order: a report refers to the SEG that was written before it.

    Raises InputError, when called for a report without a SEG.
    """
    from leuda_deploy.jobs.dicom_out import write_rtstruct, write_seg, write_sr

    seg: list[Any] = []  # what was written

    def make_sr(path: Path) -> None:
        if not seg:
            raise InputError("there is no DICOM SEG that it could refer to")
        write_sr(path, findings, seg[0])

    return {
        "dicom_seg": lambda path: seg.append(write_seg(path, findings, seg_type)),
        "dicom_sr": make_sr,
        "rtstruct": lambda path: write_rtstruct(path, findings),
    }
