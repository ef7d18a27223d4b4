"""Training half: LE-UDA in PyTorch. What stands in `__all__` is public; all else may move.

    from pathlib import Path
    from leuda_train import export_run, load_config, read_cohort, train

    train(read_cohort("cohort.toml"), load_config("small", "le-uda-plus"), Path("runs/heart"))
    export_run(Path("runs/heart"), Path("exports/heart"))

Names are imported when they are asked for: importing the package does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leuda_train.config.load import load_config
    from leuda_train.data.cohort import read_cohort
    from leuda_train.evaluation.label_files import evaluate_paths
    from leuda_train.export.export_run import export_run
    from leuda_train.runs.train import train

# `export_run` and not `export`, which is a folder of this package
_MODULES = {
    "evaluate_paths": "leuda_train.evaluation.label_files",
    "export_run": "leuda_train.export.export_run",
    "load_config": "leuda_train.config.load",
    "read_cohort": "leuda_train.data.cohort",
    "train": "leuda_train.runs.train",
}

__all__ = ["evaluate_paths", "export_run", "load_config", "read_cohort", "train"]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
