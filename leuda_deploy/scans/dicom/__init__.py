"""folder, zip or DICOMDIR -> the series in it -> the one that is meant -> Volume.

pydicom is imported when the first file is read.
"""

from leuda_deploy.scans.dicom.find import find_series
from leuda_deploy.scans.dicom.found import FoundSeries
from leuda_deploy.scans.dicom.rules import SeriesRules, choose_series, read_rules
from leuda_deploy.scans.dicom.series import Series, read_series

__all__ = [
    "FoundSeries",
    "Series",
    "SeriesRules",
    "choose_series",
    "find_series",
    "read_rules",
    "read_series",
]
