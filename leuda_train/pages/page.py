"""facts + template -> one HTML file: no script, no other file, no network."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jinja2 import (
    ChoiceLoader,
    Environment,
    FileSystemLoader,
    PackageLoader,
    StrictUndefined,
    UndefinedError,
)
from markupsafe import Markup, escape
from PIL import Image

from leuda_deploy.errors import InputError, one_line
from leuda_deploy.machine.files import atomic_path

WEBP_QUALITY = 82
MISSING = "–"
MARK, HEAD_BYTES = b'<meta name="generator" content="leuda report">', 2048


def write_page(
    path: Path, template: str, facts: Mapping[str, Any], *, templates: Path | None = None
) -> None:
    """Fill the template and write the page, whole or not at all.

    templates  a folder with the template, which may extend those that stand here
    """
    ours = PackageLoader("leuda_train.pages")
    environment = Environment(
        loader=ours if templates is None else ChoiceLoader([FileSystemLoader(templates), ours]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "breakable": breakable,
        "minutes": minutes,
        "number": number,
        "slices": slices,
        "with_deviation": with_deviation,
    }
    text = environment.get_template(template).render(**facts)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def as_damaged(folder: Path) -> Iterator[None]:
    """What a page misses in a folder's files, within, is an InputError that names the folder."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError, UndefinedError) as error:
        raise InputError(
            f"{folder} cannot be shown: a file in it is damaged, or of another leuda "
            f"({type(error).__name__}: {one_line(error)})"
        ) from error


def is_page(path: Path) -> bool:
    """Whether a file is a page that was written here."""
    with path.open("rb") as file:
        return MARK in file.read(HEAD_BYTES)


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many digits behind the point, or a dash."""
    return MISSING if value is None else f"{value:.{digits}f}"


def with_deviation(pair: tuple[float | None, float | None], digits: int = 3) -> str:
    """(mean, standard deviation) as "0.812 ± 0.034"; no deviation of a single value."""
    mean, deviation = pair
    if mean is None:
        return MISSING
    return number(mean, digits) + ("" if deviation is None else f" ± {deviation:.{digits}f}")


def minutes(seconds: float) -> str:
    """Seconds in the unit that people would use."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def slices(axis: str) -> str:
    """A slice axis of a recipe in words."""
    planes = {"superior": "axial", "anterior": "coronal", "right": "sagittal"}
    if axis in planes:
        return f"{planes[axis]}, along {axis}"
    return f"along {axis.replace('array-', 'array axis ')}"


def breakable(name: str) -> Markup:
    """A name that may go on in the next line behind each "_" and "-"."""
    return Markup(re.sub("(?<=[_-])", "<wbr>", str(escape(name))))


def embedded(picture: Path | Image.Image) -> dict[str, Any]:
    """A picture as a data URI, with its width and height."""
    image = picture if isinstance(picture, Image.Image) else Image.open(picture)
    with image:
        content = io.BytesIO()
        image.convert("RGB").save(content, format="WEBP", quality=WEBP_QUALITY)
        data = base64.b64encode(content.getvalue()).decode()
        return {
            "source": Markup(f"data:image/webp;base64,{data}"),
            "width": image.width,
            "height": image.height,
        }
