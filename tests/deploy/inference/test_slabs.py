"""3D graphs: blocks of slices cover the scan, blend as windows in a slice do, and stay few."""

from __future__ import annotations

import json
import tracemalloc
from itertools import product
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import onnx
import pytest
from nibabel import orientations
from numpy.typing import NDArray
from support.command import leuda_here
from support.makers import MakeModel, MakeVolume, ThresholdLabels

from leuda_deploy.engines.engine import EngineName, EngineSettings, Scorer
from leuda_deploy.engines.onnx_runtime import OnnxEngine
from leuda_deploy.engines.open_engine import open_engine
from leuda_deploy.errors import InputError, ModelError
from leuda_deploy.export.import_onnx import package_graph
from leuda_deploy.inference.memory_plan import Workload, make_plan
from leuda_deploy.inference.segment import segment
from leuda_deploy.inference.segmenter import Segmenter
from leuda_deploy.inference.settings import Settings
from leuda_deploy.inference.slabs import BlockScorer, ScanSlices, Scoring, sample_windows
from leuda_deploy.inference.sliding_window import blend_weights, window_starts
from leuda_deploy.model.model_file import ModelFile, write_model
from leuda_deploy.model.tiling import Tiling
from leuda_deploy.proof.probes import probes_of_scans
from leuda_deploy.scans.grid.resample import fit_to_window, taps
from leuda_deploy.scans.recipe import Depth, Recipe
from leuda_deploy.scans.stack import Stack
from leuda_deploy.scans.volume import read_volume

Float32 = NDArray[np.float32]

PLANE = (12, 16)
RECIPE = Recipe(
    slice_axis="superior",
    spacing_mm="native",
    window=PLANE,
    clip_percentiles=(0.0, 100.0),
    normalisation="minmax",
)


def stack_of(
    make_volume: MakeVolume, shape: tuple[int, int, int], depth: Depth, spacing_mm: float = 1.0
) -> Stack:
    """A scan of (D, H, W) random voxels; slices lie `spacing_mm` apart."""
    raw = np.random.default_rng(0).integers(0, 1001, shape[::-1]).astype(np.int16)
    return Stack(make_volume(raw, np.diag([1.0, 1.0, spacing_mm, 1.0])), RECIPE, window_depth=depth)


def scored(engine: Scorer, stack: Stack, tiling: Tiling) -> Float32:
    """(D, K, h, w) of the whole stack, put together from what comes out slab by slab."""
    blocks = BlockScorer(engine, stack, Scoring(tiling=tiling, batch=3), fill=-1.0)
    found, at = [], 0
    for slab in blocks.slabs(range(stack.depth)):
        done, scores = blocks(slab, stack.images_of(slab))
        assert list(done) == list(range(at, at + len(scores)))
        found.append(scores)
        at += len(scores)
    return np.concatenate(found)


def functions_of_the_voxel(windows: Float32) -> Float32:
    x = windows[:, 0]
    return np.stack([x, 2 * x + 1, x * x], axis=1)


def near_the_rim(windows: Float32) -> Float32:
    """What the engine says depends on where in the window a voxel lies, and on its neighbours."""
    x = windows[:, 0]
    place = np.arange(x[0].size, dtype=np.float32).reshape(x.shape[1:]) / x[0].size
    return np.stack([x + place, np.roll(x, 1, axis=1) * place], axis=1)


@pytest.mark.parametrize("depth", [1, 4, 7, 8, 9, 21])
@pytest.mark.parametrize("field", [(5, 7), (12, 16), (13, 30)])
def test_voxelwise_engine_gives_its_function_of_the_scan(
    make_volume: MakeVolume, depth: int, field: tuple[int, int]
) -> None:
    stack = stack_of(make_volume, (depth, *field), Depth(slices=8))
    expected = functions_of_the_voxel(stack.images(0, depth)[:, None])
    for overlap, blending in product((0.0, 0.5, 0.75), ("gaussian", "constant")):
        tiling = Tiling(overlap=overlap, blending=blending)
        np.testing.assert_allclose(
            scored(functions_of_the_voxel, stack, tiling), expected, rtol=2e-5, atol=1e-5
        )


