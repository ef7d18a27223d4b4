"""Pages of runs, comparisons and exports: whole, without another file, and true to the folder."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image
from support import tiny
from support.browser import Page, chromium, needs_chromium
from support.command import leuda_here

from leuda_deploy.model.export_folder import write_manifest
from leuda_deploy.scans.nifti import write_labels
from leuda_deploy.scans.volume import read_volume
from leuda_train.config.load import make_recipe
from leuda_train.data.cohort import Cohort, read_cohort
from leuda_train.evaluation.label_files import evaluate_pairs
from leuda_train.loop.run_folder import RunFolder
from leuda_train.pages import live_page
from leuda_train.pages.charts import lines, points
from leuda_train.pages.comparison_page import ScoredRun, paired
from leuda_train.pages.live_page import LivePage
from leuda_train.pages.page import breakable, slices
from leuda_train.pages.run_page import steps_by_stage, write_run_page
from leuda_train.runs.run import write_config, write_scans
from leuda_train.stages.translated_sets import untranslated


class Reader(HTMLParser):
    """What a page holds: its tags with their attributes, and its text."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page.read_text())
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def check_page(page: Path) -> Reader:
    """It stands alone, and says in words what its pictures show."""
    read = Reader(page)
    assert not read.all("script")
    assert not read.all("link")
    for tag, attributes in read.tags:
        for key in ("src", "href"):
            value = attributes.get(key) or ""
            inside = value.startswith(("data:", "#"))
            assert inside or not value, (tag, value[:80])
    assert "url(http" not in page.read_text()
    assert all(image["alt"] for image in read.all("img"))
    pictures = [svg for svg in read.all("svg") if svg.get("role") == "img"]
    assert all(svg["aria-label"] for svg in pictures)
    ids = [attributes["id"] for _, attributes in read.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for link in read.all("a"):
        assert (link["href"] or "").removeprefix("#") in ids
    return read


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return read_cohort(tiny.write_tiny_cohort(tmp_path_factory.mktemp("data")))


def begin(folder: RunFolder, cohort: Cohort, **sections: object) -> None:
    """What a run folder holds while stage 2 trains."""
    config = tiny.config(**sections)
    folder.path.mkdir(parents=True)
    write_config(folder, config, cohort)
    write_scans(folder, config, cohort, make_recipe(config, "superior", "native"))
    rows = [
        {"stage": "le-uda", "step": step, "L": 1 / step, "L_seg": 1 / step, "L_D": 0.0,
         "share/L_con_intra": 0.02, "images_per_s": 7.5}
        for step in (10, 12)
    ]  # fmt: skip
    folder.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))


def finish(folder: RunFolder, cohort: Cohort, labels_of=lambda classes: classes) -> None:
    """Predictions made of the truth, their scores, and a picture."""
    numbers = cohort.spec.class_of_raw("target")
    pairs = {}
    for scan in cohort.role("target test"):
        volume, truth = read_volume(scan.image), read_volume(scan.label).raw
        classes = sum((truth == raw) * k for raw, k in numbers.items()).astype(np.uint8)
        path = folder.predictions / f"{scan.subject}_label.nii.gz"
        write_labels(path, labels_of(classes), volume, {1: "a", 2: "b"})
        pairs[scan.subject] = (path, scan.label)
    evaluation = evaluate_pairs(pairs, structures=cohort.structures, map_true=numbers)
    evaluation |= {
        "method": "le-uda",
        "network": "student",
        "feed": "target",
        "epoch": 4,
        "label_free_score": 0.5,
        "label_free_scores": [{"epoch": 2.0, "student": 0.4}, {"epoch": 4.0, "student": 0.5}],
        "oracle": {"network": "student", "dice": 1.0, "all": {"chosen": 1.0, "student": 1.0}},
        "hardware": "a CPU",
        "seconds": 61.0,
    }
    folder.evaluation.write_text(json.dumps(evaluation))
    Image.new("RGB", (40, 30)).save(folder.run_picture)


