"""folder with one DICOM series -> Volume; highdicom and pydicom are imported when one is read."""

from leuda_deploy.scans.dicom.series import Series, read_series

__all__ = ["Series", "read_series"]