def blended_at_once(
    engine: Scorer, images: Float32, window: tuple[int, int, int], tiling: Tiling
) -> Float32:
    """(D, H, W) of at least the window's size -> (D, K, H, W), in arrays of the whole size."""
    starts = [
        window_starts(n, size, tiling.overlap) for n, size in zip(images.shape, window, strict=True)
    ]
    bell = blend_weights(window[:1], tiling.blending)[:, None, None] * blend_weights(
        window[1:], tiling.blending
    )
    sums = np.zeros((2, *images.shape))
    total = np.zeros(images.shape)
    for corner in product(*starts):
        part = tuple(slice(at, at + size) for at, size in zip(corner, window, strict=True))
        (scores,) = engine(images[part][None, None])
        sums[:, *part] += scores * bell
        total[part] += bell
    return np.moveaxis(sums / total, 0, 1)


@pytest.mark.parametrize("blending", ["gaussian", "constant"])
@pytest.mark.parametrize(("depth", "overlap"), [(8, 0.5), (9, 0.5), (29, 0.5), (29, 0.8), (30, 0)])
def test_blending_is_that_of_the_whole_volume_at_once(
    make_volume: MakeVolume,
    depth: int,
    overlap: float,
    blending: Literal["gaussian", "constant"],
) -> None:
    stack = stack_of(make_volume, (depth, 17, 30), Depth(slices=8))
    tiling = Tiling(overlap=overlap, blending=blending)
    expected = blended_at_once(near_the_rim, stack.images(0, depth), (8, *PLANE), tiling)
    np.testing.assert_allclose(scored(near_the_rim, stack, tiling), expected, rtol=1e-4, atol=1e-5)


def test_a_slice_goes_out_as_soon_as_no_later_window_reads_it(make_volume: MakeVolume) -> None:
    stack = stack_of(make_volume, (20, *PLANE), Depth(slices=8))
    blocks = BlockScorer(functions_of_the_voxel, stack, Scoring(batch=1), fill=-1.0)
    assert blocks.cuts == [8, 12, 16, 20]
    out = [
        (done[0], len(scores))
        for done, scores in (
            blocks(slab, stack.images_of(slab)) for slab in blocks.slabs(range(stack.depth))
        )
    ]
    assert out == [(0, 4), (4, 4), (8, 4), (12, 8)]


@pytest.mark.parametrize(("grid", "scan"), [(5, 5), (5, 17), (17, 5), (1, 4), (9, 10)])
@pytest.mark.parametrize("slab", [1, 3, 100])
def test_scores_of_the_scans_slices_are_linear_between_the_grids(
    grid: int, scan: int, slab: int
) -> None:
    scores = np.random.default_rng(1).normal(size=(grid, 2, 3, 4)).astype(np.float32)
    index, weight = taps(grid, scan)
    expected = (weight[..., None, None, None] * scores[index]).sum(axis=0)
    on_scan, found = ScanSlices(grid, scan), []
    for start in range(0, grid, slab):
        for slices, part in on_scan(range(start, grid)[:slab], scores[start : start + slab]):
            assert list(slices) == list(range(len(found), len(found) + len(part)))
            found.extend(part)
    np.testing.assert_allclose(np.stack(found), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("spacing_mm", "slices"), [(1.0, 20), (2.5, 8), (0.5, 40)])
def test_slices_are_resampled_as_pixels_are(
    make_volume: MakeVolume, spacing_mm: float, slices: int
) -> None:
    raw = np.random.default_rng(0).integers(0, 1001, (6, 7, 20)).astype(np.int16)
    volume = make_volume(raw)
    stack = Stack(volume, RECIPE, window_depth=Depth(slices=4, spacing_mm=spacing_mm))
    assert (stack.depth, stack.scan_depth, stack.grid_shape) == (slices, 20, (7, 6))
    index, weight = taps(20, slices)
    own = Stack(volume, RECIPE).images(0, 20)
    expected = (weight[..., None, None] * own[index]).sum(axis=0)
    np.testing.assert_allclose(stack.images(0, slices), expected, rtol=1e-5, atol=1e-6)
    for start in range(slices):  # any slab has what the whole has
        part = stack.images(start, min(start + 3, slices))
        np.testing.assert_allclose(part, expected[start : start + 3], rtol=1e-5, atol=1e-6)


# --- a model file


