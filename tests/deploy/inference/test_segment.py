"""Scan in, labels out, through a model whose answer is known; and what an engine refuses to run."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from nibabel import orientations
from numpy.typing import NDArray
from support.makers import MakeModel, MakeVolume, ThresholdLabels

from leuda_deploy.engines.onnx_runtime import OnnxEngine
from leuda_deploy.errors import LeudaError, ModelError
from leuda_deploy.inference.segment import segment, volumes_ml
from leuda_deploy.inference.slabs import Scoring
from leuda_deploy.model.card import METADATA_KEY, ModelCard, Structure
from leuda_deploy.model.model_file import ModelFile, content_sha256
from leuda_deploy.scans.nifti import write_labels
from leuda_deploy.scans.recipe import Recipe
from leuda_deploy.scans.stack import Stack
from leuda_deploy.scans.volume import read_volume

ODD = Path(__file__).parents[4] / "shared" / "data" / "odd"
ODD_SCANS = sorted(ODD.glob("*.nii*")) if ODD.is_dir() else []


@pytest.fixture(scope="session")
def model(make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def engine(model: Path) -> OnnxEngine:
    return OnnxEngine(ModelFile.open(model), threads=1)


def with_axis(recipe: Recipe, axis: str) -> Recipe:
    return Recipe.model_validate(recipe.model_dump() | {"slice_axis": axis})


# --- the whole way


@pytest.mark.parametrize("axis", ["superior", "anterior", "right", "array-0", "array-1", "array-2"])
def test_labels_are_those_of_the_scans_own_voxels(
    tmp_path: Path,
    scan_file: Path,
    engine: OnnxEngine,
    threshold_labels: ThresholdLabels,
    axis: str,
) -> None:
    image = nib.load(scan_file)
    values = np.asarray(image.dataobj)
    for order in list(product(permutations(range(3)), product((1, -1), repeat=3)))[::5]:
        turn = np.column_stack(order)
        turned = image.as_reoriented(turn)
        nib.save(turned, tmp_path / "turned.nii.gz")
        volume = read_volume(tmp_path / "turned.nii.gz")
        found = segment(Stack(volume, with_axis(engine.card.recipe, axis)), engine)
        write_labels(tmp_path / "l.nii.gz", found.labels, volume, engine.card.label_names)
        written = nib.load(tmp_path / "l.nii.gz")
        expected = orientations.apply_orientation(threshold_labels(values), turn)
        np.testing.assert_array_equal(np.asarray(written.dataobj), expected)
        np.testing.assert_array_equal(written.affine, nib.load(tmp_path / "turned.nii.gz").affine)
    assert set(np.unique(expected)) == {0, 1, 2}


@pytest.mark.parametrize("dtype", ["uint8", ">i2", "float32", "float64"])
def test_stored_type_and_scale_do_not_matter(
    make_volume: MakeVolume, engine: OnnxEngine, threshold_labels: ThresholdLabels, dtype: str
) -> None:
    raw = np.random.default_rng(0).integers(0, 251, (20, 21, 3)).astype(dtype)
    for slope, inter in ((1.0, 0.0), (0.5, -1024.0), (-3.0, 10.0)):
        volume = make_volume(raw, slope=slope, inter=inter)
        found = segment(Stack(volume, engine.card.recipe), engine)
        np.testing.assert_array_equal(
            found.labels, threshold_labels(raw.astype(float) * slope + inter)
        )


def test_slab_and_batch_do_not_matter_and_progress_is_told(
    make_volume: MakeVolume, engine: OnnxEngine
) -> None:
    raw = np.random.default_rng(0).integers(0, 251, (20, 35, 7)).astype(np.int16)
    stack = Stack(make_volume(raw), engine.card.recipe)
    told: list[tuple[int, int, str]] = []
    once = segment(
        stack, engine, Scoring(slab=3, batch=2), progress=lambda *step: told.append(step)
    )
    assert [step[:2] for step in told] == [(3, 7), (6, 7), (7, 7)]
    assert set(once.seconds) == {"normalise", "resample", "network", "labels", "uncertainty"}
    for slab, batch in ((1, 1), (100, 100)):
        again = segment(stack, engine, Scoring(slab=slab, batch=batch))
        np.testing.assert_array_equal(again.labels, once.labels)


def test_outside_of_the_scan_is_as_dark_as_its_darkest_voxel(
    make_volume: MakeVolume, engine: OnnxEngine
) -> None:
    raw = np.random.default_rng(0).integers(100, 251, (9, 9, 2)).astype(np.int16)
    darkest: list[float] = []

    def listening(windows: NDArray[np.float32]) -> NDArray[np.float32]:
        darkest.append(float(windows.min()))
        assert np.count_nonzero(windows == windows.min()) >= len(windows) * (16 * 16 - 9 * 9)
        return engine(windows)

    segment(Stack(make_volume(raw), engine.card.recipe), listening)
    assert darkest == [pytest.approx(-1)]


def test_resampled_scan_is_labelled_on_its_own_grid(
    make_volume: MakeVolume, engine: OnnxEngine
) -> None:
    raw = np.zeros((40, 60, 4), np.int16)
    raw[10:30, 20:40] = 1000
    spacing = np.diag([1.0, 0.5, 3.0, 1.0])
    recipe = Recipe.model_validate(engine.card.recipe.model_dump() | {"spacing_mm": (1.7, 1.7)})
    found = segment(Stack(make_volume(raw, spacing), recipe), engine).labels
    assert found.shape == raw.shape
    bright = found == 2
    agree = np.count_nonzero(bright == (raw == 1000)) / raw.size
    assert agree > 0.93  # only the rim may differ
    assert bright[13:27, 25:35].all()
    assert not bright[:7].any()


def test_volumes_count_voxels(make_volume: MakeVolume) -> None:
    labels = np.array([0, 1, 1, 3] * 6, np.uint8).reshape(2, 3, 4)
    volume = make_volume(labels, np.diag([1.0, 2.0, 5.0, 1.0]))
    found = volumes_ml(labels, volume, ["a", "b", "c"])
    assert found == pytest.approx({"a": 0.12, "b": 0.0, "c": 0.06})


@pytest.mark.skipif(not ODD_SCANS, reason=f"no scans in {'/'.join(ODD.parts[-3:])}")
@pytest.mark.parametrize("path", ODD_SCANS, ids=lambda path: path.name)
def test_odd_real_scan_gets_labels_on_exactly_its_grid(
    tmp_path: Path, engine: OnnxEngine, path: Path
) -> None:
    recipe = Recipe.model_validate(
        engine.card.recipe.model_dump() | {"spacing_mm": (6.0, 6.0), "clip_percentiles": (0, 98)}
    )
    scan = nib.load(path)
    volume = read_volume(path, frame=0)
    found = segment(Stack(volume, recipe), engine)
    write_labels(tmp_path / "l.nii.gz", found.labels, volume, engine.card.label_names)
    written = nib.load(tmp_path / "l.nii.gz")
    assert written.shape[:3] == scan.shape[:3]
    assert len(written.shape) == 3 or set(written.shape[3:]) == {1}
    np.testing.assert_array_equal(written.affine, scan.affine)
    for form in ("qform", "sform"):
        np.testing.assert_array_equal(
            getattr(written.header, f"get_{form}")(), getattr(scan.header, f"get_{form}")()
        )
        assert written.header[f"{form}_code"] == scan.header[f"{form}_code"]
    assert written.header.get_zooms()[:3] == scan.header.get_zooms()[:3]
    assert len(np.unique(np.asarray(written.dataobj))) >= 2


# --- what an engine refuses


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        OnnxEngine(ModelFile.open(path), threads=1)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)
    return str(caught.value)


def test_engine_takes_any_batch(engine: OnnxEngine) -> None:
    for batch in (1, 2, 9):
        windows = np.zeros((batch, 1, 16, 16), np.float32)
        logits = engine(windows)
        assert logits.shape == (batch, 3, 16, 16)
        assert logits.dtype == np.float32


def test_folder_stands_for_the_model_in_it(model: Path) -> None:
    assert OnnxEngine(ModelFile.open(model.parent), threads=1).path == model


def test_missing_model_is_refused(tmp_path: Path) -> None:
    assert "no model at" in refusal(tmp_path)
    assert "no model at" in refusal(tmp_path / "a.onnx")


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_truncated_model_is_refused(tmp_path: Path, model: Path, kept: float) -> None:
    content = model.read_bytes()
    (tmp_path / "a.onnx").write_bytes(content[: int(len(content) * kept)])
    refusal(tmp_path / "a.onnx")


def test_junk_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(bytes(range(256)) * 10)
    assert "not an ONNX model" in refusal(tmp_path / "a.onnx")


def test_flipped_weight_is_refused(tmp_path: Path, model: Path) -> None:
    content = bytearray(model.read_bytes())
    weights = np.array([0, 1, 2], dtype=np.float32).tobytes()
    place = content.index(weights)
    for byte in range(place, place + len(weights)):
        damaged = content.copy()
        damaged[byte] ^= 0x01
        (tmp_path / "a.onnx").write_bytes(damaged)
        assert "own checksum" in refusal(tmp_path / "a.onnx")


def test_any_flipped_byte_is_refused_or_harmless(tmp_path: Path, model: Path) -> None:
    windows = np.linspace(-1, 1, 256, dtype=np.float32).reshape(1, 1, 16, 16)
    expected = OnnxEngine(ModelFile.open(model), threads=1)(windows)
    content = model.read_bytes()
    for place in np.random.default_rng(0).integers(0, len(content), 150):
        damaged = bytearray(content)
        damaged[place] ^= 0xFF
        (tmp_path / "a.onnx").write_bytes(damaged)
        try:
            found = OnnxEngine(ModelFile.open(tmp_path / "a.onnx"), threads=1)
        except LeudaError as error:
            assert "\n" not in str(error)  # noqa: PT017
        else:
            np.testing.assert_array_equal(found(windows), expected)


def rewritten(path: Path, model: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    proto = onnx.load(model)
    change(proto)
    path.write_bytes(proto.SerializeToString())
    return path


def test_model_without_a_card_is_refused(tmp_path: Path, model: Path) -> None:
    path = rewritten(tmp_path / "a.onnx", model, lambda proto: proto.ClearField("metadata_props"))
    assert "carries no leuda model card" in refusal(path)


def test_model_with_two_cards_is_refused(tmp_path: Path, model: Path) -> None:
    def double(proto: onnx.ModelProto) -> None:
        proto.metadata_props.append(proto.metadata_props[0])

    assert "model card" in refusal(rewritten(tmp_path / "a.onnx", model, double))


def replace_card(card: Callable[[ModelCard], str]) -> Callable[[onnx.ModelProto], None]:
    def change(proto: onnx.ModelProto) -> None:
        (entry,) = proto.metadata_props
        assert entry.key == METADATA_KEY
        entry.value = card(ModelCard.model_validate_json(entry.value))

    return change


def by_an_earlier_leuda(proto: onnx.ModelProto) -> None:
    """Give it a card that knows neither tiling nor depth, sealed as it stands."""
    (entry,) = proto.metadata_props
    content = json.loads(entry.value)
    del content["tiling"], content["depth"], content["options"]["window_multiple"]

    def text(sha256: str) -> str:
        return json.dumps(content | {"sha256": sha256}, separators=(",", ":"))

    entry.value = text(content_sha256(proto, text("")))


def test_a_model_of_an_earlier_leuda_runs_and_is_sealed_all_the_same(
    tmp_path: Path, model: Path
) -> None:
    path = rewritten(tmp_path / "a.onnx", model, by_an_earlier_leuda)
    assert OnnxEngine(ModelFile.open(path), threads=1).card.depth is None
    weights = np.array([0, 1, 2], dtype=np.float32).tobytes()
    path.write_bytes(path.read_bytes().replace(weights, weights[::-1]))
    assert "own checksum" in refusal(path)


def three_structures(card: ModelCard) -> str:
    more = (*card.structures, Structure(name="third", value=3, colour=(0, 0, 0)))
    return card.model_copy(update={"structures": more}).to_json()


@pytest.mark.parametrize(
    ("card", "message"),
    [
        (lambda card: card.to_json()[:-10], "is not JSON"),
        (lambda card: card.to_json().replace('"schema_version":1', '"schema_version":7'), "schema"),
        (lambda card: card.to_json().replace('"feed"', '"food"'), "unknown key 'food'"),
        (lambda card: card.model_copy(update={"sha256": "0" * 64}).to_json(), "own checksum"),
        (three_structures, "own checksum"),
        (lambda card: card.to_json().replace("CT", "MR"), "own checksum"),
        (lambda card: " " * (1 << 20) + card.to_json(), "bytes"),
    ],
)
def test_changed_metadata_is_refused(
    tmp_path: Path, model: Path, card: Callable[[ModelCard], str], message: str
) -> None:
    assert message in refusal(rewritten(tmp_path / "a.onnx", model, replace_card(card)))


def test_graph_with_another_window_than_its_card_is_refused(tmp_path: Path, model: Path) -> None:
    def fix_the_window(proto: onnx.ModelProto) -> None:
        for part in (*proto.graph.input, *proto.graph.output):
            for axis in (2, 3):
                part.type.tensor_type.shape.dim[axis].dim_value = 32

        def sealed(card: ModelCard) -> str:
            sha256 = content_sha256(proto, card.model_copy(update={"sha256": ""}).to_json())
            return card.model_copy(update={"sha256": sha256}).to_json()

        replace_card(sealed)(proto)

    assert "its card says" in refusal(rewritten(tmp_path / "a.onnx", model, fix_the_window))


def has_cuda(model: Path) -> bool:
    ort.set_default_logger_severity(4)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    asked = [name for name in ["CUDAExecutionProvider"] if name in ort.get_available_providers()]
    session = ort.InferenceSession(model, options, providers=[*asked, "CPUExecutionProvider"])
    return "CUDAExecutionProvider" in session.get_providers()


def test_cuda_is_cuda_or_an_error_that_says_what_it_needs(
    model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if has_cuda(model):
        assert (
            OnnxEngine(ModelFile.open(model), provider="cuda").provider == "CUDAExecutionProvider"
        )
        return
    capfd.readouterr()
    with pytest.raises(LeudaError, match="CUDA needs an NVIDIA GPU") as caught:
        OnnxEngine(ModelFile.open(model), provider="cuda")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")  # the error is all that there is to read
