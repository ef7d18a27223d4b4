"""a finished demo -> the pictures of docs/how-to/tour.md: `make tour`.

Every picture is of the real thing: the commands run here, in a terminal of 100 columns or in a
headless Chromium (Debian's chromium and chromium-driver; selenium and pyte from the `dev` extra).
"""

from __future__ import annotations

import io
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyte
from rich.console import Console
from rich.text import Text
from selenium import webdriver

LEUDA = Path(sys.executable).with_name("leuda")
COLUMNS, ROWS = 100, 40
PAGE_SIZE = (1280, 900)
SECONDS = 300.0
DRAWN_SECONDS = 8.0  # until a page of 3D pictures has settled


class Tour:
    """One demo, one folder of pictures, one browser."""

    def __init__(self, demo: Path, pictures: Path, browser: Any) -> None:
        self.demo, self.pictures, self.browser = demo, pictures, browser

    def shoot(
        self,
        name: str,
        url: str,
        *,
        dark: bool = False,
        settle: float = 1.0,
        layout: str | None = None,
    ) -> None:
        """A picture of a page; layout: what is chosen as View first, which 3D has to be."""
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
        self.browser.get(url)
        time.sleep(settle)
        if layout is not None:
            self.browser.execute_script(
                "const view = document.getElementById('layout');"
                "view.value = arguments[0]; view.dispatchEvent(new Event('change'));",
                layout,
            )
            time.sleep(settle)
        self.browser.save_screenshot(str(self.pictures / f"{name}.png"))

    def print(self, name: str, shown: str, screen: list[str]) -> None:
        """A picture of a terminal: the command, then what stood there."""
        console = Console(width=COLUMNS, record=True, file=io.StringIO())
        console.print(Text(f"$ {shown}", style="bold"), soft_wrap=True)
        for line in screen:
            console.print(Text.from_ansi(line), soft_wrap=True)
        svg = re.sub(r"@font-face \{.*?\}", "", console.export_svg(title="leuda"), flags=re.DOTALL)
        svg = svg.replace("Fira Code", "DejaVu Sans Mono")
        width, height = map(float, re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)[0])
        with tempfile.TemporaryDirectory() as folder:
            page = Path(folder) / "terminal.html"
            page.write_text(f"<body style='margin:0'>{svg}</body>")
            self.browser.set_window_size(round(width) + 16, round(height) + 160)
            self.shoot(name, page.as_uri())
            picture = self.browser.find_element("tag name", "svg").screenshot_as_png
            (self.pictures / f"{name}.png").write_bytes(picture)
            self.browser.set_window_size(*PAGE_SIZE)


def terminal(command: list[str], cwd: Path, until: str | None = None) -> list[str]:
    """Run a command in a terminal; the lines on its screen at the end, or once `until` is seen."""
    screen, (parent, child) = pyte.Screen(COLUMNS, ROWS), pty.openpty()
    stream = pyte.ByteStream(screen)
    environment = {
        **os.environ,
        "COLUMNS": str(COLUMNS),
        "LINES": str(ROWS),
        "TERM": "xterm-256color",
    }
    running = subprocess.Popen(
        command, cwd=cwd, stdin=child, stdout=child, stderr=child, env=environment
    )
    os.close(child)
    ends = time.monotonic() + SECONDS
    try:
        while time.monotonic() < ends:
            if not select.select([parent], [], [], 1.0)[0]:
                if running.poll() is not None:
                    break
                continue
            try:
                stream.feed(os.read(parent, 1 << 16))
            except OSError:  # the command has ended
                break
            if until is not None and any(re.search(until, line) for line in screen.display):
                break
    finally:
        running.terminate()
        running.wait()
        os.close(parent)
    lines = [_with_colours(screen.buffer[row]) for row in range(ROWS)]
    while lines and not Text.from_ansi(lines[-1]).plain.strip():
        lines.pop()
    return lines


