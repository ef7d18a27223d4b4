"""content -> one HTML file with the page, the scan and its labels inside; it asks nobody.

What is large is made smaller, and the page says so: first to the labels with a margin, then to
every second voxel, and so on.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leuda_deploy.errors import InputError
from leuda_deploy.machine.files import atomic_path
from leuda_deploy.scans.volume import Volume
from leuda_deploy.view.content import Content, Every, as_nifti, coarser
from leuda_deploy.view.server import ASSETS

MAX_BYTES = 15_000_000  # of the file
MARGIN_MM = 20.0  # kept around the labels
GZIP_LEVEL = 3  # the highest of ISA-L
STEPS: tuple[Every, ...] = ((1, 1, 1), (2, 2, 1), (2, 2, 2), (3, 3, 2), (3, 3, 3), (4, 4, 4))
Box = tuple[slice, slice, slice]
WHOLE: Box = (slice(None), slice(None), slice(None))


@dataclass(frozen=True, kw_only=True)
class Smaller:
    """What of a scene goes into the file: a box of voxels, and each n-th of them."""

    box: Box
    every: Every

    @property
    def first_voxel(self) -> list[int]:
        """Where the box begins, in voxels of the scan."""
        return [part.start or 0 for part in self.box]

    def of(self, volume: Volume) -> Volume:
        """What is kept of a volume, at its place in space."""
        affine = volume.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ self.first_voxel
        raw = volume.raw[self.box]
        cut = replace(volume, raw=raw, affine=affine, header=None, shape=raw.shape)
        return coarser(cut, self.every)

    @property
    def note(self) -> str | None:
        """What the page says of it; None: all of the scan is there."""
        said = []
        if self.box != WHOLE:
            said.append(f"only what lies within {MARGIN_MM:.0f} mm of the labels")
        if self.every != (1, 1, 1):
            said.append(f"one voxel in {' × '.join(map(str, self.every))}")
        if not said:
            return None
        return f"To keep this file small it holds {' and '.join(said)}. Volumes are of all voxels."


def write_page(path: Path, content: Content, *, max_bytes: int = MAX_BYTES) -> Smaller:
    """Write the page of a single scene as one HTML file.

    Args:
        path: *.html; what is there is replaced.
        content: One scene.
        max_bytes: The most that the file may have.

    Returns:
        What of the scan is in it.

    Raises:
        InputError: There are several scenes, a file cannot be read, or nothing makes it small
            enough.
    """
    if len(content.scenes) != 1:
        raise InputError(
            f"one HTML file holds one scan, not {len(content.scenes)}; name a scan, not a folder"
        )
    facts, table = content.facts(0), content.structures(0)
    if table["note"]:
        facts["labels"] = []
    files = ["scan", *(f"labels-{k}" for k in range(len(facts["labels"])))]
    files += ["difference"] * (len(facts["labels"]) == 2)
    files += ["uncertainty"] * (facts["uncertainty"] is not None)
    volumes = {which: content.volume(0, which) for which in files}
    page = _page()
    room = max_bytes - len(page.encode()) - 100_000  # facts and the tags around the files
    box = _box_of_labels(volumes)
    for every, cut in product(STEPS, [WHOLE, box] if box else [WHOLE]):
        smaller = Smaller(box=cut, every=every)
        packed = {which: as_nifti(smaller.of(volumes[which]), level=GZIP_LEVEL) for which in files}
        if sum(4 * (len(data) // 3 + 1) for data in packed.values()) <= room:
            break
    else:
        raise InputError(f"{path} would have more than {max_bytes / 1e6:.0f} MB; crop the scan")
    facts["note"] = smaller.note
    facts |= {"every": smaller.every, "first_voxel": smaller.first_voxel}
    said: dict[str, Any] = {
        "list": {"scenes": content.list(), "marks": None},
        "facts/0": facts,
        "structures/0": table,
    }
    blocks = {name: json.dumps(value, allow_nan=False).encode() for name, value in said.items()}
    blocks |= {f"file/0/{which}": data for which, data in packed.items()}
    with atomic_path(path) as temporary:
        temporary.write_text(page.replace("<!-- data -->", _data(blocks)), encoding="utf-8")
    return smaller


def _box_of_labels(volumes: Mapping[str, Volume]) -> Box | None:
    """Where the labels lie, with a margin; None if there are none."""
    labels = [volume.raw for which, volume in volumes.items() if which.startswith("labels")]
    if not any(one.any() for one in labels):
        return None
    spacing, found = volumes["scan"].spacing_mm, []
    for axis, size in enumerate(spacing):
        others = tuple(k for k in range(3) if k != axis)
        used: NDArray[np.bool_] = np.any([one.any(axis=others) for one in labels], axis=0)
        first, last = np.flatnonzero(used)[[0, -1]]
        margin = round(MARGIN_MM / size)
        found.append(slice(max(0, int(first) - margin), int(last) + margin + 1))
    return (found[0], found[1], found[2])


def _page() -> str:
    """The page with style and scripts inside, and a policy that lets it load nothing."""
    page, hashes = ASSETS[""][0].read_text(), []
    style = ASSETS["view.css"][0].read_text()
    page = page.replace('<link rel="stylesheet" href="view.css">', f"<style>{style}</style>")

    def inside(match: re.Match[str]) -> str:
        script = ASSETS[match[1]][0].read_text()
        if "</script" in script.lower():  # it would end the element
            raise InputError(f"{match[1]} cannot stand inside a page")
        hashes.append(_source(script))
        return f"<script>{script}</script>"

    page = re.sub(r'<script src="([\w.]+)"></script>', inside, page)
    policy = (
        f"default-src 'none'; script-src {' '.join(hashes)}; style-src {_source(style)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    head = f'<meta charset="utf-8">\n<meta http-equiv="Content-Security-Policy" content="{policy}">'
    # before the scripts: they look for the data as soon as they run
    page = page.replace('<meta charset="utf-8">', head, 1)
    first = page.index("<script>")
    return f"{page[:first]}<!-- data -->\n{page[first:]}"


def _source(text: str) -> str:
    """A script or style as a policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _data(blocks: Mapping[str, bytes]) -> str:
    # blocks of a type that is no script are never run
    return "\n".join(
        f'<script type="application/octet-stream" data-path="{name}">'
        f"{base64.b64encode(data).decode()}</script>"
        for name, data in blocks.items()
    )
