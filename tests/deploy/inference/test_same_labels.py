"""A trained network gives the same labels, to the byte, however the work is cut and shared."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from support.command import leuda

from leuda_deploy.engines.engine import EngineSettings
from leuda_deploy.engines.open_engine import open_engine
from leuda_deploy.inference.segment import segment
from leuda_deploy.inference.segmenter import Segmenter
from leuda_deploy.inference.settings import Settings
from leuda_deploy.inference.slabs import Scoring
from leuda_deploy.model.export_folder import default_model
from leuda_deploy.model.model_file import ModelFile
from leuda_deploy.scans.stack import Stack
from leuda_deploy.scans.volume import read_volume

ENGINES = [
    pytest.param("ort-cpu", "auto", id="ort-cpu"),
    *(
        pytest.param(
            "openvino",
            precision,
            id=f"openvino-{precision}",
            marks=pytest.mark.skipif(find_spec("openvino") is None, reason="needs OpenVINO"),
        )
        for precision in ("fp32", "auto")
    ),
]
# how the same work is cut: threads, windows at a time
WAYS: tuple[dict[str, Any], ...] = (
    {"threads": 1, "batch": 1},
    {"threads": 1, "batch": 1},  # opened a second time
    {"threads": 2, "batch": 5},
    {"threads": 3, "batch": 32},
)


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three scans of blobs, on which the network is of many minds, larger than its window."""
    folder = tmp_path_factory.mktemp("scans")
    for number in range(3):
        rng = np.random.default_rng(number)
        smooth = gaussian_filter(rng.normal(size=(90, 80, 14)), (4, 4, 1))
        values = (smooth / smooth.std() * 250).astype(np.int16)
        affine = np.diag([-2.5, -2.5, 4.0, 1.0])
        nib.save(nib.Nifti1Image(values, affine), folder / f"s{number}.nii.gz")
    return folder


@pytest.mark.parametrize(("engine", "precision"), ENGINES)
def test_threads_batches_and_a_second_opening_do_not_matter(
    engine: Any, precision: Any, scans: Path
) -> None:
    found = []
    for way in WAYS:
        segmenter = Segmenter(default_model(), Settings(engine=engine, precision=precision, **way))
        found += [segmenter(scans / "s0.nii.gz") for _ in range(2)]  # a second run of the same
    first = found[0]
    assert len(np.unique(first.labels)) > 2  # there is something to differ in
    for other in found[1:]:
        assert other.labels.tobytes() == first.labels.tobytes()
        assert other.low_confidence == first.low_confidence


def test_slabs_do_not_matter(scans: Path) -> None:
    model = ModelFile.open(default_model())
    engine = open_engine(model, "ort-cpu", EngineSettings(threads=1))
    stack = Stack(read_volume(scans / "s0.nii.gz"), model.card.recipe)
    cuts = (Scoring(slab=1, batch=4), Scoring(slab=3, batch=4), Scoring(slab=100, batch=4))
    first, *others = [segment(stack, engine, cut).labels.tobytes() for cut in cuts]
    assert others == [first, first]


def test_processes_do_not_matter(scans: Path, tmp_path: Path) -> None:
    asked = ("--model", default_model(), "--engine", "ort-cpu", "--no-overlay")
    ways = {"one": ("--batch", 1), "two": ("--batch", 7, "--jobs", 2)}
    for name, options in ways.items():
        done = leuda("infer", scans, "-o", tmp_path / name, *asked, *options)
        assert done.returncode == 0, done.stderr
    written = {
        name: {path.name: path.read_bytes() for path in (tmp_path / name).glob("*.nii.gz")}
        for name in ways
    }
    assert len(written["one"]) == 3
    assert written["one"] == written["two"]
