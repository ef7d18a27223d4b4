"""Engines really built, on a CPU, for GPUs that are elsewhere; and all that keeps one from running.

Running an engine needs its GPU: the tests marked `gpu`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest

from leuda_deploy.engines.tensorrt.engine import TensorRTEngine
from leuda_deploy.engines.tensorrt.engine_fit import check_engine, misfits, remedy
from leuda_deploy.errors import InputError, MissingExtraError, ModelError
from leuda_deploy.export import add_engines as add_engines_module
from leuda_deploy.export import to_tensorrt as module
from leuda_deploy.export.add_engines import add_engines
from leuda_deploy.export.to_half import to_bf16, to_fp16
from leuda_deploy.export.to_tensorrt import engine_targets, to_tensorrt
from leuda_deploy.export.verify import verify
from leuda_deploy.machine.files import file_sha256
from leuda_deploy.machine.gpu import Gpu, find_gpu
from leuda_deploy.model.export_folder import MODEL_FILE, read_manifest, write_manifest
from leuda_deploy.model.model_file import ModelFile, write_model
from leuda_deploy.model.passport import Passport
from leuda_deploy.proof.probes import make_probes

TRANSLATED = Path(__file__).parents[2] / "data" / "translated-heart"

needs_rtx = pytest.mark.skipif(
    find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed (leuda[rtx])"
)
TARGETS = ["rtx-ampere", "rtx-ada"]
HALF_LAYERS = ("CONVOLUTION", "DECONVOLUTION", "ACTIVATION", "POOLING", "CONCATENATION")


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The phantom model of test_lower, in fp32, fp16 and bf16, each with engines for two GPUs."""
    folders = {}
    converters = {"fp16": to_fp16, "bf16": to_bf16}
    for precision in ("fp32", "fp16", "bf16"):
        folder = folders[precision] = tmp_path_factory.mktemp(precision)
        shutil.copytree(TRANSLATED, folder, dirs_exist_ok=True)
        if precision in converters:
            card = ModelFile.open(folder / MODEL_FILE).card
            model = converters[precision](onnx.load(folder / MODEL_FILE))
            card = write_model(
                model, card.model_copy(update={"precision": precision}), folder / MODEL_FILE
            ).card
            (folder / "card.json").write_text(card.model_dump_json(indent=1))
            write_manifest(folder)
        add_engines(ModelFile.open(folder), engine_targets(TARGETS, batch=4), probes=None)
    return folders


