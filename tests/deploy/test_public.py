"""What a user may import from leuda_deploy: no more, no less, documented, and not before asked."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import leuda_deploy
from leuda_deploy import errors

WORK = [
    "Segmentation",
    "Segmenter",
    "SeriesRules",
    "Settings",
    "Volume",
    "choose_series",
    "find_series",
    "read_series",
    "read_volume",
    "verify",
    "write_labels",
]
ERRORS = [
    name
    for name, found in vars(errors).items()
    if inspect.isclass(found) and issubclass(found, errors.LeudaError)
]


def test_these_names_are_public_and_these_alone() -> None:
    assert leuda_deploy.__all__ == sorted([*WORK, *ERRORS])
    assert dir(leuda_deploy) == leuda_deploy.__all__
    with pytest.raises(AttributeError):
        _ = leuda_deploy.open_engine


@pytest.mark.parametrize("name", leuda_deploy.__all__)
def test_each_is_there_and_says_what_it_does(name: str) -> None:
    found = getattr(leuda_deploy, name)
    assert found.__name__ == name
    text = inspect.getdoc(found)
    assert text
    if inspect.isfunction(found):
        sections = {"Args:", "Returns:", "Raises:"} & set(text.splitlines())
        assert {"Args:", "Raises:"} <= sections
    elif name in WORK:
        assert "Attributes:" in text.splitlines()


def test_importing_the_package_imports_nothing_heavy() -> None:
    program = (
        "import sys, leuda_deploy\n"
        "print({'numpy', 'onnx', 'onnxruntime', 'pydantic', 'nibabel'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
