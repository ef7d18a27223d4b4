"""A scan of another modality does not look like the scans a model was made for, and is said to."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray
from support.command import leuda_here
from support.makers import MakeCard, MakeModel

from leuda_deploy.model.card import parse_card
from leuda_deploy.scans.intensity import Intensity, fit_intensity
from leuda_deploy.scans.intensity.likeness import Z_LIMIT, likeness, profile_of
from leuda_deploy.scans.recipe import Recipe
from leuda_deploy.scans.volume import volume_of
from leuda_train.data.phantom.anatomy import draw_anatomy
from leuda_train.data.phantom.scanner import render_ct, render_mr

RECIPE = Recipe(slice_axis="superior", spacing_mm="native", window=(16, 16))
SHAPE, AFFINE = (48, 44, 20), np.diag([-6.0, -6.0, 8.0, 1.0])
RENDER = {"CT": render_ct, "MR": render_mr}
Phantoms = dict[str, list[NDArray[np.generic]]]


@pytest.fixture(scope="module")
def phantoms() -> Phantoms:
    """Five coarse phantoms of each modality."""
    made: Phantoms = {"CT": [], "MR": []}
    for modality, scans in made.items():
        for seed in range(5):
            rng = np.random.default_rng(seed)
            tissue = draw_anatomy(rng, SHAPE, AFFINE)
            scans.append(RENDER[modality](tissue, rng, voxel_sizes(AFFINE)))
    return made


def intensity(values: NDArray[np.generic]) -> Intensity:
    return fit_intensity(volume_of(values, AFFINE), RECIPE)


@pytest.mark.parametrize(("of", "other"), [("CT", "MR"), ("MR", "CT")])
def test_another_modality_stands_out_and_the_same_does_not(
    phantoms: Phantoms, of: str, other: str
) -> None:
    profile = profile_of([intensity(scan) for scan in phantoms[of][:4]])
    assert profile.scans == 4
    assert likeness(intensity(phantoms[of][4]), profile).fits
    for scan in phantoms[other]:
        found = likeness(intensity(scan), profile)
        assert not found.fits
        assert found.z > Z_LIMIT


def test_what_was_done_to_a_scan_stands_out(phantoms: Phantoms) -> None:
    profile = profile_of([intensity(scan) for scan in phantoms["CT"][:4]])
    scan = phantoms["CT"][4].astype(np.float32)
    for changed in (-scan, scan + 1024, scan * 3, np.clip(scan, 0, 80)):
        assert not likeness(intensity(changed), profile).fits


def test_one_scan_is_a_profile_with_the_least_spread(phantoms: Phantoms) -> None:
    scan = intensity(phantoms["CT"][0])
    found = likeness(scan, profile_of([scan]))
    assert found.fits
    assert found.z == 0


def test_report_says_whether_the_scan_fits_and_one_line_warns(
    phantoms: Phantoms, tmp_path: Path, make_model: MakeModel
) -> None:
    profile = profile_of([intensity(scan) for scan in phantoms["CT"][:4]])
    model = make_model(tmp_path / "model", RECIPE, domain=profile)
    (tmp_path / "in").mkdir()
    for modality in ("CT", "MR"):
        path = tmp_path / "in" / f"{modality}.nii.gz"
        nib.save(nib.Nifti1Image(phantoms[modality][4], AFFINE), path)
    arguments = (tmp_path / "in", "--model", model, "-o", tmp_path, "--no-overlay")
    done = leuda_here("infer", *arguments)
    warnings = [line for line in done.stderr.splitlines() if "look like" in line]
    assert len(warnings) == 1
    assert "MR.nii.gz does not look like the scans of training" in warnings[0]
    said = {
        modality: json.loads((tmp_path / f"{modality}_labels.json").read_text())["domain"]
        for modality in ("CT", "MR")
    }
    assert said["CT"]["fits"] is True
    assert said["MR"]["fits"] is False
    assert said["MR"]["z"] > 4
    assert said["MR"]["figure"] == "low"


def test_card_keeps_the_profile_under_its_old_key(make_card: MakeCard) -> None:
    profile = profile_of([Intensity(0.0, 1.0, 0.5, 0.5, (0.25, 0.5, 0.75))])
    for card in (make_card(), make_card(domain=profile)):
        assert parse_card(card.to_json(), "a test") == card
    assert json.loads(card.to_json())["domain"]["scans"] == 1
