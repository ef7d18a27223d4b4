"""A model.pt goes on at another place, where no source scan ever was; and what is refused there."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support import tiny
from support.command import leuda_here
from torch import nn

from leuda_deploy.errors import InputError
from leuda_deploy.machine.files import file_sha256
from leuda_deploy.model.refine import AS_PREDICTED, Refine
from leuda_train.cli.train import print_trained
from leuda_train.data.cohort import read_cohort
from leuda_train.data.slices import UNLABELLED
from leuda_train.export.export_run import export_run
from leuda_train.export.first_model import read_first_model
from leuda_train.export.product_file import load_weights
from leuda_train.loop.metrics_log import read_metrics
from leuda_train.objective.volume_labels import label_volumes
from leuda_train.runs.train import aligned_sets, train
from leuda_train.stages.adapt import Adaptation
from leuda_train.stages.drift import Drift, drift
from leuda_train.stages.translated_sets import untranslated

STYLES = {
    "method": "styles",
    "objective": {**tiny.NO_TERMS, "supervised_on": ["source"], "teacher_batchnorm": "ema"},
    "test": {"network": "inter_teacher", "feed": "target", "batchnorm": "feed"},
}


def write_target(root: Path) -> Path:
    """The tiny cohort without its source: two target scans, one test scan."""
    path = tiny.write_tiny_cohort(root)
    for folder in ("mr", "mr_more", "ct_labels"):
        shutil.rmtree(root / folder)
    head, rest = path.read_text().split("[source]")
    lines = rest[rest.index("[target]") :].splitlines()
    kept = [line for line in lines if not line.startswith("upper_bound")]
    path.write_text(head + "\n".join(kept))
    return path


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model.pt of a run, and nothing else of it."""
    folder = tmp_path_factory.mktemp("there")
    cohort = read_cohort(tiny.write_tiny_cohort(folder / "data"))
    train(cohort, tiny.config(**STYLES), folder / "run")
    alone = tmp_path_factory.mktemp("here") / "model.pt"
    (folder / "run" / "model.pt").rename(alone)
    shutil.rmtree(folder)
    return alone


@pytest.mark.slow
def test_a_run_says_which_source_scans_its_teacher_labelled(tmp_path, capsys):
    objective = {**STYLES["objective"], "source_pseudo_share": 0.5}
    config = tiny.config(**{**STYLES, "objective": objective})
    cohort = read_cohort(tiny.write_tiny_cohort(tmp_path / "data"))
    evaluation = train(cohort, config, tmp_path / "run")
    unlabelled = len(cohort.role("source unlabelled"))
    assert unlabelled > 0
    expected = {"learned_from": unlabelled, "of": unlabelled}
    assert evaluation["source_scans_by_teacher"] == expected
    page = (tmp_path / "run" / "report.html").read_text()
    assert f"Of {unlabelled} source scans that nobody labelled" in page
    print_trained(tmp_path / "run", evaluation, as_json=False)
    assert f"also {unlabelled} of {unlabelled} unlabelled" in capsys.readouterr().out


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_target(tmp_path_factory.mktemp("target"))