COLOURS = ("black", "red", "green", "brown", "blue", "magenta", "cyan", "white")


def _with_colours(row: Any) -> str:
    """A row of the screen as text with ANSI codes."""
    written = []
    for column in range(COLUMNS):
        cell = row[column]
        codes = ["1"] if cell.bold else []
        if cell.fg in COLOURS:
            codes.append(str(30 + COLOURS.index(cell.fg)))
        written.append(f"\x1b[{';'.join(codes)}m{cell.data}\x1b[0m" if codes else cell.data)
    return "".join(written).rstrip()


@contextmanager
def served(command: list[str], cwd: Path) -> Iterator[str]:
    """The address that a command says it serves."""
    running = subprocess.Popen(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        assert running.stdout is not None
        for line in running.stdout:
            if found := re.search(r"http://127\.0\.0\.1:\d+\S*", line):
                yield found[0]
                return
        raise SystemExit(f"{command} served nothing")
    finally:
        running.terminate()
        running.wait()


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless browser of a fixed size."""
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    flags = ("--headless=new", "--no-sandbox", "--hide-scrollbars", "--disable-dev-shm-usage")
    gpu = ("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
    for flag in (*flags, *gpu, f"--window-size={PAGE_SIZE[0]},{PAGE_SIZE[1]}"):
        options.add_argument(flag)
    browser = webdriver.Chrome(
        options=options, service=webdriver.ChromeService("/usr/bin/chromedriver")
    )
    try:
        yield browser
    finally:
        browser.quit()


def main(demo: Path, pictures: Path) -> None:
    """Go through the steps of the tour in a folder of its own."""
    demo, pictures = demo.resolve(), pictures.resolve()
    if not (demo / "summary.json").is_file():
        raise SystemExit(f"{demo} is no finished demo: make demo")
    pictures.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        here, tour = Path(folder), Tour(demo, pictures, browser)
        shutil.copytree(demo / "cohort", here / "cohort")
        shutil.copytree(demo / "le-uda-plus", here / "runs" / "heart")
        scans = sorted((here / "cohort" / "ct_test").glob("*_image.nii.gz"))
        (here / "scans").mkdir()
        for scan in scans:
            shutil.copy(scan, here / "scans" / scan.name.replace("_image", ""))

        def shown(*words: str) -> tuple[str, list[str]]:
            return " ".join(("leuda", *words)), [str(LEUDA), *words]

        line, command = shown("train", "cohort/cohort.toml", "--config", "demo", "--method",
                              "source-only", "--out", "runs/first")  # fmt: skip
        tour.print("train", line, terminal(command, here, until=r"\b[2-3]\d\d ?/ ?400|[5-9]\d ?%"))
        line, command = shown("report", "runs/heart")
        terminal(command, here)
        tour.shoot("run", (here / "report.html").as_uri())
        line, command = shown("export", "runs/heart", "-o", "exports/heart")
        tour.print("export", line, terminal(command, here))
        line, command = shown("report", "exports/heart", "-o", "export.html")
        terminal(command, here)
        tour.shoot("export-page", (here / "export.html").as_uri())
        line, command = shown("infer", "scans", "--model", "exports/heart", "-o", "out")
        tour.print("infer", line, terminal(command, here))
        overlay = sorted((here / "out").glob("*.png"))[0]
        shutil.copy(overlay, pictures / "overlay.png")
        _, command = shown("view", "out", "--no-browser")
        with served(command, here) as url:
            tour.shoot("view", url, settle=DRAWN_SECONDS)
            tour.shoot("view-dark", url, dark=True, settle=DRAWN_SECONDS)
            tour.shoot("../view", url, settle=DRAWN_SECONDS, layout="all")  # of docs/how-to/view.md


if __name__ == "__main__":
    main(
        Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo"),
        Path(sys.argv[2] if len(sys.argv) > 2 else "docs/pictures/tour"),
    )
