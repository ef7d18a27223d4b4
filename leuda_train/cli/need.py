"""what a command needs -> an error that says how to install it."""

from __future__ import annotations

from leuda_deploy.errors import MissingExtraError


def need_torch(what: str) -> None:
    """Raises MissingExtraError, with the install command, where the train extra is missing."""
    from importlib.util import find_spec

    for module, package in (
        ("torch", "PyTorch"),
        ("onnxscript", "onnxscript"),
        ("tomli_w", "tomli-w"),
        ("matplotlib", "matplotlib"),
    ):
        if find_spec(module) is None:
            raise MissingExtraError(what, package, "train")
