"""Networks that read several scans together, and whose structures may overlap.

The network is one 1x1 convolution of two channels a and b, so that what it must say is reckoned
here: its first region is where a + b is over a threshold, its second where b is.
"""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from support.command import leuda_here
from support.makers import make_card, make_volume, oblique_affine

from leuda_deploy import Segmenter, Settings
from leuda_deploy.errors import GridMismatchError, InputError, ModelError, ScanError
from leuda_deploy.export.import_onnx import package_graph
from leuda_deploy.jobs.find_jobs import Job
from leuda_deploy.jobs.jobs_of import for_model
from leuda_deploy.model.card import GraphOptions, ModelCard, parse_card
from leuda_deploy.model.regions import label_map, region_bits, region_counts, region_mask
from leuda_deploy.proof.parity import check_parity
from leuda_deploy.proof.probes import make_probes
from leuda_deploy.scans.channels import sibling_channels
from leuda_deploy.scans.intensity import fit_intensity
from leuda_deploy.scans.recipe import Depth, Recipe
from leuda_deploy.scans.stack import Stack, stack_of

SUM_OVER, B_OVER = 0.3001, 0.4503
SHAPE, SPACING = (21, 34, 7), (0.8, 1.3, 5.0)
ORT = Settings(engine="ort-cpu", threads=1)


def net(dimensions: int = 2, *, regions: int = 2, channels: int = 2) -> onnx.ModelProto:
    """Scores (B, 2, ...): a + b - SUM_OVER and b - B_OVER; or the first of them."""
    weight = np.array([[1, 1], [0, 1]], np.float32)[:regions, -channels:]
    weight = weight.reshape(regions, channels, *(1,) * dimensions)
    bias = -np.array([SUM_OVER, B_OVER], np.float32)[:regions]
    sides = [None] * dimensions
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", count, *sides])
        for name, count in (("windows", channels), ("scores", regions))
    ]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["windows", "weight", "bias"], ["scores"])],
        "regions",
        ends[:1],
        ends[1:],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(bias, "bias")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def card_of(dimensions: int = 2, **other: Any) -> ModelCard:
    recipe = make_card().recipe.model_copy(update={"outside": "zero"})
    depth = Depth(slices=4) if dimensions == 3 else None
    fields = {"channels": ("T1", "T2"), "options": GraphOptions(regions=True), "depth": depth}
    return make_card(recipe=recipe, **{**fields, **other})


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path)


def write_model(folder: Path, dimensions: int = 2) -> Path:
    onnx.save(net(dimensions), folder / "net.onnx")
    (folder / "card.json").write_text(card_of(dimensions).to_json())
    out = folder / "model"
    package_graph(folder / "net.onnx", folder / "card.json", out)
    return out


def write_channels(folder: Path, case: str = "case") -> tuple[list[Path], NDArray[np.int16]]:
    values = np.random.default_rng(len(case)).integers(0, 1001, (2, *SHAPE)).astype(np.int16)
    paths = [folder / f"{case}_{k:04d}.nii.gz" for k in range(2)]
    for path, channel in zip(paths, values, strict=True):
        nib.save(nib.Nifti1Image(channel, oblique_affine(SPACING)), path)
    return paths, values


