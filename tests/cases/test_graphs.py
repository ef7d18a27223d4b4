"""Cases of networks from elsewhere, their cards, and a cache that cannot be written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from support.command import leuda_here
from support.makers import make_card, random_network

from leuda_deploy.errors import InputError, ModelError
from leuda_deploy.export.import_onnx import package_graph
from leuda_deploy.model.export_folder import default_model
from leuda_deploy.model.model_file import ModelFile


def package(folder: Path, graph: onnx.ModelProto, card: str | None = None) -> ModelFile:
    onnx.save(graph, folder / "net.onnx")
    (folder / "card.json").write_text(card or make_card().to_json())
    return package_graph(folder / "net.onnx", folder / "card.json", folder / "out")


def noisy() -> onnx.ModelProto:
    """Dropout that is alive."""
    model = random_network(1, 4, 3)
    model.graph.node[-1].output[0] = "steady"
    model.graph.node.append(helper.make_node("RandomNormalLike", ["steady"], ["noise"]))
    model.graph.node.append(helper.make_node("Add", ["steady", "noise"], ["logits"]))
    return model


def mixing() -> onnx.ModelProto:
    """Less the mean over the batch."""
    model = random_network(1, 4, 3)
    model.graph.node[-1].output[0] = "own"
    model.graph.initializer.append(helper.make_tensor("axes", TensorProto.INT64, [1], [0]))
    model.graph.node.append(helper.make_node("ReduceMean", ["own", "axes"], ["mean"]))
    model.graph.node.append(helper.make_node("Sub", ["own", "mean"], ["logits"]))
    return model


def test_a_graph_that_is_steady_is_taken(tmp_path: Path) -> None:
    assert package(tmp_path, random_network(1, 4, 3)).path.is_file()


@pytest.mark.parametrize("make", [noisy, mixing])
def test_scores_that_depend_on_the_run_or_the_company_are_refused(tmp_path: Path, make) -> None:
    """Row 20."""
    with pytest.raises(ModelError):
        package(tmp_path, make())
    assert not (tmp_path / "out").exists()


def test_a_card_with_another_models_facts_is_refused(tmp_path: Path) -> None:
    """Row 21."""
    phantom = ModelFile.open(default_model()).card
    card = make_card().model_copy(update={"domain": phantom.domain})
    with pytest.raises(InputError, match="domain"):
        package(tmp_path, random_network(1, 4, 3), card.to_json())
    assert not (tmp_path / "out").exists()


def test_a_first_card_is_taken(tmp_path: Path) -> None:
    """Row 21."""
    onnx.save(random_network(1, 4, 3), tmp_path / "net.onnx")
    made = leuda_here(
        "card", "init", tmp_path / "net.onnx", "-o", tmp_path / "first.json", "--modality", "CT",
        "--structures", "liver,spleen", "--axis", "superior", "--spacing", "native",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    text = "\ufeff" + (tmp_path / "first.json").read_text()  # row 29: as some editors write it
    assert package(tmp_path, random_network(1, 4, 3), text).card.domain is None


def test_a_cache_that_cannot_be_written_stops_no_work(
    tmp_path: Path, scan_file: Path, make_model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 22."""
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("LEUDA_CACHE", str(tmp_path / "file" / "cache"))
    model, out = make_model(tmp_path / "model", name="never tried"), tmp_path / "l.nii.gz"
    done = leuda_here("infer", scan_file, "--model", model, "-o", out, "--no-overlay")
    assert done.returncode == 0
    assert "LEUDA_CACHE" in done.stderr
    assert np.asarray(out.stat().st_size) > 0
