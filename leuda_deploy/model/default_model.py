"""nothing -> the small phantom model that ships with the package."""

from __future__ import annotations

from pathlib import Path

from leuda_deploy.errors import ModelError

SHIPPED = Path(__file__).with_name("phantom-heart")  # a link to exports/, a folder in a wheel


def default_model() -> Path:
    """The folder of the shipped model. Raises ModelError if the installation lacks it."""
    folder = SHIPPED.resolve()
    if not folder.is_dir():
        raise ModelError(f"the shipped phantom model is not at {folder}; give --model")
    return folder