@pytest.mark.parametrize("name", ["ort-cpu", "openvino"])
def test_labels_are_those_of_the_scans_own_voxels_in_any_orientation(
    tmp_path: Path,
    scan_file: Path,
    make_model: MakeModel,
    threshold_labels: ThresholdLabels,
    name: EngineName,
) -> None:
    path = make_model(tmp_path, depth=Depth(slices=4))
    engine = open_engine(ModelFile.open(path), name, EngineSettings(precision="fp32", threads=1))
    assert engine(np.zeros((3, 1, 4, 16, 16), np.float32)).shape == (3, 3, 4, 16, 16)
    image = nib.load(scan_file)
    values = np.asarray(image.dataobj)
    for turn in ([[0, 1], [1, 1], [2, 1]], [[2, -1], [0, 1], [1, -1]], [[1, 1], [2, -1], [0, 1]]):
        nib.save(image.as_reoriented(np.array(turn)), tmp_path / "turned.nii.gz")
        volume = read_volume(tmp_path / "turned.nii.gz")
        for axis in ("superior", "array-0"):
            recipe = Recipe.model_validate(engine.card.recipe.model_dump() | {"slice_axis": axis})
            labels = segment(Stack(volume, recipe, window_depth=engine.card.depth), engine).labels
            expected = orientations.apply_orientation(threshold_labels(values), np.array(turn))
            np.testing.assert_array_equal(labels, expected)


def test_labels_and_uncertainty_lie_on_the_scans_slices_when_the_grid_has_others(
    make_volume: MakeVolume,
) -> None:
    """Slices of one value each, so that what lies between them is known."""
    values = np.array([0, 0, 0, 0, 1000, 1000, 1000, 1000, 0, 0, 0, 0], dtype=np.int16)
    volume = make_volume(np.broadcast_to(values, (9, 10, 12)).copy(), np.diag([1.0, 1.0, 2.0, 1.0]))

    def engine(windows: Float32) -> Float32:
        return np.concatenate([np.zeros_like(windows), 9 * windows], axis=1)

    for spacing_mm in (1.0, 2.0, 4.0):
        depth = Depth(slices=4, spacing_mm=spacing_mm)
        found = segment(Stack(volume, RECIPE, window_depth=depth), engine, uncertainty=True)
        assert found.uncertainty is not None
        assert found.labels.shape == found.uncertainty.shape == (9, 10, 12)
        np.testing.assert_array_equal(found.labels, volume.raw > 500)


@pytest.mark.parametrize(("graph", "card"), [(None, Depth(slices=4)), (Depth(slices=4), None)])
def test_graph_that_is_not_what_its_card_says_is_refused(
    tmp_path: Path, make_model: MakeModel, graph: Depth | None, card: Depth | None
) -> None:
    path = make_model(tmp_path, depth=graph)
    written = ModelFile.open(path).card.model_copy(update={"depth": card})
    write_model(onnx.load(path), written, path)
    with pytest.raises(ModelError, match=r"the graph of .* has shapes"):
        OnnxEngine(ModelFile.open(path))


def test_the_card_says_what_a_window_is(tmp_path: Path, make_model: MakeModel) -> None:
    flat, deep = make_model(tmp_path / "2d"), make_model(tmp_path / "3d", depth=Depth(slices=4))
    assert ModelFile.open(flat).card.window == (16, 16)
    assert ModelFile.open(deep).card.window == (4, 16, 16)


# --- the whole way


def test_infer_with_trial_plan_and_report(
    tmp_path: Path, make_model: MakeModel, threshold_labels: ThresholdLabels, scan_file: Path
) -> None:
    make_model(tmp_path / "model", depth=Depth(slices=4))
    scan, labels = scan_file, tmp_path / "labels.nii.gz"
    asked = ("--model", tmp_path / "model", "--threads", 1, "--engine", "ort-cpu")
    done = leuda_here("infer", scan, "-o", labels, *asked)
    assert done.returncode == 0, done.stderr
    expected = threshold_labels(np.asarray(nib.load(scan).dataobj))
    np.testing.assert_array_equal(np.asarray(nib.load(labels).dataobj), expected)


def test_windows_to_try_and_prove_engines_on(
    tmp_path: Path, make_model: MakeModel, scan_file: Path
) -> None:
    path = make_model(tmp_path / "model", depth=Depth(slices=4))
    segmenter = Segmenter(path, Settings(threads=1))
    stack = segmenter.stack(segmenter.read(scan_file))
    assert sample_windows(stack).shape == (8, 1, 4, 16, 16)
    probes = probes_of_scans(segmenter.card, [scan_file])
    assert probes.windows.shape[1:] == (1, 4, 16, 16)
    assert probes.real > 2
    (tmp_path / "b").mkdir()
    other = tmp_path / "b" / scan_file.name  # a scan of another folder is another scan
    image = nib.load(scan_file)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[::-1], image.affine), other)
    both = probes_of_scans(segmenter.card, [scan_file, other])
    assert {f"{scan} slice 0" for scan in (scan_file, other)} <= set(both.names)
    # the last block ends with the scan
    expected = fit_to_window(stack.images(2, 6), (16, 16), stack.intensity.floor)
    np.testing.assert_array_equal(stack.window_at(5), expected)


