"""The page in headless Chromium: it opens, shows, scrolls, switches, and asks nobody else."""

from __future__ import annotations

import csv
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import pytest
from support.browser import Page, chromium, needs_chromium
from support.view_files import blobs, turned_affine, write_case

from leuda_deploy.jobs.node.queue import Queue
from leuda_deploy.view.content import Content
from leuda_deploy.view.dashboard import Dashboard
from leuda_deploy.view.marks import Marks
from leuda_deploy.view.one_file import write_page
from leuda_deploy.view.scene import Scene, find_scenes, make_scene
from leuda_deploy.view.server import PageServer

pytestmark = [pytest.mark.slow, needs_chromium]
ORANGE, BLUE = (230, 159, 0), (86, 180, 233)  # of classes 1 and 2


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield Page(browser)


@contextmanager
def served(scenes: list[Scene], marks: Marks | None = None) -> Iterator[str]:
    with PageServer(Content(scenes, {}), marks) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:  # a test that fails or skips must not leave it, closed, in a busy loop
            yield server.url
        finally:
            server.shutdown()
            thread.join()


def two_labels(folder: Path, **how: Any) -> Scene:
    scan = write_case(folder, unsure=0.6, **how)
    return make_scene(scan, (folder / "case_labels.nii.gz", folder / "case_truth.nii.gz"))


def test_a_scan_with_two_label_files(page: Page, tmp_path: Path) -> None:
    with served([two_labels(tmp_path, codes="LAS", degrees=10)]) as url:
        page.open(url)
        # words: structures with volumes, what the report says, how sides are shown
        assert "right blob" in page.text("structures")
        assert "left blob: not found" in page.text("notes")
        assert "does not look like" in page.text("notes")
        assert "low end of its intensities is at 0, theirs at -999" in page.text("notes")
        assert "on the left of the picture" in page.text("convention")
        assert "60.0 %" in page.text("report")

        # the patient's right is on the side that the page says, before and after it is swapped
        page.choose("opacity", "100")
        page.choose("layout", "axial")
        assert page.shows(lambda: min(page.columns(c).size for c in (ORANGE, BLUE)) > 300)
        assert page.columns(ORANGE).max() < page.columns(BLUE).min()
        page.browser.find_element("id", "turn").click()
        page.choose("opacity", "100")
        assert "on the right of the picture" in page.text("convention")
        assert page.shows(lambda: page.columns(ORANGE).min() > page.columns(BLUE).max())
        page.browser.find_element("id", "turn").click()

        # a structure's name leads to it, and the place is told by its side
        page.browser.find_element("css selector", "button[title='go to right blob']").click()
        assert page.text("place").startswith("R 1")
        assert "right blob" in page.text("place")
        page.browser.find_element("css selector", "button[title='go to left blob']").click()
        assert page.text("place").startswith("L 1")

        # keys and wheel scroll slice by slice, and the page measures it
        before = page.voxel()
        page.key("\ue013")  # arrow up
        page.wait("return performance.getEntriesByName('leuda:step').length === 1")
        assert np.subtract(page.voxel(), before).tolist() == [0, 0, 1]
        page.browser.execute_script(
            "const canvas = document.getElementById('first'), box = canvas.getBoundingClientRect();"
            "canvas.dispatchEvent(new WheelEvent('wheel', { deltaY: 100, bubbles: true,"
            " cancelable: true, clientX: box.x + box.width / 2, clientY: box.y + box.height / 2}))"
        )
        page.wait("return performance.getEntriesByName('leuda:step').length === 2")
        assert page.voxel() == before

        # labels off, one structure off, the difference, side by side
        page.key(" ")
        page.choose("opacity", "100")
        assert page.shows(lambda: page.columns(ORANGE).size == 0)
        page.key(" ")
        page.browser.find_element("css selector", "input[aria-label='show right blob']").click()
        page.choose("opacity", "100")
        assert page.shows(lambda: page.columns(ORANGE).size == 0)
        assert page.shows(lambda: page.columns(BLUE).size > 300)
        page.browser.find_element("css selector", "input[aria-label='show right blob']").click()
        page.choose("shown", "difference")
        page.wait("return !!state.images.difference")
        page.choose("opacity", "100")
        assert page.shows(lambda: page.columns(ORANGE).size > 20)  # only in the second file
        assert "only in the second" in page.text("pictures")
        page.choose("shown", "beside")
        page.wait("return views.length === 2")
        page.choose("opacity", "100")
        assert page.shows(lambda: page.columns(ORANGE, "second").size > 300)
        # both show one place, also if no mouse was in them
        page.key("\ue013")
        page.wait("return performance.getEntriesByName('leuda:step').length === 3")
        places = page.browser.execute_script(
            "return views.map((one) => [...one.scene.crosshairPos])"
        )
        assert places[0] == places[1] != [0.5, 0.5, 0.5]

        # 3D, the map of uncertainty, other windows
        page.choose("layout", "3d")
        assert page.shows(lambda: (page.canvas() > 40).any())
        page.choose("layout", "axial")
        page.choose("shown", "none")
        assert page.shows(lambda: page.columns(ORANGE).size + page.columns(BLUE).size == 0)
        plain = page.canvas()
        assert not page.browser.execute_script("return !!state.images.uncertainty")
        page.choose("uncertainty", "100")  # it is fetched once it is wanted
        assert page.shows(lambda: np.abs(page.canvas() - plain).max() > 60)
        page.choose("uncertainty", "0")
        page.choose("window", "All values")
        assert page.shows(lambda: (page.canvas() != plain).any())

        assert page.complaints() == []
        asked = page.asked_for()
        assert asked
        assert all(address.startswith((url, "data:", "blob:")) for address in asked), asked


