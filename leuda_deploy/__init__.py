"""Deployment half: what stands on the edge device. Never imports torch.

from leuda_deploy import Segmenter
labels = Segmenter("exports/phantom-heart")("scan.nii.gz").labels
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leuda_deploy.inference.segmenter import Segmenter

__all__ = ["Segmenter"]


def __getattr__(name: str) -> Any:
    # only when asked for: `import leuda_deploy` and `leuda --help` stay light
    if name == "Segmenter":
        from leuda_deploy.inference.segmenter import Segmenter

        return Segmenter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