def test_the_page_of_a_finished_run(cohort: Cohort, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs" / "first")
    begin(folder, cohort)
    finish(folder, cohort)
    done = leuda_here("report", folder.path, "-o", tmp_path / "r.html")
    assert done.returncode == 0, done.stderr
    read = check_page(tmp_path / "r.html")
    assert len(read.all("img")) == 2  # the image sets, and the one test scan
    table = read.text.split("ASSD, largest")[1].split("Every test scan")[0]
    assert table.count("1.000") == 8  # two structures and mean, twice; two in the chart
    assert "±" not in table  # of one scan
    for said in ("a CPU", "student", "intra", "target, kept for the test", "16 × 18", "2.00"):
        assert said in read.text, said
    assert "lacks" not in read.text
    # a page is replaced, another file is not
    assert leuda_here("report", folder.path, "-o", tmp_path / "r.html").returncode == 0
    (tmp_path / "mine.html").write_text("mine")
    assert leuda_here("report", folder.path, "-o", tmp_path / "mine.html").returncode == 2
    assert (tmp_path / "mine.html").read_text() == "mine"


def test_one_candidate_is_no_choice(cohort: Cohort, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "first")
    begin(folder, cohort)
    finish(folder, cohort)
    charts = {}
    for epochs in (2, 1):
        evaluation = json.loads(folder.evaluation.read_text())
        evaluation["label_free_scores"] = evaluation["label_free_scores"][:epochs]
        folder.evaluation.write_text(json.dumps(evaluation))
        write_run_page(folder.path, tmp_path / "r.html")
        charts[epochs] = check_page(tmp_path / "r.html").text.count("score of each candidate")
    assert charts == {2: 1, 1: 0}


def test_words_of_a_page() -> None:
    assert slices("superior") == "axial, along superior"
    assert slices("array-2") == "along array axis 2"
    assert breakable("LEFT_<KIDNEY") == "LEFT_<wbr>&lt;KIDNEY"


def test_what_a_run_lacks_is_named(cohort: Cohort, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "first")
    begin(folder, cohort)
    finish(folder, cohort)
    evaluation = json.loads(folder.evaluation.read_text())
    del evaluation["oracle"]
    folder.evaluation.write_text(json.dumps(evaluation))
    folder.scans.unlink()
    folder.run_picture.unlink()
    assert leuda_here("report", folder.path, "-o", tmp_path / "r.html").returncode == 0
    read = check_page(tmp_path / "r.html")
    assert read.all("img") == []
    assert "run.png" in read.text
    assert "scans.json" in read.text
    del evaluation["network"]  # as no leuda wrote it
    folder.evaluation.write_text(json.dumps(evaluation))
    damaged = leuda_here("report", folder.path, "-o", tmp_path / "d.html")
    assert damaged.returncode == 2
    assert str(folder.path) in damaged.stderr
    assert not (tmp_path / "d.html").exists()


def test_a_run_under_way_has_a_page_and_a_picture(cohort: Cohort, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "first")
    begin(folder, cohort)
    page = LivePage(
        folder=folder,
        method="le-uda",
        slice_axis="superior",
        translated=untranslated(tiny.make_slices(8)),
    )
    page.next_at = 0.0
    seen = []

    def show(title: str):
        seen.append(title)
        return tiny.stage(title)

    with page.watching(show)("stage 2") as progress:
        progress(1, 12, "")
        first = folder.page.stat().st_mtime_ns
        progress(2, 12, "")  # not again at once
    assert seen == ["stage 2"]
    assert folder.page.stat().st_mtime_ns == first
    assert folder.run_picture.is_file()
    read = check_page(folder.page)
    assert "12 of 12" in read.text
    assert any(meta.get("http-equiv") == "refresh" for meta in read.all("meta"))


def test_a_picture_before_the_first_losses_or_one_that_fails_stops_no_training(
    cohort: Cohort,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = RunFolder(tmp_path / "first")
    begin(folder, cohort)
    folder.metrics.write_text("")
    page = LivePage(
        folder=folder,
        method="le-uda",
        slice_axis="superior",
        translated=untranslated(tiny.make_slices(8)),
    )
    page.write()
    assert folder.run_picture.is_file()
    assert not caplog.messages

    def fails(*_: object) -> None:
        raise ValueError("no font")

    monkeypatch.setattr(live_page, "draw_run", fails)
    page.write()
    assert folder.page.is_file()
    assert any("no font" in line and "run.png" in line for line in caplog.messages)


def evaluation_of(dice: dict[str, float]) -> dict:
    """An evaluation with one structure."""
    volumes = {
        subject: {"as_predicted": [{"structure": "a", "dice": value}]}
        for subject, value in dice.items()
    }
    mean = sum(dice.values()) / len(dice)
    return {
        "structures": {"a": 1},
        "volumes": volumes,
        "summary": {
            "as_predicted": {
                "mean": {"dice": mean, "assd_mm": None, "n_missing_distance": 0},
                "structures": {"a": {"dice": mean}},
            }
        },
        "network": "student",
        "seconds": 60.0,
        "hardware": "a CPU",
    }


def test_differences_are_paired_by_scan_and_seed() -> None:
    def run(method: str, seed: int, **dice: float) -> ScoredRun:
        return ScoredRun(method=method, labelled="4", seed=seed, evaluation=evaluation_of(dice))

    a = [run("a", 0, p=0.8, q=0.6), run("a", 1, p=0.9, q=0.6)]
    b = [run("b", 0, p=0.7, q=0.4), run("b", 1, p=0.6, q=0.5), run("b", 2, p=0.1, q=0.1)]
    found = paired(a, b)
    # p: 0.1 and 0.3, q: 0.2 and 0.1; the third seed has no partner
    assert found["mean"] == pytest.approx((0.2 + 0.15) / 2)
    assert found["error"] == pytest.approx(0.05 / 2)
    assert found["is_clear"]
    assert paired(a, [run("b", 7, p=0.1)]) is None
    alone = paired([run("a", 0, p=0.5)], [run("b", 0, p=0.4)])
    assert (alone["error"], alone["is_clear"]) == (None, False)


def compare(folder: Path, **more: tuple[float, float]) -> None:
    """What a comparison folder holds of two methods and three seeds; more: others, p and q more."""
    shifts = {"le-uda": (0.2, 0.2), "source-only": (0.0, 0.0), **more}
    for method, (of_p, of_q) in shifts.items():
        for seed in range(3):
            run = RunFolder(folder / f"{method}-labelled4-seed{seed}")
            run.path.mkdir(parents=True)
            dice = {"p": 0.4 + of_p + seed / 100, "q": 0.5 + of_q}
            run.evaluation.write_text(json.dumps(evaluation_of(dice)))


def test_the_page_of_a_comparison_has_every_seed_as_a_point(tmp_path: Path) -> None:
    compare(tmp_path / "cmp")
    (tmp_path / "cmp" / "le-uda-labelled4-seed3").mkdir()  # under way
    assert leuda_here("report", tmp_path / "cmp", "-o", tmp_path / "c.html").returncode == 0
    read = check_page(tmp_path / "c.html")
    assert len(re.findall(r"\+0\.200", read.text)) == 1
    assert len(re.findall(r"-0\.200", read.text)) == 1
    assert "6 finished runs" in read.text
    assert "1 more" in read.text


def test_only_differences_of_more_than_two_errors_are_bold(tmp_path: Path) -> None:
    compare(tmp_path / "cmp", cyclegan=(0.2, -0.1))
    assert leuda_here("report", tmp_path / "cmp", "-o", tmp_path / "c.html").returncode == 0
    page = (tmp_path / "c.html").read_text().replace("&nbsp;", " ")
    bold = re.findall(r"<strong>([+-][\d.]+ ± [\d.]+)</strong>", page)
    assert sorted(bold) == ["+0.200 ± 0.000", "-0.200 ± 0.000"]
    assert "+0.150 ± 0.150" in page  # le-uda beside cyclegan


def test_a_comparison_of_several_label_counts_shows_dice_against_them(tmp_path: Path) -> None:
    compare(tmp_path / "cmp")
    for count in ("1", "all"):
        run = RunFolder(tmp_path / "cmp" / f"le-uda-labelled{count}-seed0")
        run.path.mkdir()
        run.evaluation.write_text(json.dumps(evaluation_of({"p": 0.3, "q": 0.3})))
    assert leuda_here("report", tmp_path / "cmp", "-o", tmp_path / "c.html").returncode == 0
    page = (tmp_path / "c.html").read_text()
    chart = page[page.index('id="by-labels"') : page.index('id="labelled-1"')]
    places = re.findall(r">(1|4|all)</text>", chart)
    assert places == ["1", "4", "all"]


def test_lines_go_through_the_means_and_show_every_value() -> None:
    one = lines("t", {"a": {"1": [0.1], "all": [0.4]}}, x="labelled", y="Dice")
    more = lines("t", {"a": {"1": [0.1, 0.3], "all": [0.4, 0.6]}}, x="labelled", y="Dice")
    assert one is not None
    assert more is not None
    assert more.count("<use") - one.count("<use") == 2
    assert lines("t", {"a": {"all": [0.1, 0.2]}}, x="labelled", y="Dice") is None  # one place


def test_steps_are_those_of_the_config() -> None:
    for sections in ({}, {"distil": {"width": 0.5, "share": 0.5, "learning_rate": 1e-3}}):
        config = tiny.config(**sections)
        planned = steps_by_stage(config.model_dump(mode="json"))
        assert planned["le-uda"] == 12
        assert planned.get("distillation", 0) == config.distil_steps


def test_a_chart_has_a_marker_for_each_value() -> None:
    few, many = (
        points("t", {"a": values}, x="Dice", limits=(0, 1))
        for values in ([0.1, 0.2], [0.1, 0.2, 0.3, 0.4, 0.5])
    )
    assert few is not None
    assert many is not None
    assert many.count("<use") - few.count("<use") == 3
    assert "currentColor" in few
    assert points("t", {"a": []}, x="Dice", limits=None) is None


def test_the_page_of_an_export(make_model, tmp_path: Path) -> None:
    folder = tmp_path / "exports" / "thresholds"
    folder.mkdir(parents=True)
    make_model(folder)
    stage = {
        "stage": "PyTorch fp32 -> ONNX <fp32>", "windows": 9, "max_abs": 2e-6, "disagreement": 0.0,
        "class_dice": {"background": 1.0, "bright": 0.9997, "grey": None},
        "limits": {"max_abs": 1e-3, "dice": 0.9995},
    }  # fmt: skip
    proof = {"stages": [stage], "int8_layers": ["conv0", "conv1"], "lifted_layers": ["conv<2>"]}
    (folder / "parity.json").write_text(json.dumps(proof))
    write_manifest(folder)
    assert leuda_here("report", folder, "-o", tmp_path / "e.html").returncode == 0
    read = check_page(tmp_path / "e.html")
    for said in ("2e-06", "0.99970", "ONNX <fp32>", "conv<2>", "Not measured here"):
        assert said in read.text, said
    row = {
        "engine": "ort-cpu", "description": "ORT", "p50_seconds": 1.25, "p95_seconds": 2.0,
        "cold_seconds": 3.0, "peak_mb": None,
    }  # fmt: skip
    bench = {"shape": [8, 8, 8], "rounds": 2, "machine": "here", "engines": [row]}
    (tmp_path / "bench.json").write_text(json.dumps(bench))
    options = ["--bench", tmp_path / "bench.json"]
    assert leuda_here("report", folder, *options, "-o", tmp_path / "e.html").returncode == 0
    assert "1.25" in check_page(tmp_path / "e.html").text
    (tmp_path / "bench.json").write_text("{}")
    assert leuda_here("report", folder, *options, "-o", tmp_path / "e.html").returncode == 2


def test_another_folder_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        refused = leuda_here("report", path, "-o", tmp_path / "r.html")
        assert refused.returncode == 2
        assert str(path) in refused.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def browsed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield Page(browser)


A4_PIXELS = 717  # across a sheet, less the margins of Chromium


@pytest.mark.slow
@needs_chromium
def test_pages_are_for_everyone_and_ask_nobody(
    browsed: Page, cohort: Cohort, make_model, tmp_path: Path
) -> None:
    """axe-core finds no serious fault, light and dark; nothing is wider than the window."""
    run = RunFolder(tmp_path / "run")
    begin(run, cohort)
    finish(run, cohort)
    others = {f"le-uda-without-adv-{name}": (0.1, 0.0) for name in ("intra", "inter", *"abcdef")}
    compare(tmp_path / "compared", **others)
    (tmp_path / "export").mkdir()
    make_model(tmp_path / "export")
    write_manifest(tmp_path / "export")
    for folder in (run.path, tmp_path / "compared", tmp_path / "export"):
        page = tmp_path / f"{folder.name}.html"
        assert leuda_here("report", folder, "-o", page).returncode == 0
        schemes: tuple[Literal["light", "dark"], ...] = ("light", "dark")
        for scheme in schemes:
            browsed.look(scheme)
            browsed.visit(page.as_uri())
            assert browsed.serious_faults() == {}, (folder, scheme)
            assert browsed.fits(), (folder, scheme)
        browsed.look("light", "print")
        with browsed.as_wide_as(A4_PIXELS):
            assert browsed.fits(), folder
        assert browsed.complaints() == []
        asked = browsed.asked_for()
        assert page.as_uri() in asked
        assert all(address.startswith((page.as_uri(), "data:")) for address in asked), asked
