"""what went wrong -> one clear line: what it was, the value, and the fix.

LeudaError
├── InputError         a scan, label file, cohort, config or option that cannot be used as given
│   ├── ScanError             a scan that cannot be read, or has no regular grid
│   ├── GridMismatchError     two files that should share a grid do not
│   ├── UndeclaredLabelError  a label file holds a value that stands for no class
│   └── ConfigError           a config or method that is not there, or has a wrong key or value
├── ModelError         a model file that is damaged, foreign, or of an unknown schema
├── ParityError        two engines that should agree do not; nothing was kept
├── TrainingError      a run that cannot go on (a loss that is not finite, a broken checkpoint)
└── MissingExtraError  an optional package is not installed; the line says how to install it
"""

from __future__ import annotations

import os
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from pydantic import ValidationError

# what explains a command's errors, if their class has no page of its own
PAGES_OF_COMMANDS = {
    "adapt": "docs/how-to/source-free.md",
    "bench": "docs/how-to/beside-the-scanner.md",
    "card": "docs/how-to/export.md",
    "cohort": "docs/how-to/own-data.md",
    "compare": "docs/how-to/own-data.md",
    "evaluate": "docs/how-to/own-data.md",
    "export": "docs/how-to/export.md",
    "infer": "docs/how-to/beside-the-scanner.md",
    "listen": "docs/how-to/hospital-node.md",
    "picture": "docs/how-to/pages-and-pictures.md",
    "report": "docs/how-to/pages-and-pictures.md",
    "series": "docs/how-to/dicom.md",
    "train": "docs/how-to/own-data.md",
    "verify": "docs/explanation/proof.md",
    "view": "docs/how-to/view.md",
}
MAX_LINE = 300
MAX_VALUE = 80  # characters of a value that is shown
ScanFault = Literal[
    "missing",
    "damaged",
    "no volume",
    "no real numbers",
    "axes",  # fewer than three, or one of them without a voxel
    "frames",  # several, and none chosen, or one that is not there
    "units",
    "degenerate",
    "sheared",
    "nothing in it",
    "channels",  # fewer or more than the model reads together
    "too large a grid",
    # of a DICOM series
    "partial",  # files that cannot be read, or fewer than the series says
    "several series",
    "modality",
    "unlike slices",
    "missing slice",
    "repeated slice",
    "uneven",
]
OF_A_SERIES: frozenset[ScanFault] = frozenset(
    ("partial", "several series", "modality", "unlike slices", "missing slice", "repeated slice")
)


class LeudaError(Exception):
    """Root of everything that is reported to the user as one line, without a traceback."""

    def __str__(self) -> str:
        """One line that can be printed, whatever it quotes from outside: a path, a name."""
        line = super().__str__()
        return printable(line, len(line))

    def __reduce__(self) -> tuple[Any, ...]:
        # from process to process as it is: pickle's own way calls __init__ with the message alone
        return _restored, (type(self), self.args, self.__dict__)


def _restored(
    kind: type[LeudaError], args: tuple[object, ...], facts: dict[str, Any]
) -> LeudaError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(facts)
    return error


class InputError(LeudaError, ValueError):
    """A scan, label file, cohort, config or option that cannot be used as given."""


class ScanError(InputError):
    """A scan that cannot be read or prepared; `fault` says why."""

    def __init__(self, fault: ScanFault, message: str) -> None:
        super().__init__(message)
        self.fault = fault


class GridMismatchError(InputError):
    """Two files that should share a grid do not.

    names     the two files
    shapes    their shapes
    apart_mm  how far apart their corners lie at most; infinite if the shapes differ
    """

    def __init__(
        self,
        names: tuple[str, str],
        shapes: tuple[tuple[int, ...], tuple[int, ...]],
        apart_mm: float,
    ) -> None:
        first, second = names
        if shapes[0] != shapes[1]:
            what = f"have the shapes {shapes[0]} and {shapes[1]}"
        else:
            what = f"lie up to {apart_mm:.2g} mm apart in space (their affines differ)"
        super().__init__(f"{first} and {second} {what}: bring both to one grid")
        self.names, self.shapes, self.apart_mm = names, shapes, apart_mm


class UndeclaredLabelError(InputError):
    """A label file holds a value that stands for no class.

    values    those that are not declared
    declared  those that are
    """

    def __init__(self, name: str, values: list[int], declared: list[int]) -> None:
        more = ", ..." if len(values) > 8 else ""
        super().__init__(
            f"{name} holds {len(values)} undeclared label value(s) "
            f"({', '.join(map(str, values[:8]))}{more}); declared are "
            f"{', '.join(map(str, declared[:20]))}: is it an image? Else declare them in the "
            "cohort, in [classes] as name = value or in background_values"
        )
        self.name, self.values, self.declared = name, values, declared


class ConfigError(InputError):
    """A config or method that is not there, or has a wrong key or value."""