@pytest.mark.slow
def test_a_model_goes_on_with_target_scans_alone(sent, target, tmp_path):
    out = tmp_path / "run"
    done = leuda_here("adapt", sent, target, "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    evaluation = json.loads(done.stdout)
    assert evaluation == json.loads((out / "evaluation.json").read_text())
    assert (evaluation["method"], evaluation["network"]) == ("source-free", "inter_teacher")
    assert set(evaluation["summary"]) == {"as_predicted", "largest_component", "cleaned_up"}

    # what was read: no source slice, no label but those of the test scan
    (slices,) = (tmp_path / "cache").glob("slices-*")
    assert np.load(slices / "source.npy").size == np.load(slices / "source_labels.npy").size == 0
    assert not (slices / "target_labels.npy").exists()
    scans = json.loads((out / "scans.json").read_text())["scans"]
    assert {scan["role"] for scan in scans} == {"target unlabelled", "target test"}
    rows = [row for row in read_metrics(out / "metrics.jsonl") if row["stage"] == "source-free"]
    assert rows
    assert all(row["L"] == row["L_pseudo"] > 0 for row in rows)
    assert "CT, on the cohort tiny" in (out / "report.html").read_text()

    # what came from the source's labels goes on, and where the weights come from is said
    (before_net, before), (net, facts) = load_weights(sent), load_weights(out / "model.pt")
    for name in ("class_shares", "anatomy", "extents_mm", "recipe", "widths"):
        assert getattr(facts, name) == getattr(before, name), name
    assert before.class_shares[1] == pytest.approx(4 * 6 / (16 * 16), rel=0.2)
    assert facts.steps == before.steps + 12 == 24
    assert facts.config["first_model"] == file_sha256(sent)
    changed = [
        not torch.equal(mine, other)
        for mine, other in zip(net.parameters(), before_net.parameters(), strict=True)
    ]
    assert all(changed)

    # the result is a run like any other
    model, _ = export_run(out, tmp_path / "exports" / "adapted")
    assert model.card.provenance.method == "source-free"
    assert {s.name: s.anatomy for s in model.card.structures} == before.anatomy
    again = leuda_here("adapt", sent, target, "--out", out, "--json")
    assert json.loads(again.stdout) == evaluation
    assert read_first_model(out).facts.steps == 24  # and may go on again
    other = leuda_here("adapt", out, target, "--out", out)
    assert other.returncode == 2
    assert "first_model" in other.stderr


class ByBrightness(nn.Module):
    """Class 1 above a limit, class 2 above twice of it."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        k = (x > self.limit).long() + (x > 2 * self.limit)
        return torch.nn.functional.one_hot(k[:, 0], 4).movedim(-1, 1).float()


def test_drift_is_what_became_of_each_structure():
    images = np.tile(np.linspace(0, 1, 1000, endpoint=False, dtype=np.float32), (70, 1, 1))
    began = torch.from_numpy(np.select([images > 0.6, images > 0.25], [2, 1]).astype(np.uint8))
    began[:, :, 900:] = UNLABELLED
    first = ByBrightness(0.25)  # finds 1 up to 0.5, and 2 from there
    found = drift(first, began, ByBrightness(0.3), images, tiny.CPU)
    assert sorted(found) == [1, 2]  # nobody finds class 3
    assert found[1].kept == pytest.approx(0.3 / 0.35, abs=0.01)
    assert found[1].growth == pytest.approx(0.3 / 0.25, abs=0.01)
    assert found[2].kept == pytest.approx(1.0, abs=0.01)
    assert found[2].growth == pytest.approx(0.4 / 0.5, abs=0.01)
    assert not any(one.too_far for one in found.values())
    found = drift(first, began, ByBrightness(0.4), images, tiny.CPU)
    assert found[2].kept == pytest.approx(0.1 / 0.3, abs=0.01)
    assert found[2].too_far
    assert not found[1].too_far
    found = drift(first, began, ByBrightness(2.0), images, tiny.CPU)
    assert all(one.too_far and one.growth == one.kept == 0 for one in found.values())
    found = drift(ByBrightness(0.45), began, first, images, tiny.CPU)
    assert found[2].kept == pytest.approx(1.0)
    assert found[2].growth == pytest.approx(5, abs=0.1)
    assert found[2].too_far


@pytest.mark.slow
def test_a_model_that_lost_a_structure_is_not_kept(sent, target, tmp_path, monkeypatch, capsys):
    lost = {1: Drift(kept=0.9, growth=1.1), 2: Drift(kept=0.3, growth=0.2)}
    monkeypatch.setattr("leuda_train.stages.adapt.drift", lambda *_: lost)
    first = read_first_model(sent)
    config = first.config(None, "source-free", device="cpu", precision="fp32")
    evaluation = train(read_cohort(target), config, tmp_path / "run", first=first)
    name = [*first.facts.structures][1]
    assert evaluation["lost"] == [name]
    assert evaluation["drift"][name] == {"kept": 0.3, "growth": 0.2}
    assert evaluation["network"] == "first_model"
    assert {row["network"] for row in evaluation["networks"]} >= {"first_model", "inter_teacher"}
    before, (net, facts) = first.network, load_weights(tmp_path / "run" / "model.pt")
    assert facts.steps == first.facts.steps
    for one, other in zip(net.parameters(), before.parameters(), strict=True):
        assert torch.equal(one, other)
    assert f"{name} got lost" in (tmp_path / "run" / "report.html").read_text()
    print_trained(tmp_path / "run", evaluation, as_json=False)
    assert f"lost     {name}: 30% of its first labels" in capsys.readouterr().out


def beginning(
    sent: Path, target: Path, refine: Refine = AS_PREDICTED, **objective: object
) -> tuple[Adaptation, object]:
    from leuda_train.config.load import make_recipe
    from leuda_train.data.slices import load_slices

    first, cohort = read_first_model(sent), read_cohort(target)
    first = replace(first, facts=first.facts.model_copy(update={"refine": refine}))
    config = first.config(None, "source-free", device="cpu", precision="fp32")
    terms = config.objective.model_copy(update=objective)
    config = config.model_copy(update={"objective": terms})
    recipe = make_recipe(config, cohort.spec.slices.axis, cohort.spec.slices.spacing_mm)
    slices = load_slices(cohort, recipe, target.parent / "cache")
    sets = aligned_sets(slices, untranslated(slices), 3, config, first)
    return Adaptation(sets, config, tiny.CPU, first=first), first


@pytest.mark.slow
@pytest.mark.parametrize("edges", [False, True])
@pytest.mark.parametrize("renewed_from", [2, "never"])
def test_the_first_models_labels_stand(sent, target, edges, renewed_from):
    refine = Refine(edges=edges)
    made, first = beginning(
        sent, target, refine, pseudo_renewed_from_epoch=renewed_from, pseudo_every_epochs=1
    )
    expected = label_volumes(
        first.network,
        made.labels.sets.images["target"],
        made.labels.sets.target_scans,
        torch.tensor(first.class_shares),
        strength=made.config.objective.pseudo_prior,
        floor=made.config.objective.pseudo_confidence,
        refine=edges,  # as the first model says
        hardware=tiny.CPU,
    )
    seen = []
    for step in range(9):
        made.step(step)
        seen.append(made.labels.target)
    assert torch.equal(seen[0], expected)
    assert all(labels is seen[0] for labels in seen[:6])
    assert (seen[6] is seen[0]) == (renewed_from == "never")
    assert seen[6] is seen[8]


@pytest.mark.slow
def test_student_and_teacher_begin_as_the_first_model_and_the_teacher_stays_near(sent, target):
    made, first = beginning(sent, target)
    for net in (made.nets.student, made.nets.inter_teacher):
        for mine, other in zip(net.parameters(), first.network.parameters(), strict=True):
            assert torch.equal(mine, other)
    made.step(0)
    # an average that goes on, not one that begins anew with the student of the first step
    kept = 1.0 - 1.0 / (first.facts.steps + 1.0)
    for teacher, student, other in zip(
        made.nets.inter_teacher.parameters(),
        made.nets.student.parameters(),
        first.network.parameters(),
        strict=True,
    ):
        torch.testing.assert_close(teacher, kept * other + (1.0 - kept) * student)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("facts", "named"),
    [
        ({"feed": "target_as_source"}, "reads the target itself"),
        ({"class_shares": None}, "how frequent classes are"),
    ],
)
def test_a_model_that_cannot_go_on_says_why(sent, tmp_path, facts, named):
    state = torch.load(sent, weights_only=True)
    state["facts"] = json.dumps({**json.loads(state["facts"]), **facts})
    if facts.get("feed"):
        generator = tiny.generator().state_dict()
        state["weights"] |= {f"to_source.{name}": value for name, value in generator.items()}
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(InputError, match=named) as caught:
        read_first_model(tmp_path)
    assert "\n" not in str(caught.value)


def test_an_export_has_no_weights_to_train(tmp_path):
    (tmp_path / "model.onnx").touch()
    for path in (tmp_path, tmp_path / "model.onnx"):
        with pytest.raises(InputError, match="ONNX"):
            read_first_model(path)
    with pytest.raises(InputError, match="no finished run"):
        read_first_model(tmp_path / "nowhere")


def test_what_is_no_model_is_one_line(tmp_path):
    torch.save({"weights": {}}, tmp_path / "model.pt")
    done = leuda_here("adapt", tmp_path, "cohort.toml", "--out", tmp_path / "run")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "is not a model.pt" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("a = 10\nb = 20", "b = 10\na = 20", "the model's are a, b"),
        ('axis = "superior"', 'axis = "right"', "axis = 'superior'"),
        ('"native"', "[1.0, 1.0]", "spacing_mm = 'native'"),
        (
            "[target]",
            '[source]\nmodality = "MR"\nlabelled = { images = "ct_test/*_image.nii.gz", '
            'labels = "ct_test/*_label.nii.gz" }\n[target]',
            r"has a \[source\]",
        ),
    ],
)
def test_a_cohort_that_does_not_fit_the_model_is_refused(sent, tmp_path, old, new, named):
    path = write_target(tmp_path / "data")
    text = path.read_text().replace(old, new)
    assert text != path.read_text()
    path.write_text(re.sub("(?m)^test = .*$", "", text))
    first = read_first_model(sent)
    config = first.config(None, "source-free")
    with pytest.raises(InputError, match=named) as caught:
        train(read_cohort(path), config, tmp_path / "run", first=first)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_without_a_source_there_is_nothing_to_train_on(target, tmp_path):
    with pytest.raises(InputError, match=r"no \[source\]"):
        train(read_cohort(target), tiny.config(), tmp_path / "run")
    alone = tiny.config(
        objective={**tiny.NO_TERMS, "supervised_on": [], "lambda_pseudo": 1.0},
        test={"network": "student", "feed": "target"},
    )
    with pytest.raises(InputError, match="leuda adapt"):
        train(read_cohort(target), alone, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_method_with_labels_is_none_for_adapt(sent, target, tmp_path):
    first = read_first_model(sent)
    with pytest.raises(InputError, match="supervised_on"):
        train(read_cohort(target), first.config(None, "source-only"), tmp_path / "run", first=first)
