"""`leuda card init`: a card says what the graph says and what is asked for, and is then taken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.command import leuda_here
from support.makers import random_network

from leuda_deploy.errors import InputError, ModelError
from leuda_deploy.model.card import parse_card
from leuda_deploy.model.model_file import ModelFile
from leuda_train.export.elsewhere.card_of_graph import facts_of

SAID = ("--modality", "CT", "--structures", "liver, spleen", "--axis", "superior")


def convolution(sides: list[int | str | None], *, softmax: bool = False) -> onnx.ModelProto:
    """(B, 1, *sides) -> (B, 3, *sides), one value a class."""
    weight = np.array([0, 1, 2], dtype=np.float32).reshape(3, 1, *(1 for _ in sides))
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", count, *sides])
        for name, count in (("windows", 1), ("scores", 3))
    ]
    last = "logits" if softmax else "scores"
    nodes = [helper.make_node("Conv", ["windows", "weight"], [last])]
    if softmax:
        nodes.append(helper.make_node("Softmax", ["logits"], ["scores"], axis=1))
    tensors = [numpy_helper.from_array(weight, "weight")]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "net.onnx"
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    ("model", "window", "output", "classes"),
    [
        (random_network(1, 4, 3), (16, 16), "logits", 3),
        (convolution([32, 48]), (32, 48), "logits", 3),
        (convolution([8, 32, 48], softmax=True), (8, 32, 48), "probabilities", 3),
    ],
)
def test_the_graph_says_its_window_classes_and_what_its_scores_are(
    model, window, output, classes, tmp_path
):
    facts = facts_of(saved(model, tmp_path))
    assert (facts.window, facts.output, facts.scores) == (window, output, classes)
    assert facts.precision == "fp32"
    assert facts.opset == model.opset_import[0].version


def test_a_graph_of_any_window_needs_one(tmp_path):
    path = saved(convolution(["h", "w"]), tmp_path)
    with pytest.raises(InputError, match="--window ROWS,COLUMNS"):
        facts_of(path)
    assert facts_of(path, (24, 40)).window == (24, 40)
    with pytest.raises(InputError, match=r"--window \(8, 24, 40\)"):
        facts_of(path, (8, 24, 40))


def two_channels(model: onnx.ModelProto) -> None:
    for value in (model.graph.input[0],):
        value.type.tensor_type.shape.dim[1].dim_value = 2
    weight = model.graph.initializer[0]
    weight.CopyFrom(numpy_helper.from_array(np.ones((3, 2, 1, 1), np.float32), "weight"))


def one_class(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 1
    weight = model.graph.initializer[0]
    weight.CopyFrom(numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), "weight"))


def two_outputs(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Identity", ["scores"], ["more"]))
    model.graph.output.append(
        helper.make_tensor_value_info("more", TensorProto.FLOAT, ["batch", 3, 16, 16])
    )


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (two_outputs, "1 inputs and 2 outputs"),
    ],
)
def test_what_leuda_cannot_use_is_said_at_once(change, what, tmp_path):
    model = convolution([16, 16])
    change(model)
    with pytest.raises(ModelError, match=what):
        facts_of(saved(model, tmp_path))


@pytest.mark.parametrize(
    ("change", "seen"), [(two_channels, (2, 3, False)), (one_class, (1, 1, True))]
)
def test_channels_and_a_single_score_are_seen(change, seen, tmp_path):
    model = convolution([16, 16])
    change(model)
    facts = facts_of(saved(model, tmp_path))
    assert (facts.channels, facts.scores, facts.regions) == seen


def test_the_command_writes_a_card_with_which_the_graph_is_taken(tmp_path):
    path, card = saved(convolution([8, 32, 48], softmax=True), tmp_path), tmp_path / "net.json"
    done = leuda_here(
        "card", "init", path, "-o", card, *SAID, "--spacing", "1.5,1", "--slice-spacing", "2",
        "--fixed", "-200,300,50,100", "--licence", "MIT",
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, f"{card}\n"), done.stderr
    made = parse_card(card.read_text(), "net.json")
    assert (made.window, made.depth.spacing_mm, made.recipe.spacing_mm) == (
        (8, 32, 48),
        2.0,
        (1.5, 1.0),
    )
    assert made.label_names == {1: "liver", 2: "spleen"}
    assert (made.recipe.fixed.low, made.recipe.fixed.scale) == (-200, 100)
    done = leuda_here("export", path, "--card", card, "-o", tmp_path / "mine")
    assert done.returncode == 0, done.stderr
    assert ModelFile.open(tmp_path / "mine").card.probabilities
    again = leuda_here("card", "init", path, "-o", card, *SAID, "--spacing", "native")
    assert again.returncode == 2
    assert str(card) in again.stderr


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ((), "--modality --structures --axis --spacing"),
        ((*SAID, "--spacing", "big"), "--spacing big"),
        ((*SAID, "--spacing", "nan"), "--spacing nan"),
        ((*SAID, "--spacing", "1", "--window", "inf,16"), "--window inf,16"),
        ((*SAID, "--spacing", "1", "--fixed", "0,inf,0,1"), "--fixed 0,inf,0,1"),
        ((*SAID, "--spacing", "1", "--clip", "98,2"), "98"),
        ((*SAID, "--spacing", "1", "--fixed", "3,2,0,1"), "LOW"),
        ((*SAID[:2], "--structures", "liver", *SAID[4:], "--spacing", "1"), "2 structures"),
    ],
)
def test_what_is_missing_or_wrong_is_one_line_and_nothing_is_written(options, what, tmp_path):
    path, card = saved(convolution([16, 16]), tmp_path), tmp_path / "card.json"
    done = leuda_here("card", "init", path, "-o", card, *options)
    assert done.returncode == 2
    assert what in done.stderr
    assert not card.exists()
