"""the `leuda` command itself: its name, its version, how it ends. Commands register on `app`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from leuda_deploy.cli.log import log_to_stderr
from leuda_deploy.errors import LeudaError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Label-efficient unsupervised domain adaptation for segmentation, from scans to the edge.",
)

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print JSON on stdout and nothing else there.")
]


@app.callback(invoke_without_command=True)
def _leuda(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    # a callback keeps the commands' names where there are few: `python -m leuda_deploy infer`
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"leuda {installed('leuda')}")
        raise typer.Exit


def say(line: str) -> None:
    """One line on stderr."""
    typer.echo(line, err=True)


def run(command: typer.Typer) -> None:
    """Run a command line; what the user can mend is one line on stderr and exit code 2."""
    log_to_stderr()
    try:
        command()
    # OSError: e.g. no room, or no right to write there
    except (LeudaError, OSError, MemoryError) as error:
        say(f"error: {' '.join(str(error).split()) or type(error).__name__}")
        sys.exit(2)