class ModelError(LeudaError):
    """A model file that is damaged, foreign, or of an unknown schema."""


class ParityError(LeudaError):
    """Two engines that should agree do not.

    window      index of the probe on which they differ most
    figure      what was passed: a field of `proof.parity.Tolerances`, or "shape" or "finite"
    class_name  the class that differs most
    """

    def __init__(
        self,
        message: str,
        window: int | None = None,
        *,
        figure: str | None = None,
        class_name: str | None = None,
    ) -> None:
        super().__init__(message)
        self.window, self.figure, self.class_name = window, figure, class_name

    def adding(self, more: str) -> ParityError:
        """The same error, with more to say."""
        return ParityError(
            f"{self}; {more}", self.window, figure=self.figure, class_name=self.class_name
        )


class TrainingError(LeudaError):
    """A training run that cannot go on."""


class MissingExtraError(LeudaError, ImportError):
    """An optional package is not installed."""

    def __init__(self, what: str, package: str, extra: str) -> None:
        super().__init__(
            f"{what} needs {package}, which is not installed: pip install 'leuda[{extra}]'"
        )
        self.package, self.extra = package, extra


PAGES: dict[type[BaseException], str] = {
    ScanError: "docs/explanation/odd-inputs.md",
    GridMismatchError: "docs/explanation/geometry-and-memory.md",
    UndeclaredLabelError: "docs/how-to/own-data.md",
    ConfigError: "docs/reference/config.md",
    ModelError: "docs/how-to/export.md",
    ParityError: "docs/explanation/proof.md",
    TrainingError: "docs/explanation/faults.md",
    MissingExtraError: "docs/how-to/beside-the-scanner.md",
    MemoryError: "docs/explanation/geometry-and-memory.md",
}


def page_about(error: BaseException, command: str = "") -> str | None:
    """The page of the documentation that explains an error of a command; None: there is none."""
    if isinstance(error, ScanError) and error.fault in OF_A_SERIES:
        return "docs/how-to/dicom.md"
    if isinstance(error, ScanError) and error.fault == "missing" and command in PAGES_OF_COMMANDS:
        return PAGES_OF_COMMANDS[command]  # nothing is odd about a path that is misspelt
    own = next((PAGES[kind] for kind in type(error).__mro__ if kind in PAGES), None)
    return own or PAGES_OF_COMMANDS.get(command)


def printable(text: str, most: int = MAX_LINE) -> str:
    """Text from outside as it may be shown, in one line: a path, a name, a library's message.

    Line breaks become blanks. What a terminal would obey, or what would turn the line about
    (control characters, escapes, marks of direction, halves of characters) becomes "?".
    """
    shown = text[:most].rstrip() + ("..." if len(text) > most else "")
    return "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in shown)


def one_line(error: BaseException) -> str:
    """What another library says of its error, as one line of at most 300 characters."""
    return printable(" ".join(str(error).split())[:MAX_LINE]) or type(error).__name__


@contextmanager
def reading(failed: Callable[[str], LeudaError]) -> Iterator[None]:
    """Around a library that reads a file from elsewhere: whatever it raises is one LeudaError.

    Readers of damaged files raise anything: TypeError, KeyError, AssertionError, RecursionError.

    Args:
        failed: Makes the error of what the library says.
    """
    try:
        yield
    except LeudaError:
        raise
    except Exception as error:
        raise failed(one_line(error)) from error


def describe(error: ValidationError) -> str:
    """The first fault of a pydantic error in one line: where, the value, what is wrong."""
    faults = error.errors(include_url=False)
    # a misspelt key is also a missing one: the key that is there says more
    first = next((fault for fault in faults if fault["type"] == "extra_forbidden"), faults[0])
    place = printable(".".join(str(part) for part in first["loc"]), MAX_VALUE)
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        return f"unknown key '{place}'{more}"
    if first["type"] == "missing":
        return f"'{place}' is missing{more}"
    message = first["msg"].removeprefix("Value error, ")
    value = printable(_text(first["input"]), MAX_VALUE)
    message = printable(message)
    return f"'{place}' = {value}: {message}{more}" if place else message + more


def _text(value: object) -> str:
    """A value as text, however deep or large it is."""
    try:
        return str(value)
    except (RecursionError, ValueError):  # nested too deep; too many digits
        return f"a {type(value).__name__}"


def keep_traceback(error: BaseException) -> str:
    """Write the traceback to a file of the user's own; the line that says what and where.

    It goes into the folder for temporary files: a report of ours must not depend on a cache or a
    home folder that may be full or closed.
    """
    what = f"unexpected {type(error).__name__}: {one_line(error)}"
    try:
        handle, name = tempfile.mkstemp(prefix=time.strftime("leuda-%Y%m%d-%H%M%S-"), suffix=".log")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write("".join(traceback.format_exception(error)))
    except OSError:
        return what
    return f"{what} (traceback: {name})"
