"""The error tree: one line each, and facts that survive the way from process to process."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from leuda_deploy.errors import (
    PAGES,
    PAGES_OF_COMMANDS,
    ConfigError,
    GridMismatchError,
    InputError,
    LeudaError,
    MissingExtraError,
    ParityError,
    ScanError,
    UndeclaredLabelError,
    describe,
    one_line,
    page_about,
    printable,
    reading,
)


@pytest.mark.parametrize(
    "error",
    [
        LeudaError("plain"),
        InputError("a scan"),
        GridMismatchError(("a", "b"), ((1, 2, 3), (1, 2, 4)), math.inf),
        UndeclaredLabelError("l.nii", [7, 9], [0, 1]),
        ParityError("they differ", window=3),
        MissingExtraError("reading DICOM", "highdicom", "dicom"),
    ],
)
def test_an_error_is_the_same_in_another_process(error: LeudaError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)
    assert "\n" not in str(error)


def test_text_from_outside_obeys_nothing() -> None:
    assert printable("a\x1b]0;title\x07\nerror: all is well\u202e\ud800") == (
        "a?]0;title? error: all is well??"
    )
    assert printable("plan     µ = 3 Δ") == "plan     µ = 3 Δ"
    assert printable("x" * 10, most=3) == "xxx..."


@pytest.mark.parametrize("raised", [KeyError("k"), AssertionError(), RecursionError("deep")])
def test_whatever_a_reader_raises_is_one_error(raised: Exception) -> None:
    with pytest.raises(InputError) as caught, reading(lambda what: InputError(f"no scan: {what}")):
        raise raised
    assert caught.value.__cause__ is raised
    with pytest.raises(MissingExtraError), reading(InputError):  # what is ours stays as it is
        raise MissingExtraError("reading DICOM", "highdicom", "dicom")


def test_one_line_of_what_a_library_says() -> None:
    assert one_line(ValueError("a\n  b\tc")) == "a b c"
    assert len(one_line(ValueError("x" * 1000))) == 300
    assert one_line(EOFError()) == "EOFError"


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid")

    size: int


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ({"sise": 1}, ("sise", "1 more")),  # the key that is there, not the one that is missing
        ({}, ("size", "missing")),
        ({"size": "big\x1b[31m\n"}, ("size", "big?[31m")),
        ({"size": "x" * 500}, ("size", "x" * 80)),
    ],
)
def test_the_first_fault_of_a_model_is_one_printable_line(
    content: dict[str, object], parts: tuple[str, ...]
) -> None:
    with pytest.raises(ValidationError) as caught:
        Model.model_validate(content)
    line = describe(caught.value)
    assert line.isprintable()
    assert len(line) < 200
    for part in parts:
        assert part in line


def test_every_page_that_explains_an_error_is_there_and_in_the_table_of_contents() -> None:
    root = Path(__file__).parents[2]
    listed = (root / "zensical.toml").read_text()
    for page in {*PAGES.values(), *PAGES_OF_COMMANDS.values(), *map(page_about, EXPLAINED)}:
        assert (root / page).is_file(), page
        assert page.removeprefix("docs/") in listed, page


EXPLAINED = [
    ScanError("uneven", "slices"),
    ScanError("missing slice", "a series"),
    MissingExtraError("reading DICOM", "highdicom", "dicom"),
]


def test_the_nearest_page_is_named() -> None:
    assert [page_about(error) for error in EXPLAINED] == [
        "docs/explanation/odd-inputs.md",
        "docs/how-to/dicom.md",
        "docs/how-to/beside-the-scanner.md",
    ]
    # its own page, whatever the command; else the command's; else none
    assert page_about(ScanError("damaged", "x"), "train") == "docs/explanation/odd-inputs.md"
    assert page_about(ScanError("missing", "x"), "infer") == PAGES_OF_COMMANDS["infer"]
    assert page_about(ConfigError("x"), "train") == "docs/reference/config.md"
    assert page_about(InputError("x"), "train") == "docs/how-to/own-data.md"
    assert page_about(InputError("x")) is None
    assert page_about(OSError("x"), "--help") is None
