"""README and docs -> every command and every example in them does what is written.

A block of code under `<!-- test: run -->` is run, in one folder, page after page; one under
`<!-- test: study -->` by `tests/deploy/jobs/dicom/test_dicom_page.py`. Of all other commands it is
checked that they are there and take these arguments. Where a block says `--config demo`, a tiny
config of `le-uda` is run on a few of the phantoms: this takes a minute.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import reference
import tomlkit
from pydantic import BaseModel
from support import tiny
from typer.main import get_command

from leuda_deploy.scans.dicom.rules import SeriesRules
from leuda_train.cli import app
from leuda_train.config.load import load_config
from leuda_train.data.cohort_file import CohortSpec

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
# in the order in which a reader makes what the next page needs
PAGES = [
    ROOT / "README.md",
    DOCS / "how-to" / "own-data.md",
    *sorted({*DOCS.rglob("*.md"), ROOT / "CONTRIBUTING.md"} - {DOCS / "how-to" / "own-data.md"}),
]
BLOCK = re.compile(r"(?:<!-- test: (\w+) -->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A block of code: what the page says is to be done with it, its language, its text."""

    page: Path
    task: str
    language: str
    text: str

    @property
    def commands(self) -> list[str]:
        """One a line, without comments; lines that go on are joined."""
        lines = re.sub(r"( |,)\\\n", r"\1", self.text).splitlines()
        return [line.split(" #")[0].strip() for line in lines if shlex.split(line, comments=True)]


BLOCKS = [Block(page, *found) for page in PAGES for found in BLOCK.findall(page.read_text())]
COMMANDS = [
    pytest.param(command.strip(), id=f"{block.page.name}-{command.strip()[:60]}")
    for block in BLOCKS
    if block.language == "sh"
    for line in block.commands
    for command in line.split("&&")
]
INLINE = sorted(
    {code for page in PAGES for code in re.findall(r"`(leuda [^`]+)`", page.read_text())}
)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_there_and_takes_its_arguments(command: str) -> None:
    program, *arguments = shlex.split(command, comments=True)
    match program:
        case "leuda":
            _parse(arguments)
        case "torchrun":
            _parse(arguments[arguments.index("leuda_train") + 1 :])
        case "make":
            targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert {argument for argument in arguments if "=" not in argument} <= {*targets}
        case "python":
            assert (ROOT / arguments[0]).is_file()
        case "pip":
            extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
                "optional-dependencies"
            ]
            assert {*re.findall(r"\[(\w+)\]", command)} <= {*extras}
        case _:
            assert program in ("git", "cd", "pre-commit", "openssl", "docker")


@pytest.mark.parametrize("code", INLINE)
def test_a_command_in_a_sentence_has_the_options_that_it_names(code: str) -> None:
    command, rest = _command(code.split()[1:])
    options = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in rest if re.match(r"--?[a-z]", word)} <= options | {"--help"}


def _command(words: list[str]) -> tuple[Any, list[str]]:
    """The command that the first one or two words name, and the words after it."""
    command: Any = get_command(app)
    for place, word in enumerate(words):
        # `leuda cohort BENCHMARK ROOT` stands for each of the group's
        if word.isupper() or not (inside := getattr(command, "commands", {})):
            return command, words[place:]
        command = inside[word]
    return command, []


def _parse(arguments: list[str]) -> None:
    """Raises typer's usage error if the command does not take these arguments."""
    command, rest = _command(arguments)
    command.make_context(arguments[0], rest)


@pytest.mark.slow
def test_the_commands_that_can_run_here_do(tmp_path: Path) -> None:
    shims = tmp_path / "bin"
    shims.mkdir()
    shim = shims / "leuda"
    shim.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m leuda_train "$@"\n')
    shim.chmod(0o755)
    config = tmp_path / "tiny.toml"
    config.write_text(tomlkit.dumps(tiny.CONFIG))
    tiny_run = f"--config {config} --method le-uda"
    environment = {
        **os.environ,
        "PATH": f"{shims}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "200",
    }
    place = tmp_path / "place"
    place.mkdir()
    done: set[str] = set()
    for block in BLOCKS:
        if block.task != "run":
            continue
        if block.language == "python":
            commands = [shlex.join([sys.executable, "-c", block.text])]
            scan = place / "data" / "phantom" / "ct_test" / "ct_2501_image.nii.gz"
            (place / "scan.nii.gz").write_bytes(scan.read_bytes())
        else:
            commands = [command for command in block.commands if command not in done]
        for command in commands:
            done.add(command)
            ran = subprocess.run(
                ["sh", "-c", command.replace("--config demo", tiny_run)],
                cwd=place,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            assert ran.returncode == 0, f"{block.page.name}: {command}\n{ran.stdout}{ran.stderr}"
            if command.startswith("leuda phantom"):
                _thin_out(place / "data" / "phantom")
    report = json.loads((place / "labels.json").read_text())
    page = (DOCS / "reference" / "report.md").read_text()
    assert {field for field in report if f"`{field}`" not in page} == set()


def _thin_out(cohort: Path) -> None:
    """Two scans of each role, and four of the folder that is labelled."""
    for role in cohort.iterdir():
        few = 4 if role.name.startswith("ct_u") else 2
        for kind in ("image", "label"):
            for file in sorted(role.glob(f"*_{kind}.nii.gz"))[few:]:
                file.unlink()


def test_examples_of_toml_are_cohort_files_rules_or_methods(tmp_path: Path) -> None:
    examples = [block for block in BLOCKS if block.language == "toml"]
    assert len(examples) >= 3
    for block in examples:
        if block.task == "method":
            (tmp_path / "mine.toml").write_text(block.text)
            load_config("demo", str(tmp_path / "mine.toml"))
            continue
        kind = SeriesRules if block.task == "rules" else CohortSpec
        kind.model_validate(tomllib.loads(block.text))


def test_the_cohort_page_names_every_key() -> None:
    page = (DOCS / "reference" / "cohort.md").read_text()
    spec = CohortSpec.model_fields
    for name, field in spec.items():
        part = field.annotation
        inner = part.model_fields if isinstance(part, type) and issubclass(part, BaseModel) else {}
        for key in inner or (name,):
            whole = f"{name}.{key}" if inner else key
            assert f"`{whole}`" in page or f"`[{whole}]`" in page, whole


def test_reference_pages_are_what_the_code_says() -> None:
    pages = reference.pages()
    written = {name: (DOCS / "reference" / name).read_text() for name in pages}
    assert written == pages, "run `make docs` and commit what it wrote"


def test_relative_links_of_the_readme_lead_somewhere() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "exports" / "README.md"):
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            assert link.startswith("https://") or (page.parent / link).exists(), link


def test_hooks_are_the_commands_of_make_lint() -> None:
    made = subprocess.run(
        ["make", "-n", "--no-print-directory", "-o", ".venv/.ready", "lint"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    hooks = re.findall(r"entry: (.*)", (ROOT / ".pre-commit-config.yaml").read_text())
    assert hooks == made.stdout.splitlines()