def expected(values: NDArray[np.int16]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Both regions, each channel brought to -1 to 1 by itself."""
    a, b = (2 * (v - v.min()) / (v.max() - v.min()) - 1 for v in values.astype(np.float64))
    return a + b > SUM_OVER, b > B_OVER


@pytest.mark.parametrize("dimensions", [2, 3])
def test_files_a_4d_file_and_an_array_give_the_regions_that_were_reckoned(
    tmp_path: Path, dimensions: int
) -> None:
    paths, values = write_channels(tmp_path)
    first, second = expected(values)
    both = np.where(second, 2, np.where(first, 1, 0))
    assert (first & second).any()
    assert (second & ~first).any()
    together = nib.Nifti1Image(np.moveaxis(values, 0, -1), oblique_affine(SPACING))
    nib.save(together, tmp_path / "both.nii.gz")
    segmenter = Segmenter(write_model(tmp_path, dimensions), ORT)
    for given in (paths, paths[0], tmp_path / "both.nii.gz", together):
        found = segmenter(given)
        np.testing.assert_array_equal(found.labels, both)
        np.testing.assert_array_equal(region_mask(found.regions, 1), first)
        np.testing.assert_array_equal(region_mask(found.regions, 2), second)
    array = segmenter(np.moveaxis(values, 0, -1), affine=oblique_affine(SPACING), uncertainty=True)
    np.testing.assert_array_equal(array.labels, both)
    a, b = (2 * (v - v.min()) / (v.max() - v.min()) - 1 for v in values.astype(np.float64))
    inside = 1 / (1 + np.exp(-np.stack([a + b - SUM_OVER, b - B_OVER])))
    bits = (-inside * np.log2(inside) - (1 - inside) * np.log2(1 - inside)).max(axis=0)
    np.testing.assert_allclose(array.uncertainty, 255 * bits, atol=1)


def test_the_command_writes_labels_masks_and_a_report(tmp_path: Path, model: Path) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    cases = {case: write_channels(scans, case)[1] for case in ("one", "three")}
    common = ("--model", model, "--engine", "ort-cpu", "--threads", 1)
    done = leuda_here("infer", scans, *common, "-o", tmp_path, "--regions", tmp_path / "masks")
    assert done.returncode == 0, done.stderr
    voxel_ml = np.prod(SPACING) / 1000
    for case, values in cases.items():
        report = json.loads((tmp_path / f"{case}_labels.json").read_text())
        for place, name in enumerate(("grey", "bright")):
            truth = expected(values)[place]
            mask = np.asarray(nib.load(report["regions"][name]).dataobj)
            np.testing.assert_array_equal(mask, truth)
            assert report["volumes_ml"][name] == pytest.approx(truth.sum() * voxel_ml, abs=1e-3)
        files = {"T1": f"{case}_0000.nii.gz", "T2": f"{case}_0001.nii.gz"}
        assert report["channels"] == {key: str(scans / name) for key, name in files.items()}
    again = leuda_here("infer", scans, *common, "-o", tmp_path, "--regions", tmp_path / "masks")
    assert again.returncode == 0, again.stderr
    assert "was done" in (tmp_path / "volumes.csv").read_text()
    one, other = scans / "one_0000.nii.gz", scans / "one_0001.nii.gz"
    to = ("-o", tmp_path / "x.nii.gz", "--regions", tmp_path / "more")
    swapped = leuda_here("infer", other, "--channel", one, *common, *to)
    assert swapped.returncode == 0, swapped.stderr
    first, second = expected(cases["one"][::-1])
    labels = np.asarray(nib.load(tmp_path / "x.nii.gz").dataobj)
    assert str(tmp_path / "more" / "x_1_grey.nii.gz") in swapped.stdout
    np.testing.assert_array_equal(labels, np.where(second, 2, np.where(first, 1, 0)))


def test_what_is_not_offered_is_said_in_one_line(tmp_path: Path, model: Path) -> None:
    paths, values = write_channels(tmp_path)
    segmenter = Segmenter(model, ORT)
    for wrong in (paths[1], [paths[0]], [*paths, paths[0]]):
        with pytest.raises(ScanError, match="T1, T2") as refused:
            segmenter(wrong)
        assert refused.value.fault == "channels"
    nib.save(nib.Nifti1Image(values[1], oblique_affine((0.9, 1.3, 5.0))), tmp_path / "off.nii.gz")
    with pytest.raises(GridMismatchError):
        segmenter([paths[0], tmp_path / "off.nii.gz"])
    job = Job(scan=paths[0], output=tmp_path / "labels.nii.gz")
    for card, asked in (
        (card_of(), {"jobs": [job, job], "others": [paths[1]]}),
        (make_card(), {"jobs": [job], "others": [paths[1]]}),
        (make_card(), {"jobs": [job], "regions": tmp_path}),
        (card_of(), {"jobs": [Job(scan=paths[0], output=job.output, frame=1)]}),
        (
            card_of(channels=()),
            {"jobs": [Job(scan=paths[0], output=job.output, dicom={"dicom_seg": tmp_path})]},
        ),
    ):
        with pytest.raises(InputError):
            for_model(asked.pop("jobs"), card, **asked)


@pytest.mark.parametrize(
    "wrong",
    [
        {"recipe": make_card().recipe},
        {"structures": tuple(make_card().structures[0] for _ in range(9)), "channels": ()},
    ],
)
def test_a_card_that_asks_too_much_is_refused(wrong: dict[str, Any]) -> None:
    parse_card(card_of().to_json(), "the card")
    numbered = [
        each.model_copy(update={"name": f"n{k}", "value": k})
        for k, each in enumerate(wrong.pop("structures", ()), start=1)
    ]
    wrong |= {"structures": tuple(numbered)} if numbered else {}
    with pytest.raises(ModelError):
        parse_card(card_of().model_copy(update=wrong).to_json(), "the card")


def test_regions_are_bits_and_the_last_one_is_seen() -> None:
    scores = np.random.default_rng(0).normal(size=(8, 5, 6, 7)).astype(np.float32)
    bits = np.asfortranarray(region_bits(scores, 0.0))
    inside = scores > 0
    counts = region_counts(np.bincount(bits.ravel(), minlength=256))
    labels = label_map(bits)
    assert labels.flags.f_contiguous
    for place in product(*map(range, labels.shape)):
        on = np.flatnonzero(inside[(slice(None), *place)])
        assert labels[place] == (on[-1] + 1 if on.size else 0)
    for k in range(8):
        np.testing.assert_array_equal(region_mask(bits, k + 1), inside[k])
        assert counts[k + 1] == inside[k].sum()
    assert counts[0] == (~inside.any(axis=0)).sum()


def test_engines_are_compared_region_by_region() -> None:
    card = card_of(channels=())
    windows = np.random.default_rng(0).normal(size=(6, 16, 16)).astype(np.float32)
    probes = make_probes({"scan": windows})

    def scores(given: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.concatenate([given, given - 1], axis=1)

    parity = check_parity(
        scores(probes.windows),
        scores,
        probes,
        stage="itself",
        card=card,
        tolerances=_tolerances(),
    )
    assert parity.disagreement == 0
    assert parity.class_dice == {"grey": 1.0, "bright": 1.0}


def _tolerances() -> Any:
    from leuda_deploy.proof.parity import TOLERANCES

    return TOLERANCES["fp32"]


def test_siblings_are_of_the_same_case_alone(tmp_path: Path) -> None:
    for name in ("a_0000", "a_0001", "a_0002", "ab_0001", "a_0000_0001", "b_0000"):
        (tmp_path / f"{name}.nii.gz").touch()
    (tmp_path / "a_0003.nii").touch()
    found = sibling_channels(tmp_path / "a_0000.nii.gz")
    assert [path.name for path in found] == ["a_0001.nii.gz", "a_0002.nii.gz"]
    assert sibling_channels(tmp_path / "a_0001.nii.gz") == []


def test_zeros_enter_no_statistic_and_stay_zero() -> None:
    values = np.random.default_rng(0).normal(300, 80, (9, 8, 7)).astype(np.float32)
    values[:4] = 0
    recipe = Recipe(
        slice_axis="array-0",
        spacing_mm="native",
        window=(8, 8),
        clip_percentiles=(0.0, 100.0),
        only_nonzero=True,
    )
    given = Stack(make_volume(values), recipe).images(0, 9)
    lit = values != 0
    truth = np.where(lit, (values - values[lit].mean()) / values[lit].std(), 0)
    np.testing.assert_allclose(given, truth, atol=1e-4)
    # as stored, 0 may be another number
    moved = make_volume((values + 1000).astype(np.int16), inter=-1000.0)
    assert fit_intensity(moved, recipe).shift == pytest.approx(np.trunc(values)[lit].mean(), abs=1)


@pytest.mark.parametrize(("axis", "codes"), [("RAS", "RAS"), ("LPS", "LPS")])
def test_axes_as_monai_turns_them(axis: Any, codes: str) -> None:
    values = np.random.default_rng(0).integers(0, 1000, (4, 5, 6)).astype(np.int16)
    image = nib.Nifti1Image(values, oblique_affine((1.0, 1.0, 1.0)) @ np.diag([1, -1, 1, 1]))
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(image.affine), nib.orientations.axcodes2ornt(codes)
    )
    recipe = Recipe(
        slice_axis=axis,
        spacing_mm="native",
        window=(8, 8),
        normalisation="fixed",
        fixed={"low": -1, "high": 2000},
    )
    given = stack_of(make_volume(values, image.affine), recipe).images(0, 4)
    np.testing.assert_array_equal(given, np.asarray(image.as_reoriented(turn).dataobj))


@pytest.mark.parametrize(("regions", "channels"), [(1, 1), (2, 2)])
def test_a_card_is_written_for_such_a_graph(tmp_path: Path, regions: int, channels: int) -> None:
    onnx.save(net(regions=regions, channels=channels), tmp_path / "net.onnx")
    names = ",".join(("whole", "core")[:regions])
    command = ["card", "init", tmp_path / "net.onnx", "-o", tmp_path / "card.json"]
    command += ["--modality", "MR", "--structures", names, "--axis", "superior"]
    command += ["--spacing", "native", "--window", "16,16"]
    command += ["--channels", "T1,T2", "--regions"] if channels == 2 else []
    done = leuda_here(*command)
    assert done.returncode == 0, done.stderr
    made = package_graph(tmp_path / "net.onnx", tmp_path / "card.json", tmp_path / "out").card
    assert made.options.regions
    assert made.scan_count == channels
    assert made.score_count == regions
