"""The whole training half, end to end and tiny: train, evaluate, export, and start again."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from support import tiny
from support.states import assert_bit_equal

from leuda_deploy.engines.onnx_runtime import OnnxEngine
from leuda_deploy.errors import InputError, ParityError, TrainingError
from leuda_deploy.inference.segment import segment
from leuda_deploy.machine.progress import show_nothing
from leuda_deploy.model.model_file import ModelFile
from leuda_deploy.scans.stack import Stack
from leuda_deploy.scans.volume import read_volume
from leuda_train.config.schema import TrainConfig
from leuda_train.data.cohort import read_cohort
from leuda_train.data.phantom.phantom_cohort import write_cohort
from leuda_train.export import proven as export_module
from leuda_train.export.export_run import export_run
from leuda_train.export.product_file import load_product
from leuda_train.loop.metrics_log import read_metrics
from leuda_train.networks.product import TorchEngine
from leuda_train.runs import train as training
from leuda_train.runs.train import train
from leuda_train.stages.memory import need_of

UPPER_BOUND = "ct_upper_bound"


def small_config(method: str = "le-uda", **more: object) -> TrainConfig:
    sections: dict[str, object] = {
        "method": method,
        "recipe": {"window": [32, 32]},
        "translation": {"steps": 6},
        "unet": {"widths": [4, 8, 16], "dropout": [0.0, 0.1, 0.1]},
        "adversarial": {"levels": [2, 1]},
    }
    if method != "le-uda":
        on = "source" if method == "source-only" else "target"
        sections["objective"] = {**tiny.NO_TERMS, "supervised_on": [on]}
        sections["test"] = {"network": "student", "feed": "target"}
    return tiny.config(**sections, **more)


def do_train(cohort: Path, out: Path, config: TrainConfig, show=show_nothing) -> dict:
    return train(read_cohort(cohort), config, out, show=show)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two labelled and one unlabelled MR phantom, one CT phantom and one to test on."""
    folder = tmp_path_factory.mktemp("phantoms")
    counts = {"source_labelled": 2, "source_unlabelled": 1, "target_unlabelled": 1}
    path = write_cohort(folder, **counts, target_test=1)
    text = path.read_text().replace("spacing_mm = [2.5, 2.5]", "spacing_mm = [5.0, 5.0]")
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def finished(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of LE-UDA; the target's labels do not exist while it is made."""
    folder = tmp_path_factory.mktemp("without target labels")
    blind = folder / "cohort"
    shutil.copytree(cohort.parent, blind, ignore=shutil.ignore_patterns(UPPER_BOUND))
    lines = (blind / "cohort.toml").read_text().splitlines()
    kept = [line for line in lines if not line.startswith("upper_bound")]
    assert len(kept) == len(lines) - 1
    (blind / "cohort.toml").write_text("\n".join(kept))
    out = folder / "le-uda"
    do_train(blind / "cohort.toml", out, small_config())
    return out


@pytest.mark.slow
def test_le_uda_trains_and_evaluates_where_no_target_label_exists(finished):
    evaluation = json.loads((finished / "evaluation.json").read_text())
    assert evaluation["method"] == "le-uda"
    assert (evaluation["network"], evaluation["feed"]) == ("intra_teacher", "target_as_source")
    assert set(evaluation["summary"]["as_predicted"]["structures"]) == {"MYO", "LAC", "LVC", "AA"}
    assert {path.name for path in finished.iterdir()} == {
        "config.toml",
        "model.pt",
        "windows.pt",
        "metrics.jsonl",
        "predictions",
        "evaluation.json",
        "scans.json",
        "memory.json",
        "report.html",
        "run.png",
        "predictions.png",
    }
    rows = read_metrics(finished / "metrics.jsonl")
    assert [row["step"] for row in rows if row["stage"] == "translation"] == [6]
    history = [row for row in rows if row["stage"] == "le-uda"]
    assert [row["step"] for row in history] == [10, 12]
    assert history[-1]["L_con_intra"] > 0
    assert history[-1]["L_adv_inter"] > 0


@pytest.mark.slow
def test_predictions_lie_on_the_scans_own_grid(finished):
    scan = finished.parent / "cohort" / "ct_test" / "ct_2501_image.nii.gz"
    image = read_volume(scan)
    labels = read_volume(finished / "predictions" / "ct_2501_label.nii.gz")
    assert labels.raw.shape == image.raw.shape
    np.testing.assert_allclose(labels.affine, image.affine, atol=1e-4)


def fails(name: str):
    raise AssertionError(f"stage {name} was entered")


@pytest.mark.slow
def test_a_finished_run_returns_its_evaluation_at_once(finished):
    cohort = finished.parent / "cohort" / "cohort.toml"
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*")}
    again = do_train(cohort, finished, small_config(), show=fails)
    assert again == json.loads((finished / "evaluation.json").read_text())
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*")} == before


@pytest.mark.slow
def test_a_run_folder_refuses_another_config_or_cohort(finished, cohort):
    own = finished.parent / "cohort" / "cohort.toml"
    with pytest.raises(InputError, match=re.escape(str(finished / "config.toml"))):
        do_train(own, finished, small_config(seed=1), show=fails)
    with pytest.raises(InputError, match=re.escape(str(finished / "config.toml"))):
        do_train(cohort, finished, small_config(), show=fails)


@pytest.mark.slow
def test_a_run_folder_from_before_a_key_existed_is_the_same_run(finished):
    path = finished / "config.toml"
    text = path.read_text()
    assert 'batchnorm_over = "batch"' in text
    path.write_text(text.replace('batchnorm_over = "batch"\n', ""))
    do_train(finished.parent / "cohort" / "cohort.toml", finished, small_config(), show=fails)
    path.write_text(text)


@pytest.mark.slow
def test_the_export_agrees_with_pytorch_and_segments(finished, tmp_path):
    out = tmp_path / "exports" / "tiny-heart"
    model, parity = export_run(finished, out, licence="MIT")
    card = model.card
    assert parity.max_abs < 1e-3
    stages = json.loads((out / "parity.json").read_text())["stages"]
    assert stages[-1] == json.loads(json.dumps(parity.as_dict()))
    assert {path.name for path in out.iterdir()} == {
        "model.onnx",
        "card.json",
        "parity.json",
        "manifest.json",
    }
    assert (card.name, card.feed, card.licence) == ("tiny-heart", "target_as_source", "MIT")
    assert list(card.label_names.items()) == [(1, "MYO"), (2, "LAC"), (3, "LVC"), (4, "AA")]
    assert card.provenance.method == "le-uda"
    assert card.provenance.steps == 12
    assert json.loads((out / "card.json").read_text()) == card.model_dump(mode="json")

    # the model file alone reproduces what the run predicted with PyTorch
    engine = OnnxEngine(ModelFile.open(out), threads=1)
    assert engine.card == card
    scan = read_volume(finished.parent / "cohort" / "ct_test" / "ct_2501_image.nii.gz")
    found = segment(Stack(scan, engine.card.recipe), engine).labels
    expected = read_volume(finished / "predictions" / "ct_2501_label.nii.gz").raw
    assert found.shape == expected.shape
    assert (found == expected).mean() > 0.999


class Swapped(torch.nn.Module):
    """A product with two output channels exchanged."""

    def __init__(self, product: torch.nn.Module) -> None:
        super().__init__()
        self.product = product

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        logits = self.product(windows)
        return torch.cat([logits[:, :1], logits[:, 2:3], logits[:, 1:2], logits[:, 3:]], dim=1)


@pytest.mark.slow
def test_an_export_with_swapped_classes_is_refused_and_nothing_is_kept(
    finished, tmp_path, monkeypatch
):
    honest = export_module.to_onnx
    swapped = lambda module, card, path: honest(Swapped(module), card, path)
    monkeypatch.setattr(export_module, "to_onnx", swapped)
    with pytest.raises(ParityError, match="PyTorch fp32"):
        export_run(finished, tmp_path / "exports" / "bad")
    assert list((tmp_path / "exports").iterdir()) == []


@pytest.mark.slow
def test_the_product_contains_the_generator_and_the_chosen_network(finished):
    product, facts, families = load_product(finished)
    assert set(families) == {"target", "source_as_target", "target_cycled"}
    samples = families["target"]
    assert facts.feed == "target_as_source"
    assert facts.domain is not None
    assert facts.extents_mm is not None  # of the labelled source scan
    assert {*facts.extents_mm} <= {*facts.structures}
    assert facts.domain.scans == 1  # the unlabelled target scan; that of the test is not read
    assert samples.shape[1:] == (32, 32)
    windows = samples[:2, None]
    with torch.no_grad():
        translated = product.to_source(torch.from_numpy(windows))
        expected, _ = product.network(translated)
    found = TorchEngine(product, tiny.CPU)(windows)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


@pytest.mark.slow
def test_the_supervised_upper_bound_reads_target_labels_and_source_only_does_not(
    cohort, tmp_path, monkeypatch
):
    seen = {}
    honest = training.adapt

    def look(sets, config, *rest):
        seen[config.method] = sets
        return honest(sets, config, *rest)

    monkeypatch.setattr(training, "adapt", look)
    for method in ("supervised", "source-only"):
        do_train(cohort, tmp_path / method, small_config(method))
        assert (tmp_path / method / "run.png").is_file()
        stages = {row["stage"] for row in read_metrics(tmp_path / method / "metrics.jsonl")}
        assert stages == {method}
    target = seen["supervised"]
    assert target.labels.shape == target.images["target"].shape
    assert set(np.unique(target.labels)) == {0, 1, 2, 3, 4}
    assert target.labelled_rows.tolist() == list(range(len(target.labels)))
    source = seen["source-only"]
    assert source.labels.shape == source.images["source"].shape
    stored = {path.parent.name for path in (tmp_path / "cache").rglob("target_labels.npy")}
    assert len(stored) == 1  # the supervised run's own slices


@pytest.mark.slow
def test_what_a_run_takes_of_memory_stands_beside_what_was_predicted(finished):
    stages = json.loads((finished / "memory.json").read_text())["stages"]
    assert list(stages) == ["translation", "le-uda"]
    for found in stages.values():
        assert found["predicted"]["recomputed"] == 0
        assert found["measured"] is None or found["measured"] > 0
    assert "predicted before it began" in (finished / "report.html").read_text()


@pytest.mark.slow
def test_a_run_in_less_memory_ends_with_the_same_weights(cohort, tmp_path):
    plain = small_config("source-only")
    full = need_of("source-only", plain, 5, tiny.CPU)
    tight = plain.model_copy(update={"max_memory": str(full.peak - 1)})
    weights = []
    for name, config in (("plain", plain), ("tight", tight)):
        out = tmp_path / name
        do_train(cohort, out, config)
        memory = json.loads((out / "memory.json").read_text())
        assert memory["stages"]["source-only"]["predicted"]["recomputed"] == (name == "tight")
        weights.append(load_product(out)[0].state_dict())
    assert_bit_equal(*weights)


def test_the_supervised_method_asks_for_labels_before_it_claims_the_folder(tmp_path):
    cohort = tiny.write_tiny_cohort(tmp_path / "data")
    text = cohort.read_text().splitlines()
    cohort.write_text("\n".join(line for line in text if not line.startswith("upper_bound")))
    config = small_config("supervised")
    with pytest.raises(InputError, match="upper_bound"):
        do_train(cohort, tmp_path / "out", config)
    assert not (tmp_path / "out").exists()


def test_a_folder_without_a_finished_run_cannot_be_exported(tmp_path):
    with pytest.raises(TrainingError, match=r"model\.pt"):
        export_run(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_cohort_without_test_scans_is_trained_and_exported_without_scores(tmp_path):
    cohort = tiny.write_tiny_cohort(tmp_path / "data")
    lines = cohort.read_text().splitlines()
    cohort.write_text("\n".join(line for line in lines if not line.startswith("test =")))
    evaluation = do_train(cohort, tmp_path / "run", small_config("source-only"))
    assert "summary" not in evaluation
    model, _ = export_run(tmp_path / "run", tmp_path / "model")
    card = model.card
    assert card.provenance.test_dice is None
    assert card.feed == "target"
    assert len(read_cohort(cohort).role("target test")) == 0
