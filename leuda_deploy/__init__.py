"""The deployment half: what stands on the edge device. It never imports torch.

What stands here is public; everything else may move. Names are imported when they are first used,
so `import leuda_deploy` costs nothing.

    from leuda_deploy import Segmenter, Settings

    segmenter = Segmenter("exports/phantom-heart", Settings(engine="openvino"))
    labels = segmenter("scan.nii.gz").labels
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leuda_deploy.errors import (
        ConfigError,
        GridMismatchError,
        InputError,
        LeudaError,
        MissingExtraError,
        ModelError,
        ParityError,
        ScanError,
        TrainingError,
        UndeclaredLabelError,
    )
    from leuda_deploy.export.verify import verify
    from leuda_deploy.inference.segment import Segmentation
    from leuda_deploy.inference.segmenter import Segmenter
    from leuda_deploy.inference.settings import Settings
    from leuda_deploy.scans.dicom.find import find_series
    from leuda_deploy.scans.dicom.rules import SeriesRules, choose_series
    from leuda_deploy.scans.dicom.series import read_series
    from leuda_deploy.scans.nifti import write_labels
    from leuda_deploy.scans.volume import Volume, read_volume

_MODULES = {
    "ConfigError": "leuda_deploy.errors",
    "GridMismatchError": "leuda_deploy.errors",
    "InputError": "leuda_deploy.errors",
    "LeudaError": "leuda_deploy.errors",
    "MissingExtraError": "leuda_deploy.errors",
    "ModelError": "leuda_deploy.errors",
    "ParityError": "leuda_deploy.errors",
    "ScanError": "leuda_deploy.errors",
    "Segmentation": "leuda_deploy.inference.segment",
    "Segmenter": "leuda_deploy.inference.segmenter",
    "SeriesRules": "leuda_deploy.scans.dicom.rules",
    "Settings": "leuda_deploy.inference.settings",
    "TrainingError": "leuda_deploy.errors",
    "UndeclaredLabelError": "leuda_deploy.errors",
    "Volume": "leuda_deploy.scans.volume",
    "choose_series": "leuda_deploy.scans.dicom.rules",
    "find_series": "leuda_deploy.scans.dicom.find",
    "read_series": "leuda_deploy.scans.dicom.series",
    "read_volume": "leuda_deploy.scans.volume",
    "verify": "leuda_deploy.export.verify",
    "write_labels": "leuda_deploy.scans.nifti",
}

__all__ = [
    "ConfigError",
    "GridMismatchError",
    "InputError",
    "LeudaError",
    "MissingExtraError",
    "ModelError",
    "ParityError",
    "ScanError",
    "Segmentation",
    "Segmenter",
    "SeriesRules",
    "Settings",
    "TrainingError",
    "UndeclaredLabelError",
    "Volume",
    "choose_series",
    "find_series",
    "read_series",
    "read_volume",
    "verify",
    "write_labels",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
