"""The page as one file: all in it, made smaller with a note, nothing loaded from elsewhere."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from support.command import leuda_here
from support.view_files import write_case

from leuda_deploy.errors import InputError
from leuda_deploy.scans.volume import read_volume
from leuda_deploy.view import one_file
from leuda_deploy.view.content import Content
from leuda_deploy.view.scene import make_scene

VENDORED = Path(one_file.__file__).parent / "niivue"


def blocks(page: str) -> dict[str, bytes]:
    found = re.findall(r'<script type="[^"]+" data-path="([^"]+)">([^<]*)</script>', page)
    return {path: base64.b64decode(data) for path, data in found}


def written(tmp_path: Path, **options: int) -> tuple[dict[str, bytes], one_file.Smaller, str]:
    scan = write_case(tmp_path)
    scene = make_scene(scan, (tmp_path / "case_labels.nii.gz", tmp_path / "case_truth.nii.gz"))
    path = tmp_path / "page.html"
    smaller = one_file.write_page(path, Content([scene], {}), **options)
    page = path.read_text()
    return blocks(page), smaller, page


def test_all_that_the_page_asks_for_is_in_it(tmp_path: Path) -> None:
    inside, smaller, page = written(tmp_path)
    assert smaller.note is None
    files = {f"file/0/{k}" for k in ("scan", "labels-0", "labels-1", "difference", "uncertainty")}
    assert set(inside) == {"list", "facts/0", "structures/0"} | files
    image = nib.Nifti1Image.from_bytes(gzip.decompress(inside["file/0/scan"]))
    scan = read_volume(tmp_path / "case.nii.gz")
    np.testing.assert_array_equal(np.asarray(image.dataobj), scan.raw)
    np.testing.assert_allclose(image.affine, scan.affine, atol=1e-5)
    assert len(page.encode()) < one_file.MAX_BYTES


def test_nothing_is_loaded_and_only_its_own_scripts_may_run(tmp_path: Path) -> None:
    _, _, page = written(tmp_path)
    assert not re.search(r'<(?:script|img|link)[^>]*\b(?:src|href)="(?!data:)', page)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert len(scripts) == 4
    for script in scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy[1]
    assert "unsafe" not in policy[1]


def test_a_large_scan_is_made_smaller_and_the_page_says_so(tmp_path: Path) -> None:
    whole = len(written(tmp_path)[2].encode())
    page_alone = whole - 4 * len(written(tmp_path)[0]["file/0/scan"]) // 3
    inside, smaller, page = written(tmp_path, max_bytes=page_alone + 100_000)
    assert len(page.encode()) <= page_alone + 100_000
    facts = json.loads(inside["facts/0"])
    assert smaller.note
    assert facts["note"] == smaller.note
    image = nib.Nifti1Image.from_bytes(gzip.decompress(inside["file/0/scan"]))
    scan = read_volume(tmp_path / "case.nii.gz")
    # the voxel that the page names is the voxel of the scan
    kept = np.asarray(image.dataobj)
    at = np.array(facts["first_voxel"]) + np.array(facts["every"]) * [2, 3, 1]
    assert kept[2, 3, 1] == scan.raw[tuple(at)]
    np.testing.assert_allclose(
        image.affine @ [2, 3, 1, 1], scan.affine @ [*at, 1], atol=1e-4, rtol=0
    )
    # volumes are those of the whole scan
    told = json.loads(inside["structures/0"])["structures"]
    labels = read_volume(tmp_path / "case_labels.nii.gz")
    assert told[0]["ml"][0] == pytest.approx(np.count_nonzero(labels.raw == 1) * labels.voxel_ml)


def test_what_cannot_be_made_small_enough_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        written(tmp_path, max_bytes=2_400_000)
    assert not (tmp_path / "page.html").exists()


def test_the_command_writes_the_page_and_replaces_nothing(tmp_path: Path) -> None:
    scan = write_case(tmp_path)
    page = tmp_path / "page.html"
    assert leuda_here("view", scan, "--html", page).stdout.strip() == str(page)
    before = page.read_bytes()
    refused = leuda_here("view", scan, "--html", page)
    assert (refused.returncode, page.read_bytes()) == (2, before)
    assert leuda_here("view", scan, "--html", page, "--force").returncode == 0
    write_case(tmp_path, "another")
    assert leuda_here("view", tmp_path, "--html", tmp_path / "all.html").returncode == 2
    assert not (tmp_path / "all.html").exists()


def test_the_library_is_the_one_of_the_package_and_its_licences_are_there() -> None:
    licences = (VENDORED / "LICENSES.txt").read_text()
    assert "niivue, version 0.69.0" in licences
    digest = hashlib.sha256((VENDORED / "niivue.umd.js").read_bytes()).hexdigest()
    assert f"sha256 {digest}" in licences
    for package in ("BSD 2-Clause", "fflate", "gl-matrix", "nifti-reader-js", "zarrita"):
        assert package in licences
