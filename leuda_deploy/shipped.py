"""nothing -> the small phantom model that ships with the package."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from leuda_deploy.errors import ModelError

NAME = "phantom-heart"


def default_model() -> Path:
    """The folder of the shipped model. Raises ModelError if the installation lacks it."""
    try:
        folder = Path(str(resources.files("leuda_exports").joinpath(NAME)))
    except ModuleNotFoundError as error:
        raise ModelError("the shipped phantom model is not installed; give --model") from error
    if not folder.is_dir():
        raise ModelError(f"the shipped phantom model is not at {folder}; give --model")
    return folder
