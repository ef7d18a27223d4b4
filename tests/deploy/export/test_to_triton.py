"""The model repository is what Triton's own protobuf schema asks for."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from support.makers import MakeCard, MakeModel

from leuda_deploy.errors import InputError
from leuda_deploy.export.to_triton import to_triton
from leuda_deploy.model.card import GraphOptions, parse_card
from leuda_deploy.model.model_file import ModelFile


def read_config(folder: Path) -> Any:
    """config.pbtxt through the schema that the server's client package publishes."""
    package = importlib.util.find_spec("tritonclient")
    if package is None or not package.submodule_search_locations:
        pytest.skip("tritonclient, which has the schema, is not installed (leuda[dev])")
    # by its path: the package around it needs grpc, which the schema does not
    source = Path(package.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("triton_model_config", source)
    assert spec is not None
    assert spec.loader is not None
    schema = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(schema)
    return text_format.Parse((folder / "config.pbtxt").read_text(), schema.ModelConfig())


def test_the_repository_serves_the_model_with_its_card(
    tmp_path: Path, make_model: MakeModel
) -> None:
    model = make_model(tmp_path / "export", licence='ours "and" theirs\n\u00e9 \\')
    folder = to_triton(ModelFile.open(tmp_path / "export"), tmp_path / "repository", batch=16)
    assert folder == tmp_path / "repository" / "thresholds"
    assert (folder / "1" / "model.onnx").read_bytes() == model.read_bytes()
    config = read_config(folder)
    assert (config.name, config.backend, config.max_batch_size) == ("thresholds", "onnxruntime", 16)
    ((entry,), (scores,)) = config.input, config.output
    assert (entry.name, list(entry.dims), entry.data_type) == ("windows", [1, 16, 16], 11)  # FP32
    assert (scores.name, list(scores.dims), scores.data_type) == ("logits", [3, 16, 16], 11)
    assert config.HasField("dynamic_batching")
    text = config.parameters["leuda.card"].string_value
    assert parse_card(text, "config.pbtxt") == ModelFile.open(model).card


def test_an_open_window_is_open_in_the_server(tmp_path: Path, make_model: MakeModel) -> None:
    make_model(tmp_path / "export", options=GraphOptions(dynamic_window=True, window_multiple=8))
    config = read_config(to_triton(ModelFile.open(tmp_path / "export"), tmp_path / "repository"))
    assert list(config.input[0].dims) == [1, -1, -1]


def test_writing_again_replaces_and_foreign_folders_stay(
    tmp_path: Path, make_model: MakeModel, make_card: MakeCard
) -> None:
    make_model(tmp_path / "export")
    to_triton(ModelFile.open(tmp_path / "export"), tmp_path / "repository")
    folder = to_triton(ModelFile.open(tmp_path / "export"), tmp_path / "repository")
    (folder / "1" / "model.onnx").unlink()
    with pytest.raises(InputError, match="thresholds"):
        to_triton(ModelFile.open(tmp_path / "export"), tmp_path / "repository")
    make_model(tmp_path / "nasty", name="../up")
    with pytest.raises(InputError, match=r"'\.\./up'"):
        to_triton(ModelFile.open(tmp_path / "nasty"), tmp_path / "repository")
