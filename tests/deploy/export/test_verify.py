"""`leuda verify` and `leuda export MODEL.onnx`: bad files are one line, and torch is not needed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import onnx
import pytest
from support.command import Done, leuda

from leuda_deploy.machine.files import file_sha256
from leuda_deploy.model.card import METADATA_KEY
from leuda_deploy.model.export_folder import default_model

WITHOUT_TORCH = """
import sys
for name in ("torch", "onnxscript", "matplotlib", "tomli_w"):
    sys.modules[name] = None  # as if it were not installed
"""


def leuda_without_torch(*arguments: object) -> Done:
    """The command, in a process where torch cannot be imported."""
    return leuda(*arguments, prelude=WITHOUT_TORCH)


@pytest.fixture
def export(tmp_path: Path) -> Path:
    return Path(shutil.copytree(default_model(), tmp_path / "export"))


def test_a_whole_export_says_what_it_is(export: Path) -> None:
    done = leuda_without_torch("verify", export, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["name"], found["precision"]) == ("phantom-heart", "fp32")
    assert found["structures"] == ["MYO", "LAC", "LVC", "AA"]
    assert found["engines"] == []
    assert found["model_sha256"] == file_sha256(export / "model.onnx")
    assert found["content_sha256"] == json.loads((export / "card.json").read_text())["sha256"]
    done = leuda_without_torch("verify", export / "model.onnx")
    assert done.returncode == 0
    assert "phantom-heart: fp32, feed target, MIT" in done.stdout


def flip(export: Path) -> None:
    content = bytearray((export / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (export / "model.onnx").write_bytes(content)


def truncate(export: Path) -> None:
    content = (export / "model.onnx").read_bytes()
    (export / "model.onnx").write_bytes(content[: len(content) // 2])


def with_card(change: Callable[[dict], object], padding: int = 0) -> Callable[[Path], None]:
    def write(export: Path) -> None:
        model = onnx.load(export / "model.onnx")
        (entry,) = [e for e in model.metadata_props if e.key == METADATA_KEY]
        card = json.loads(entry.value)
        change(card)
        entry.value = json.dumps(card) + " " * padding
        onnx.save(model, export / "model.onnx")

    return write


def foreign(export: Path) -> None:
    model = onnx.load(export / "model.onnx")
    del model.metadata_props[:]
    onnx.save(model, export / "model.onnx")


@pytest.mark.parametrize(
    ("damage", "fact"),
    [
        (truncate, "model.onnx"),
        (flip, "sha256"),
        (foreign, "model.onnx"),
        (with_card(lambda card: card.update(schema_version=2)), "update leuda"),
        (with_card(lambda card: card.update(schema_version=0)), "leuda export RUN -o exports/NAME"),
        (with_card(lambda card: card.update(old=1)), "'old'"),
        (with_card(lambda card: None, padding=50_000_000), "1,048,576"),
        (with_card(lambda card: card.update(licence="mine")), "sha256"),
        (lambda export: (export / "card.json").write_text("{}"), "card.json"),
        (lambda export: (export / "model.onnx").unlink(), "model.onnx"),
        (lambda export: (export / "manifest.json").write_text("[]"), "manifest.json"),
    ],
)
def test_a_bad_export_is_one_line_and_exit_code_2(
    export: Path, damage: Callable[[Path], None], fact: str
) -> None:
    damage(export)
    done = leuda_without_torch("verify", export)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert fact in done.stderr


def test_a_model_file_is_exported_on_without_torch(export: Path, tmp_path: Path) -> None:
    out, repository = tmp_path / "exports" / "again", tmp_path / "repository"
    more = ["--trt", "--trt-target", "rtx-ada"] if find_spec("tensorrt_rtx") else []
    source = export / "model.onnx"
    done = leuda_without_torch("export", source, "-o", out, "--triton", repository, "--json", *more)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (out / "model.onnx").read_bytes() == source.read_bytes()
    assert (repository / "phantom-heart" / "config.pbtxt").is_file()
    assert found["parity"] == json.loads((export / "parity.json").read_text())
    assert list(found["engines"]) == (["model.rtx-ada.engine"] if more else [])
    assert leuda_without_torch("verify", out).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        (["--precision", "fp16"], "--precision"),
        (["--trt", "--trt-target", "orin"], "'orin'"),
        (["--dynamic-window"], "--dynamic-window"),
    ],
)
def test_what_a_model_file_cannot_become_is_one_line(
    export: Path, arguments: list[str], fact: str
) -> None:
    before = sorted(path.name for path in export.iterdir())
    done = leuda_without_torch("export", export / "model.onnx", *arguments)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert fact in done.stderr
    assert sorted(path.name for path in export.iterdir()) == before


def test_a_run_needs_torch_and_a_place(tmp_path: Path) -> None:
    done = leuda_without_torch("export", tmp_path, "-o", tmp_path / "out")
    assert done.returncode == 2
    assert "pip install 'leuda[train]'" in done.stderr


def test_a_loose_model_file_needs_a_folder(export: Path, tmp_path: Path) -> None:
    loose = tmp_path / "loose.onnx"
    shutil.copyfile(export / "model.onnx", loose)
    done = leuda_without_torch("export", loose)
    assert done.returncode == 2
    assert "-o exports/NAME" in done.stderr


def test_proving_needs_a_scan(export: Path, tmp_path: Path) -> None:
    done = leuda_without_torch("verify", export, "--prove", tmp_path / "scan.nii.gz")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert str(tmp_path / "scan.nii.gz") in done.stderr
