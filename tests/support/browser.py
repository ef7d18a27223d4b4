"""headless Chromium -> what somebody who uses a page sees, and what the page asks for.

Needs Debian's chromium and chromium-driver, and selenium; accessibility also axe-core
(`make test-browser` installs all of them). Skipped with a reason where they are not there.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
AXE = Path(__file__).parents[2] / ".cache" / "node_modules" / "axe-core" / "axe.min.js"
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="chromium and chromium-driver are not installed"
)
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


class Page:
    """The page as somebody uses it."""

    def __init__(self, browser: Any) -> None:
        self.browser = browser

    def visit(self, url: str) -> None:
        """Go to a page; what was said and asked for before is forgotten."""
        self.browser.get("about:blank")
        self.browser.get_log("browser"), self.browser.get_log("performance")
        self.browser.get(url)

    def fits(self) -> bool:
        """Whether nothing is wider than the window."""
        wide: bool = self.browser.execute_script(
            "return document.documentElement.scrollWidth <= innerWidth"
        )
        return wide

    def open(self, url: str) -> None:
        """Go to the page of a scan, and wait for its pictures."""
        self.visit(url)
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
        return self.pixels(f"#{id}")

    def pixels(self, selector: str) -> NDArray[np.int64]:
        picture = self.browser.find_element("css selector", selector).screenshot_as_png
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

    def look(self, scheme: Literal["light", "dark"], media: str = "screen") -> None:
        """Ask for light or dark colours, on a screen or in print."""
        self.browser.execute_cdp_cmd(
            "Emulation.setEmulatedMedia",
            {"media": media, "features": [{"name": "prefers-color-scheme", "value": scheme}]},
        )

    @contextmanager
    def as_wide_as(self, pixels: int) -> Iterator[None]:
        """For a while the window, or the sheet, is of this width."""
        size = {"width": pixels, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        yield
        self.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

    def serious_faults(self) -> dict[str, list[str]]:
        """What axe-core finds of accessibility, if serious: rule -> elements."""
        source = Path(os.environ.get("LEUDA_AXE", AXE))
        if not source.is_file():
            pytest.skip(f"axe-core is not installed: no {source}; make test-browser")
        self.browser.execute_script(source.read_text())
        found = self.browser.execute_async_script("axe.run().then(arguments[0])")
        assert found["passes"]
        return {
            rule["id"]: [node["html"] for node in rule["nodes"]]
            for rule in found["violations"]
            if rule["impact"] in ("serious", "critical")
        }

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
    """A browser with a profile of its own."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
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
