"""files that nibabel does not read, and how voxels are packed in them.

gzip_array.py   gzipped or plain files <-> arrays
stored.py       voxels somewhere in a file, read when they are asked for
nrrd.py         NRRD, also with its data in another file
metaimage.py    MetaImage: MHA, MHD
seg_nrrd.py     labels -> .seg.nrrd, with Slicer's names and colours
"""

from __future__ import annotations

from pathlib import Path

from leuda_deploy.scans.formats.metaimage import read_metaimage
from leuda_deploy.scans.formats.nrrd import read_nrrd
from leuda_deploy.scans.formats.stored import OtherImage

ENDINGS = (".nrrd", ".nhdr", ".mha", ".mhd")


def is_other(path: Path) -> bool:
    """Whether a file is named as one that is read here, and not by nibabel."""
    return path.name.lower().endswith(ENDINGS)


def read_other(path: Path) -> OtherImage:
    """The header of a file that is read here. Raises ValueError, OSError or what pynrrd raises."""
    return (read_nrrd if path.name.lower().endswith((".nrrd", ".nhdr")) else read_metaimage)(path)