def test_memory_does_not_grow_with_the_scan(make_volume: MakeVolume) -> None:
    depth = Depth(slices=8)

    def peak(slices: int) -> int:
        stack = stack_of(make_volume, (slices, 64, 64), depth)
        assert stack.intensity.high > 0  # fitted before
        tracemalloc.start()
        try:
            segment(stack, functions_of_the_voxel)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    short, long = peak(32), peak(256)
    labels = (256 - 32) * 64 * 64
    assert long - short < 1.5 * labels + (1 << 20)


@pytest.mark.parametrize(
    ("slices", "overlap", "spacing_mm"),
    [
        (40, 0.5, "native"),
        (40, 0.5, 0.5),
        (40, 0.5, 2.0),
        (40, 0.0, "native"),
        (10, 0.5, "native"),
        (5, 0.5, "native"),
    ],
)
def test_plan_is_little_more_than_what_is_used_and_keeps_to_the_budget(
    make_volume: MakeVolume, slices: int, overlap: float, spacing_mm: float | Literal["native"]
) -> None:
    """A scan of many windows; of two; and of one that is deeper than the scan."""
    depth, classes, tiling = Depth(slices=8, spacing_mm=spacing_mm), 40, Tiling(overlap=overlap)
    stack = stack_of(make_volume, (slices, 64, 64), depth)
    batch_of_scores = 4 * classes * 4 * 8 * 12 * 16

    def engine(windows: Float32) -> Float32:
        return np.repeat(windows, classes, axis=1)

    plan = make_plan(stack, Workload(classes=classes, tiling=tiling), batch=4)
    assert plan.slab == min(8, stack.depth)
    assert stack.intensity.high > 0  # fitted before
    tracemalloc.start()
    try:
        segment(stack, engine, Scoring(batch=4, tiling=tiling))
        used = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # the engine's own output is not the plan's: trials measure what an engine takes
    planned = plan.parts["slabs"] + plan.parts["labels"] + batch_of_scores
    # what threads hold at once is not the same every time
    assert used < planned < 1.5 * used
    with pytest.raises(InputError, match="the least that would do is --max-memory"):
        make_plan(stack, Workload(classes=classes), batch=4, max_bytes=1 << 20)


def test_a_graph_from_elsewhere_gets_its_card_and_is_run(
    tmp_path: Path, make_model: MakeModel, scan_file: Path, threshold_labels: ThresholdLabels
) -> None:
    model = make_model(tmp_path / "made", depth=Depth(slices=4))
    card = tmp_path / "card.json"
    card.write_text(ModelFile.open(model).card.model_dump_json())
    graph = onnx.load(model)
    del graph.metadata_props[:]
    onnx.save(graph, tmp_path / "net.onnx")
    order = ["export", str(tmp_path / "net.onnx"), "--card", str(card), "-o", str(tmp_path / "e")]
    done = leuda_here(*order)
    assert done.returncode == 0, done.stderr
    labels = Segmenter(tmp_path / "e", Settings(threads=1))(scan_file).labels
    expected = threshold_labels(np.asarray(nib.load(scan_file).dataobj))
    np.testing.assert_array_equal(labels, expected)

    def refused(changes: dict[str, Any]) -> str:
        card.write_text(json.dumps(json.loads(ModelFile.open(model).card.to_json()) | changes))
        with pytest.raises(ModelError) as caught:
            package_graph(tmp_path / "net.onnx", card, tmp_path / "other")
        assert not (tmp_path / "other").exists()
        return str(caught.value)

    assert "its card says" in refused({"depth": None})
    one = json.loads(ModelFile.open(model).card.to_json())["structures"][:1]
    assert "its card says" in refused({"structures": one})
    card.write_text("{")
    with pytest.raises(ModelError, match="is not JSON"):
        package_graph(tmp_path / "net.onnx", card, tmp_path / "other")
    (tmp_path / "net.onnx").write_bytes(b"not a graph")
    with pytest.raises(ModelError, match="is not an ONNX model"):
        package_graph(tmp_path / "net.onnx", card, tmp_path / "other")
