"""labels of a DICOM series -> objects that refer to it: SEG, structured report, RTSTRUCT."""

from leuda_deploy.jobs.dicom_out.findings import Findings
from leuda_deploy.jobs.dicom_out.rtstruct import write_rtstruct
from leuda_deploy.jobs.dicom_out.seg import write_seg
from leuda_deploy.jobs.dicom_out.sr import write_sr

__all__ = ["Findings", "write_rtstruct", "write_seg", "write_sr"]
