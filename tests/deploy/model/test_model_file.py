"""A model file is opened once and handed on; `write_model` returns what `open` would."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.engine_files import FileLooks
from typer.testing import CliRunner

from leuda_deploy.cli import app
from leuda_deploy.errors import ModelError
from leuda_deploy.export.import_onnx import package_graph
from leuda_deploy.model.export_folder import MANIFEST_FILE, default_model, write_manifest
from leuda_deploy.model.model_file import ModelFile, write_model

MakeModel = Callable[..., Path]


def test_infer_parses_and_hashes_the_model_file_once(
    make_model: MakeModel, scan_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_model(tmp_path / "model")
    write_manifest(path.parent)
    looks = FileLooks(monkeypatch)
    order = ["infer", scan_file, "--model", path.parent, "-o", tmp_path / "l.nii.gz"]
    done = CliRunner().invoke(app, [*map(str, order), "--threads", "1"])
    assert done.exit_code == 0, done.output
    assert (looks.parsed, looks.hashed(path)) == (1, 1)


def test_what_was_written_is_what_is_opened(make_model: MakeModel, tmp_path: Path) -> None:
    path = make_model(tmp_path)
    opened = ModelFile.open(path)
    assert opened == ModelFile.open(tmp_path)  # a folder stands for the model in it
    assert opened.content == path.read_bytes()
    assert opened.sha256 == hashlib.sha256(opened.content).hexdigest()
    again = write_model(opened.graph(), opened.card, tmp_path / "again.onnx")
    assert again == replace(opened, path=tmp_path / "again.onnx")
    assert ModelFile.open(again.path) == again


def test_the_graph_is_the_callers_own(make_model: MakeModel, tmp_path: Path) -> None:
    model = ModelFile.open(make_model(tmp_path))
    del model.graph().graph.node[:]
    assert len(model.graph().graph.node) == 1
    onnx.checker.check_model(model.graph())


def test_the_manifest_is_that_of_its_export_folder(make_model: MakeModel, tmp_path: Path) -> None:
    path = make_model(tmp_path)
    alone = ModelFile.open(path)
    assert (alone.is_export, alone.manifest) == (False, None)
    written = write_manifest(tmp_path)
    assert ModelFile.open(path).manifest == written
    assert written.files == {path.name: alone.sha256}
    copy = tmp_path / "copy.onnx"
    copy.write_bytes(path.read_bytes())
    assert ModelFile.open(copy).manifest is None  # nothing is built for a file of another name
    (tmp_path / MANIFEST_FILE).write_text("{")
    damaged = ModelFile.open(path)  # it still runs
    with pytest.raises(ModelError):
        _ = damaged.manifest


def test_an_export_before_this_version_is_opened() -> None:
    model = ModelFile.open(default_model())
    assert model.manifest is not None
    assert model.manifest.files["model.onnx"] == model.sha256
    assert {np.float32} == {
        onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).type
        for value in (*model.graph().graph.input, *model.graph().graph.output)
    }


def endless() -> onnx.GraphProto:
    """A branch whose loop never ends."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["goes"]),
            helper.make_node("Identity", ["x"], ["y"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("goes", TensorProto.BOOL, []),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
        ],
    )
    loop = helper.make_node("Loop", ["", "true", "logits"], ["looped"], body=body)
    return helper.make_graph(
        [loop], "branch", [], [helper.make_tensor_value_info("looped", TensorProto.FLOAT, None)]
    )


def test_a_graph_that_may_never_end_is_not_opened(make_model: MakeModel, tmp_path: Path) -> None:
    model = ModelFile.open(make_model(tmp_path))
    graph = model.graph()
    graph.graph.initializer.append(numpy_helper.from_array(np.array(True), "true"))
    branch = endless()
    graph.graph.node.append(
        helper.make_node("If", ["true"], ["scores"], then_branch=branch, else_branch=branch)
    )
    graph.graph.output[0].name = "scores"
    written = write_model(graph, model.card, tmp_path / "endless.onnx")
    with pytest.raises(ModelError, match="Loop") as caught:
        ModelFile.open(written.path)
    assert "\n" not in str(caught.value)
    card = tmp_path / "card.json"
    card.write_text(model.card.to_json())
    with pytest.raises(ModelError, match="Loop"):
        package_graph(written.path, card, tmp_path / "export")
    assert not (tmp_path / "export").exists()