@pytest.fixture
def export(exports: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the fp16 export that a test may damage."""
    return Path(shutil.copytree(exports["fp16"], tmp_path / "export"))


@needs_rtx
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize(("target", "capability"), [("rtx-ampere", "8.6"), ("rtx-ada", "8.9")])
def test_engines_are_built_ahead_of_time_and_say_their_precisions(
    exports: dict[str, Path], precision: str, target: str, capability: str
) -> None:
    folder = exports[precision]
    name = f"model.{target}.engine"
    passport = read_manifest(folder).engines[name]
    assert passport.sha256 == file_sha256(folder / name)
    assert passport.onnx_sha256 == file_sha256(folder / MODEL_FILE)
    assert (passport.family, passport.target) == ("tensorrt_rtx", target)
    assert (passport.capability, passport.gpu) == (capability, None)
    assert (passport.precision, passport.batch, passport.window) == (precision, (1, 4, 4), (64, 64))
    assert not passport.proven
    assert (folder / name).stat().st_size > 1_000_000
    beside = Passport.model_validate_json((folder / f"model.{target}.json").read_text())
    assert beside == passport

    wanted = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16"}[precision]
    for kind in HALF_LAYERS:
        # transposed convolutions have no bf16 tactic
        typed = "HALF" if (kind, precision) == ("DECONVOLUTION", "bf16") else wanted
        assert passport.layer_kinds[f"{kind} {typed}"] >= 3
    assert passport.layer_kinds["NORMALIZATION FLOAT"] == 13
    # the layer that writes the logits is the only convolution left in fp32
    assert passport.layer_kinds["CONVOLUTION FLOAT"] == (27 if precision == "fp32" else 1)
    assert passport.layers["node_conv2d_26"] == "CONVOLUTION FLOAT"
    assert sum(passport.layer_kinds.values()) == len(passport.layers)


@needs_rtx
def test_progress_comes_from_the_builder(exports: dict[str, Path], tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    (target,) = engine_targets(["rtx-blackwell"])
    model = exports["fp32"] / MODEL_FILE
    to_tensorrt(
        ModelFile.open(model),
        target,
        tmp_path / "e.engine",
        progress=lambda *step: seen.append(step),
    )
    assert {"Building engine", "Optimizing graph"} <= {note for _, _, note in seen}
    assert seen[-1][0] == seen[-1][1]
    assert all(done <= total for done, total, _ in seen)


@needs_rtx
def test_the_very_same_engine_is_not_built_again(
    export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = read_manifest(export)
    built = []
    honest = add_engines_module.to_tensorrt

    def build(model, target, *given, **more):
        built.append(target.name)
        return honest(model, target, *given, **more)

    monkeypatch.setattr(add_engines_module, "to_tensorrt", build)
    add_engines(ModelFile.open(export), engine_targets(TARGETS, batch=4), probes=None)
    assert built == []
    assert read_manifest(export) == before
    (export / "model.rtx-ada.engine").write_bytes(b"damaged")
    add_engines(ModelFile.open(export), engine_targets(TARGETS, batch=4), probes=None)
    assert built == ["rtx-ada"]
    add_engines(ModelFile.open(export), engine_targets(["rtx-ampere"], batch=2), probes=None)
    assert built == ["rtx-ada", "rtx-ampere"]
    assert read_manifest(export).engines["model.rtx-ampere.engine"].batch == (1, 2, 2)
    verify(export)


@needs_rtx
def test_an_engine_that_lost_its_precision_is_refused(tmp_path: Path) -> None:
    honest = ModelFile.open(TRANSLATED)
    lying = honest.card.model_copy(update={"precision": "fp16"})
    write_model(honest.graph(), lying, tmp_path / MODEL_FILE)
    (target,) = engine_targets(["rtx-ada"])
    with pytest.raises(ModelError, match="fp16"):
        to_tensorrt(ModelFile.open(tmp_path / MODEL_FILE), target, tmp_path / "e.engine")
    assert not (tmp_path / "e.engine").exists()


@needs_rtx
def test_verify_says_what_the_engines_are_and_that_they_do_not_fit(export: Path) -> None:
    found = verify(export)
    assert [engine.name for engine in found.engines] == [
        target.file_name for target in engine_targets(TARGETS)
    ]
    json.dumps(found.as_dict())
    if find_gpu() is None:
        for engine in found.engines:
            assert any("compute capability" in misfit for misfit in engine.misfits)
            assert engine.remedy.startswith(f"it is for {engine.target} and this machine has no")
            assert engine.remedy.endswith(f"leuda verify {export} --prove SCAN")


@needs_rtx
def test_what_to_do_about_an_engine_depends_on_what_is_wrong(export: Path) -> None:
    passport = read_manifest(export).engines["model.rtx-ampere.engine"]
    build = f"leuda export {export / MODEL_FILE} --trt"
    of_another_gpu = misfits(passport, onnx_sha256=passport.onnx_sha256, gpu=None,
                             version=passport.version)  # fmt: skip
    stale = misfits(passport, onnx_sha256="0" * 64, gpu=None, version=passport.version)
    assert [misfit.reason for misfit in of_another_gpu] == ["compute capability"]
    assert [misfit.reason for misfit in stale] == ["model", "compute capability"]

    assert remedy(export, passport, None, stale).endswith(f"{build} --trt-target rtx-ampere")
    here = Gpu(name="RTX 4090", capability="8.9")
    assert remedy(export, passport, here, of_another_gpu).endswith(f"RTX 4090: {build}")
    theirs = passport.model_copy(update={"gpu": "RTX 3080", "target": "this-machine"})
    assert remedy(export, theirs, None, stale).endswith(f"RTX 3080: {build}")
    elsewhere = remedy(export, theirs, None, of_another_gpu)
    assert "RTX 3080 (SM 8.6)" in elsewhere
    assert elsewhere.endswith(f"leuda verify {export} --prove SCAN")


def flip(path: Path, place: int = 1000) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@needs_rtx
@pytest.mark.parametrize(
    ("damage", "fact"),
    [
        (lambda f: flip(f / "model.rtx-ada.engine"), "model.rtx-ada.engine"),
        (lambda f: (f / "model.rtx-ada.engine").write_bytes(b"x"), "model.rtx-ada.engine"),
        (lambda f: (f / "model.rtx-ada.engine").unlink(), "model.rtx-ada.engine"),
        (lambda f: (f / "model.x.engine").write_bytes(b"code"), "model.x.engine"),
        (lambda f: (f / "manifest.json").unlink(), "manifest.json"),
        (lambda f: (f / "manifest.json").write_text("{"), "manifest.json"),
        (lambda f: (f / "manifest.json").write_text(" " * (9 << 20)), "9,437,184 bytes"),
        (lambda f: flip(f / "model.onnx", 500_000), "model.onnx"),
        (lambda f: flip(f / "parity.json", 5), "parity.json"),
    ],
)
def test_a_damaged_export_is_one_line(export: Path, damage, fact: str) -> None:
    damage(export)
    with pytest.raises(ModelError) as refused:
        verify(export)
    assert fact in str(refused.value)
    assert "\n" not in str(refused.value)


@needs_rtx
def test_an_engine_is_not_read_unless_manifest_passport_and_machine_agree(
    export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from leuda_deploy.engines.tensorrt import engine_fit

    name = "model.rtx-ada.engine"
    here = Gpu(name="NVIDIA RTX 4090", capability="8.9")
    monkeypatch.setattr(engine_fit, "find_gpu", lambda: here)
    checked = check_engine(ModelFile.open(export), name, unproven=True)
    passport = checked.passport
    assert (checked.path.name, passport.target, passport.precision) == (name, "rtx-ada", "fp16")
    assert hashlib.sha256(checked.content).hexdigest() == passport.sha256
    with pytest.raises(ModelError, match="--prove"):
        TensorRTEngine(ModelFile.open(export), name)

    monkeypatch.setattr(engine_fit, "find_gpu", lambda: replace(here, capability="8.6"))
    with pytest.raises(ModelError, match=r"8\.9.*8\.6.*leuda export .*--trt"):
        check_engine(ModelFile.open(export), name)
    monkeypatch.setattr(engine_fit, "find_gpu", lambda: here)
    monkeypatch.setattr(engine_fit, "installed_version", lambda family: "1.6.0")
    with pytest.raises(ModelError, match=r"tensorrt_rtx.*1\.6\.0"):
        check_engine(ModelFile.open(export), name)
    flip(export / name)
    with pytest.raises(ModelError, match=name):
        check_engine(ModelFile.open(export), name)
    with pytest.raises(ModelError, match=r"model\.other\.engine"):
        check_engine(ModelFile.open(export), "model.other.engine")


@needs_rtx
def test_every_field_of_a_passport_is_compared(exports: dict[str, Path]) -> None:
    passport = read_manifest(exports["fp32"]).engines["model.rtx-ada.engine"]
    here = Gpu(name="GPU", capability="8.9")
    fits = {"onnx_sha256": passport.onnx_sha256, "gpu": here, "version": passport.version}
    assert misfits(passport, **fits) == []
    for change, reason, here in (
        ({"onnx_sha256": "0" * 64}, "model", "0" * 64),
        # the same beginning is another model
        (
            {"onnx_sha256": passport.onnx_sha256[:12] + "0" * 52},
            "model",
            passport.onnx_sha256[:12] + "0" * 52,
        ),
        ({"version": None}, "version", None),
        ({"gpu": None}, "compute capability", None),
        ({"gpu": Gpu(name="GPU", capability="8.6")}, "compute capability", "8.6"),
    ):
        (misfit,) = misfits(passport, **(fits | change))
        assert (misfit.reason, misfit.here) == (reason, here)
    built_here = passport.model_copy(update={"gpu": "another GPU"})
    (misfit,) = misfits(built_here, **fits)
    assert (misfit.reason, misfit.wants, misfit.here) == ("gpu", "another GPU", "GPU")
    assert passport.key() != built_here.key()


def test_targets_are_checked_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"'orin'.*this-machine"):
        engine_targets(["orin"])
    monkeypatch.setattr(module, "find_gpu", lambda: None)
    with pytest.raises(InputError, match="--trt-target"):
        engine_targets([])
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError) as missing:
        engine_targets(["rtx-ada"])
    assert missing.value.extra == "rtx"
    with pytest.raises(MissingExtraError) as missing:
        engine_targets([], gpu=Gpu(name="GPU", capability="8.7"))
    assert missing.value.extra == "trt"


def test_one_spelling_serves_both_families(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: name == "tensorrt")
    (target,) = engine_targets([], gpu=Gpu(name="Orin", capability="8.7"))
    assert (target.family, target.capability, target.gpu) == ("tensorrt", "8.7", "Orin")


@pytest.mark.gpu
def test_an_engine_for_this_gpu_is_run_and_proven(tmp_path: Path) -> None:
    if find_gpu() is None:
        pytest.skip("no NVIDIA GPU here")
    shutil.copytree(TRANSLATED, tmp_path / "export")
    images = np.random.default_rng(0).uniform(-1, 1, (16, 64, 64)).astype(np.float32)
    probes = make_probes({"noise": images})
    (target,) = engine_targets([])
    engines = add_engines(ModelFile.open(tmp_path / "export"), [target], probes=probes)
    passport = engines[target.file_name]
    assert passport.proven
    assert passport.inspected
    assert passport.memory_mb
    engine = TensorRTEngine(ModelFile.open(tmp_path / "export"), target.file_name)
    assert engine(probes.windows[:11]).shape == (11, 5, 64, 64)
