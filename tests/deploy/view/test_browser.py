"""The page in headless Chromium: it opens, shows, scrolls, switches, and asks nobody else.

Needs Debian's chromium and chromium-driver, and selenium; the test of accessibility also axe-core
(`make test-browser` installs all of them). Skipped with a reason where they are not there.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from support.view_files import write_case

from leuda_deploy.view.content import Content
from leuda_deploy.view.marks import Marks
from leuda_deploy.view.one_file import write_page
from leuda_deploy.view.scene import Scene, find_scenes, make_scene
from leuda_deploy.view.server import PageServer

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
AXE = Path(__file__).parents[3] / ".cache" / "node_modules" / "axe-core" / "axe.min.js"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None or DRIVER is None, reason="chromium and chromium-driver are not installed"
    ),
]
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # Chromium has none for root
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=1300,800",
)
OPEN_SECONDS = 180  # on a machine that has much else to do
SHOW_SECONDS = 30
ORANGE, BLUE = (230, 159, 0), (86, 180, 233)  # of classes 1 and 2


class Page:
    """The page as somebody uses it."""

    def __init__(self, browser: Any) -> None:
        self.browser = browser

    def open(self, url: str) -> None:
        self.browser.get("about:blank")
        self.browser.get_log("browser"), self.browser.get_log("performance")
        self.browser.get(url)
        self.wait("return document.getElementById('status').textContent.startsWith('Opened')")

    def wait(self, script: str) -> Any:
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.browser, OPEN_SECONDS).until(lambda b: b.execute_script(script))

    def choose(self, select: str, value: str) -> None:
        self.browser.execute_async_script(
            "const [id, value, done] = arguments, node = document.getElementById(id);"
            "if (node.type === 'checkbox') node.checked = value === 'on'; else node.value = value;"
            "node.dispatchEvent(new Event('input')); node.dispatchEvent(new Event('change'));"
            # the pictures are drawn when the graphics have done what they were given
            "setTimeout(() => drawn().then(() => requestAnimationFrame(() =>"
            " requestAnimationFrame(done))), 50);",
            select,
            value,
        )

    def key(self, key: str) -> None:
        self.browser.find_element("tag name", "body").send_keys(key)

    def text(self, id: str) -> str:
        return self.browser.find_element("id", id).text

    def voxel(self) -> list[int]:
        """Where the crosshair is, as the page says."""
        return [int(n) for n in self.text("place").split("voxel ")[1].split(" · ")[0].split(",")]

    def canvas(self, id: str = "first") -> NDArray[np.int64]:
        picture = self.browser.find_element("id", id).screenshot_as_png
        return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(int)

    def columns(self, colour: tuple[int, int, int], id: str = "first") -> NDArray[np.int64]:
        """Columns of the pixels that have a colour, one each."""
        return np.nonzero(np.abs(self.canvas(id) - colour).max(axis=-1) < 25)[1]

    def shows(self, seen: Callable[[], Any]) -> bool:
        """Whether the picture is so, now or in a while: what is drawn is not on the screen yet."""
        until = time.monotonic() + SHOW_SECONDS
        while not seen():
            if time.monotonic() > until:
                return False
            time.sleep(0.2)
        return True

    def complaints(self) -> list[str]:
        return [
            entry["message"]
            for entry in self.browser.get_log("browser")
            if entry["level"] == "SEVERE"
        ]

    def asked_for(self) -> set[str]:
        """Every address that the browser asked for since the page was opened."""
        events = [
            json.loads(entry["message"])["message"] for entry in self.browser.get_log("performance")
        ]
        return {
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        }


@contextmanager
def chromium(profile: Path) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    browser.set_script_timeout(OPEN_SECONDS)
    try:
        yield browser
    finally:
        browser.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield Page(browser)


@contextmanager
def served(scenes: list[Scene], marks: Marks | None = None) -> Iterator[str]:
    with PageServer(Content(scenes, {}), marks) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.url
        server.shutdown()
        thread.join()


def two_labels(folder: Path, **how: Any) -> Scene:
    scan = write_case(folder, doubt=0.6, **how)
    return make_scene(scan, (folder / "case_labels.nii.gz", folder / "case_truth.nii.gz"))


def test_a_scan_with_two_label_files(page: Page, tmp_path: Path) -> None:
    with served([two_labels(tmp_path, codes="LAS", degrees=10)]) as url:
        page.open(url)
        # words: structures with volumes, what the report says, how sides are shown
        assert "right blob" in page.text("structures")
        assert "left blob: not found" in page.text("notes")
        assert "does not look like" in page.text("notes")
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
        assert "only the second" in page.text("pictures")
        page.choose("shown", "beside")
        page.wait("return views.length === 2")
        page.choose("opacity", "100")
        assert page.shows(lambda: page.columns(ORANGE, "second").size > 300)

        # 3D, the map of doubts, other windows
        page.choose("layout", "3d")
        assert page.shows(lambda: (page.canvas() > 40).any())
        page.choose("layout", "axial")
        page.choose("shown", "none")
        assert page.shows(lambda: page.columns(ORANGE).size + page.columns(BLUE).size == 0)
        plain = page.canvas()
        page.choose("uncertainty", "100")
        assert page.shows(lambda: np.abs(page.canvas() - plain).max() > 60)
        page.choose("uncertainty", "0")
        page.choose("window", "All values")
        assert page.shows(lambda: (page.canvas() != plain).any())

        assert page.complaints() == []
        asked = page.asked_for()
        assert asked
        assert all(address.startswith((url, "data:", "blob:")) for address in asked), asked


def test_a_folder_is_gone_through_and_marked(page: Page, tmp_path: Path) -> None:
    for name, doubt in (("sure", 0.1), ("doubtful", 0.4)):
        write_case(tmp_path, name, doubt=doubt)
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


def test_a_scan_that_cannot_be_shown_is_told(page: Page, tmp_path: Path) -> None:
    scene = two_labels(tmp_path)
    scene.scan.write_bytes(scene.scan.read_bytes()[:900])
    with served([scene]) as url:
        page.browser.get(url)
        page.wait("return document.getElementById('status').className === 'wrong'")
        assert page.text("status")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(page: Page, tmp_path: Path, scheme: str) -> None:
    source = Path(os.environ.get("LEUDA_AXE", AXE))
    if not source.is_file():
        pytest.skip(f"axe-core is not installed: no {source}; make test-browser")
    for name in ("one", "two"):
        write_case(tmp_path, name, doubt=0.7)
    page.browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
    )
    with served(find_scenes(tmp_path), Marks(tmp_path / "marks.csv")) as url:
        page.open(url)
        page.browser.execute_script(source.read_text())
        found = page.browser.execute_async_script("axe.run().then(arguments[0])")
    assert found["passes"]
    serious = {
        rule["id"]: [node["html"] for node in rule["nodes"]]
        for rule in found["violations"]
        if rule["impact"] in ("serious", "critical")
    }
    assert serious == {}
