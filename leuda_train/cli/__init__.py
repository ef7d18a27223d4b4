"""the `leuda` command: the deployment half's commands and those that make models.

A module a command or two; each registers on the one `app`.
"""

# Each module registers its commands, in the order in which `leuda --help` lists them.
# isort: off
from leuda_deploy.cli import app, run
from leuda_train.cli import cohort
from leuda_train.cli import train
from leuda_train.cli import adapt
from leuda_train.cli import export
from leuda_train.cli import card
from leuda_train.cli import evaluate
from leuda_train.cli import report
from leuda_train.cli import demo
# isort: on

__all__ = [
    "adapt",
    "app",
    "card",
    "cohort",
    "demo",
    "evaluate",
    "export",
    "main",
    "report",
    "train",
]


def main() -> None:
    """The `leuda` command."""
    run(app)
