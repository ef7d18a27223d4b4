"""a folder -> which page it becomes."""

from __future__ import annotations

from pathlib import Path

from leuda_deploy.errors import InputError
from leuda_deploy.model.export_folder import MANIFEST_FILE
from leuda_train.loop.run_folder import RunFolder
from leuda_train.pages.comparison_page import COMPARISON, RUN, write_comparison_page
from leuda_train.pages.export_page import write_export_page
from leuda_train.pages.page import as_damaged
from leuda_train.pages.run_page import write_run_page


def write_report(folder: Path, out: Path, bench: Path | None = None) -> None:
    """Write the page of a run, comparison or export folder.

    Raises:
        InputError: It is none of them, or `bench` is given for another thing than an export.
    """
    is_export = folder.suffix == ".onnx" or (folder / MANIFEST_FILE).is_file()
    if bench is not None and not is_export:
        raise InputError(f"--bench is for an export; {folder} is not one")
    with as_damaged(folder):
        if is_export:
            write_export_page(folder, out, bench)
        elif (folder / COMPARISON).is_file() or _holds_runs(folder):
            write_comparison_page(folder, out)
        elif RunFolder(folder).config.is_file():
            write_run_page(folder, out)
        else:
            raise InputError(
                f"{folder} is no run, comparison or export: it holds neither config.toml, "
                f"{COMPARISON} nor {MANIFEST_FILE}"
            )


def _holds_runs(folder: Path) -> bool:
    return folder.is_dir() and any(RUN.fullmatch(path.name) for path in folder.iterdir())
