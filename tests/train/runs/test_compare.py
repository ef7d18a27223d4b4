"""Distillation and comparison, end to end and tiny."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import tomli_w
from support import tiny

import leuda_train
from leuda_deploy.errors import InputError
from leuda_train.data.cohort import read_cohort
from leuda_train.export.product_file import load_product
from leuda_train.runs.compare import Comparison, compare, summarise_seeds
from leuda_train.runs.train import train

pytestmark = pytest.mark.slow
METHODS = Path(leuda_train.__file__).parent / "methods"


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_tiny_cohort(tmp_path_factory.mktemp("cohort"))


def test_a_distilled_network_is_narrow_reads_the_target_and_has_an_oracle(cohort, tmp_path):
    config = tiny.config(unet={"widths": [16, 32], "dropout": [0.0, 0.0]})
    distil = {"width": 0.25, "share": 1 / 3, "learning_rate": 0.002}
    config = type(config).model_validate({**config.model_dump(), "distil": distil})
    found = train(read_cohort(cohort), config, tmp_path / "run")
    product, facts, _ = load_product(tmp_path / "run")
    assert (facts.network, facts.feed, facts.widths) == ("distilled", "target", (4, 8))
    assert facts.steps == 4 * 3 + 4  # of stage 2, of stage 3
    assert found["epoch"] is found["label_free_score"] is None  # those of a teacher
    assert product.to_source is None
    assert found["network"] == "distilled"
    networks = ("distilled", "student", "intra_teacher", "inter_teacher")
    feeds = ("target", "target_as_source")
    every = {f"{network} on {feed}" for network in networks for feed in feeds}
    assert {"chosen", *every} == set(found["oracle"]["all"])
    rows = {f"{row['network']} on {row['feed']}": row for row in found["networks"]}
    assert set(rows) == every
    assert rows["distilled on target"]["dice"] == found["oracle"]["all"]["chosen"]
    assert set(rows["student on target"]["structures"]) == {"a", "b"}
    assert found["ranking"]["networks"]["n"] == len(every)
    assert found["oracle"]["dice"] >= found["oracle"]["all"]["chosen"]
    assert not (tmp_path / "run" / "oracle").exists()


def test_a_run_that_chooses_says_how_well_its_score_ranks_networks_and_epochs(cohort, tmp_path):
    test = {"network": "auto", "select": "label-free", "select_epochs": 2, "rank_epochs": True}
    found = train(read_cohort(cohort), tiny.config(test=test), tmp_path / "run")
    assert found["ranking"]["networks"]["n"] == len(found["networks"]) == 3 * 2
    assert found["ranking"]["epochs"]["n"] == 4 * 2  # candidates, looks
    assert [row["epoch"] for row in found["label_free_scores"]] == [2, 4]
    assert all(row["label_free_score"] is not None for row in found["networks"])
    assert load_product(tmp_path / "run")[1].feed == found["feed"]


def test_fewer_labelled_scans_are_another_cohort(cohort):
    whole = read_cohort(cohort)
    fewer = whole.with_labelled(1)
    assert [scan.subject for scan in fewer.role("source labelled")] == ["m1"]
    assert {scan.subject for scan in fewer.role("source unlabelled")} == {"m2", "m3"}
    assert all(scan.label is None for scan in fewer.role("source unlabelled"))
    assert fewer.sha256 != whole.sha256
    assert whole.with_labelled(2) == whole
    with pytest.raises(InputError, match=r"\b3\b.*\b2\b"):
        whole.with_labelled(3)


def test_compare_runs_everything_once_and_writes_one_table(cohort, tmp_path):
    config = tmp_path / "tiny.toml"
    content = tiny.content()
    del content["method"], content["device"], content["precision"]
    config.write_text(tomli_w.dumps(content))
    mine = tmp_path / "mine.toml"
    mine.write_text(f"# my own\n{(METHODS / 'source-only.toml').read_text()}")
    asked = Comparison(
        methods=[str(mine), "le-uda"],
        labelled=[1, None],
        seeds=2,
        config=str(config),
        overrides={"device": "cpu", "precision": "fp32"},
    )
    whole = read_cohort(cohort)
    found = compare(whole, tmp_path / "out", asked)
    assert [(row["method"], row["labelled"], row["seeds"]) for row in found["rows"]] == [
        ("mine", 1, 2),
        ("le-uda", 1, 2),
        ("mine", "all", 2),
        ("le-uda", "all", 2),
    ]
    # one a seed, however many scans are labelled
    assert len(list((tmp_path / "out" / "cache").glob("translation-*"))) == 2
    assert (found["cohort"], found["config"]) == (whole.spec.name, "tiny")
    assert len(list((tmp_path / "out").glob("*-seed*"))) == 8
    assert json.loads((tmp_path / "out" / "comparison.json").read_text()) == found
    with (tmp_path / "out" / "comparison.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 4
    for row in found["rows"]:
        places = [(n["network"], n["feed"], n["product"]) for n in row["networks"]]
        assert ("intra_teacher", "target", 2 if row["method"] == "mine" else 0) in places
        # a generator is there where the method needs one
        feeds = {feed for _, feed, _ in places}
        assert ("target_as_source" in feeds) == (row["method"] == "le-uda")
    assert "mine" in (tmp_path / "out" / "comparison.txt").read_text()
    assert (tmp_path / "out" / "comparison.png").read_bytes().startswith(b"\x89PNG")

    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*-seed*/evaluation.json")}
    assert compare(whole, tmp_path / "out", asked) == found
    assert {p: p.stat().st_mtime_ns for p in times} == times


def test_a_run_that_fails_stops_no_other_and_is_tried_again(cohort, tmp_path):
    config = tmp_path / "tiny.toml"
    content = tiny.content()
    del content["method"], content["device"], content["precision"]
    config.write_text(tomli_w.dumps(content))
    asked = Comparison(
        methods=["source-only"], seeds=2, config=str(config), overrides={"precision": "fp32"}
    )
    blocked = tmp_path / "out" / "source-only-labelledall-seed0"
    blocked.parent.mkdir()
    blocked.write_text("a file where the run's folder goes")
    found = compare(read_cohort(cohort), tmp_path / "out", asked)
    assert set(found["failed"]) == {blocked.name}
    assert [row["seeds"] for row in found["rows"]] == [1]
    blocked.unlink()
    found = compare(read_cohort(cohort), tmp_path / "out", asked)
    assert found["failed"] == {}
    assert [row["seeds"] for row in found["rows"]] == [2]


@pytest.mark.parametrize(
    ("methods", "labelled", "missing", "wrong"),
    [
        (["source-only", "le-uds"], None, "", "'le-uds'"),
        (["source-only"], 3, "", r"\b3\b.*\b2\b"),
        (["source-only"], None, "test =", r"\[target\] test"),
        (
            ["source-only", "supervised"],
            None,
            "upper_bound",
            "upper_bound",
        ),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_runs(
    cohort, tmp_path, methods, labelled, missing, wrong
):
    lines = cohort.read_text().splitlines()
    asked = cohort.with_name(f"{tmp_path.name}.toml")  # beside the scans
    asked.write_text("\n".join(line for line in lines if not missing or missing not in line))
    wanted = Comparison(methods=methods, labelled=[None, labelled], seeds=1, config="demo")
    with pytest.raises(InputError, match=wrong):
        compare(read_cohort(asked), tmp_path / "out", wanted)
    assert not (tmp_path / "out").exists()


def test_a_structure_that_no_test_scan_has_is_left_out_of_the_means():
    """Its Dice is None where no scan predicts it either."""

    def evaluation(dice: float | None) -> dict[str, object]:
        summary = {
            "structures": {"a": {"dice": dice}, "b": {"dice": 0.5}},
            "mean": {"dice": 0.5, "assd_mm": None, "n_missing_distance": 1},
        }
        return {
            "network": "student",
            "seconds": 60.0,
            "hardware": "CPU",
            "summary": {"as_predicted": summary, "largest_component": summary},
        }

    row = summarise_seeds("mine", None, [evaluation(None), evaluation(0.8)])
    assert row["as_predicted.structures"] == {"a": 0.8, "b": 0.5}
    assert (row["as_predicted.dice"], row["as_predicted.assd_mm_std"]) == (0.5, None)
    row = summarise_seeds("mine", None, [evaluation(None)])
    assert row["as_predicted.structures"] == {"a": None, "b": 0.5}
    assert row["as_predicted.dice_std"] is None  # of one seed