def test_a_folder_is_gone_through_and_marked(page: Page, tmp_path: Path) -> None:
    for name, unsure in (("sure", 0.1), ("doubtful", 0.4)):
        write_case(tmp_path, name, unsure=unsure)
    marks = tmp_path / "marks.csv"
    with served(find_scenes(tmp_path), Marks(marks)) as url:
        page.open(url)
        assert page.text("name") == "doubtful.nii.gz"
        listed = page.browser.find_elements("css selector", "#list li")
        assert ["doubtful" in item.text for item in listed] == [True, False]
        page.wait(
            "return [...document.querySelectorAll('#list img')].every(one => one.naturalWidth > 0)"
        )
        page.key("a")
        page.wait("return document.querySelector('#list small').textContent.includes('look again')")
        page.key("\ue014")  # arrow right
        page.wait("return document.getElementById('name').textContent === 'sure.nii.gz'")
        page.key("o")
        page.wait("return document.querySelectorAll('#list small')[1].textContent.includes('ok')")
        assert page.complaints() == []
    with marks.open(newline="") as file:
        said = {Path(row["scan"]).name: row["mark"] for row in csv.DictReader(file)}
    assert said == {"doubtful.nii.gz": "look again", "sure.nii.gz": "ok"}


def test_labels_of_numbers_that_lie_far_apart(page: Page, tmp_path: Path) -> None:
    scan, path = write_case(tmp_path), tmp_path / "far.nii.gz"
    affine = turned_affine("LPS")
    labels = np.array([0, 1, 205], np.uint8)[blobs(affine)]
    nib.save(nib.Nifti1Image(labels, affine), path)
    with served([make_scene(scan, (path,))]) as url:
        page.open(url)
        page.choose("opacity", "100")
        page.choose("layout", "axial")
        assert page.shows(lambda: page.columns(ORANGE).size > 300)
        assert page.columns(ORANGE).size < 0.2 * page.canvas()[..., 0].size  # nor is all the rest


def test_one_file_opens_without_a_server(page: Page, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write_page(path, Content([two_labels(tmp_path)], {}))
    page.open(path.as_uri())
    page.choose("opacity", "100")
    page.choose("layout", "axial")
    assert page.shows(lambda: min(page.columns(c).size for c in (ORANGE, BLUE)) > 300)
    assert page.columns(ORANGE).max() < page.columns(BLUE).min()
    page.choose("shown", "difference")
    assert page.complaints() == []
    assert all(address.startswith(("file:", "data:", "blob:")) for address in page.asked_for())


def test_a_large_scan_is_thinned_and_drawn_coarsely_while_it_is_scrolled(
    page: Page, tmp_path: Path
) -> None:
    with served([make_scene(write_case(tmp_path))]) as url:
        page.open(url)
        every = page.browser.execute_script(
            "return [[512, 512, 600], [9, 9, 9]].map((shape) => thinned(shape, [.75, .75, 1], 4e6))"
        )
        assert every == [[4, 4, 3], [1, 1, 1]]
        width = "return views[0].canvas.width"
        sharp = page.browser.execute_script(width)
        page.key("\ue013")  # arrow up
        page.wait(f"{width} === {sharp} / 2")
        page.wait(f"{width} === {sharp}")  # as soon as it rests
        assert page.complaints() == []


def test_the_pictures_are_on_paper_too(page: Page, tmp_path: Path) -> None:
    with served([make_scene(write_case(tmp_path))]) as url:
        page.open(url)
        page.browser.execute_script("dispatchEvent(new Event('beforeprint'))")
        page.look("dark", "print")
        # tinted with it, half and half: more red than blue
        seen = page.pixels("#pictures .paper")
        assert (seen[..., 0] - seen[..., 2] > 60).sum() > 100
        for id in ("controls", "first"):
            assert not page.browser.find_element("id", id).is_displayed()
        page.look("light")


def test_a_scan_that_cannot_be_shown_is_told(page: Page, tmp_path: Path) -> None:
    scene = two_labels(tmp_path)
    scene.scan.write_bytes(scene.scan.read_bytes()[:900])
    with served([scene]) as url:
        page.browser.get(url)
        page.wait("return document.getElementById('status').className === 'wrong'")
        assert page.text("status")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(
    page: Page, tmp_path: Path, scheme: Literal["light", "dark"]
) -> None:
    for name in ("one", "two"):
        write_case(tmp_path, name, unsure=0.7)
    page.look(scheme)
    with served(find_scenes(tmp_path), Marks(tmp_path / "marks.csv")) as url:
        page.open(url)
        assert page.serious_faults() == {}


def test_the_page_of_a_node(page: Page, tmp_path: Path) -> None:
    queue = Queue(tmp_path / "queue")
    for series in ("1.2", "1.3"):
        queue.take(series, f"{series}.1", b"pixels", sender="CT1@10.0.0.5", modality="CT")
    queue.end(queue.entries()[0].id, "failed", "2 of 40 slices are missing; send them again")
    with Dashboard(queue, {"model": "phantom-heart"}) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        schemes: tuple[Literal["light", "dark"], ...] = ("light", "dark")
        for scheme in schemes:
            page.look(scheme)
            page.visit(server.url)
            page.wait("return document.querySelectorAll('#series tr').length === 2")
            assert "2 of 40 slices" in page.text("series")
            assert page.serious_faults() == {}
            assert page.fits()
        assert page.complaints() == []
        assert all(address.startswith(server.url) for address in page.asked_for())
        server.shutdown()
        thread.join()
