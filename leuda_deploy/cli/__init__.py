"""the `leuda` command, deployment half. May import everything in leuda_deploy.

A module a command parses and delegates; show.py prints what was found, log.py what is logged.
"""

# Each module registers its command, in the order in which `leuda --help` lists them.
# isort: off
from leuda_deploy.cli.app import JsonOption, app, run, say
from leuda_deploy.cli import infer
from leuda_deploy.cli import dicom
from leuda_deploy.cli import look
from leuda_deploy.cli import bench
from leuda_deploy.cli import check
from leuda_deploy.cli import listen
# isort: on

__all__ = [
    "JsonOption",
    "app",
    "bench",
    "check",
    "dicom",
    "infer",
    "listen",
    "look",
    "main",
    "run",
    "say",
]


def main() -> None:
    """`python -m leuda_deploy`: the runtime alone."""
    run(app)
