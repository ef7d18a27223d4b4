"""the `leuda` command itself: its name, its version, how it ends. Commands register on `app`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from leuda_deploy.cli.log import log_to_stderr, make_patient
from leuda_deploy.errors import LeudaError, keep_traceback, page_about, printable
from leuda_deploy.machine.isolated import keep_children_safe, safe_path
from leuda_deploy.machine.stop import end_now, ending_when_told

app = typer.Typer(
    no_args_is_help=False,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Label-efficient unsupervised domain adaptation for segmentation, from scans to the edge.",
)
# the parts of `leuda --help`
MAKE, HAND_OVER, USE, LOOK = "Make a model", "Hand it over", "Label scans", "Look"
MAX_SAID = 2000  # characters of a line on stderr

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print JSON on stdout and nothing else there.")
]


@app.callback(invoke_without_command=True)
def _leuda(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    # a callback keeps the commands' names where there are few: `python -m leuda_deploy infer`
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"leuda {installed('leuda')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        from pathlib import Path

        from leuda_deploy.cli.start import next_steps

        typer.echo("What you can do next, here:\n")
        for step in next_steps(Path()):
            typer.echo(printable(f"  {step.command}", MAX_SAID))
            typer.echo(printable(f"      {step.what}", MAX_SAID) + "\n")
        typer.echo("leuda --help lists all commands, leuda COMMAND --help its options.")


def say(line: str) -> None:
    """One line on stderr. What it quotes from outside is made printable."""
    typer.echo(printable(line, MAX_SAID), err=True)


def run(command: typer.Typer) -> None:
    """Run a command line; what the user can mend is one line on stderr and exit code 2.

    So is what nobody foresaw, but for its traceback, which goes into a file. Ctrl-C and SIGTERM end
    it within two seconds.
    """
    keep_children_safe()
    sys.path[:] = safe_path()  # `python -m` puts the current folder there
    make_patient()
    log_to_stderr()
    with ending_when_told() as signals:
        try:
            command()
        # OSError: e.g. no room, or no right to write there
        except (LeudaError, OSError, MemoryError) as error:
            page = page_about(error, *sys.argv[1:2])
            see = f" (see {page})" if page else ""
            say(f"error: {str(error) or type(error).__name__}{see}")
            sys.exit(2)
        except Exception as error:  # noqa: BLE001  (the last boundary: whatever it is, one line)
            say(f"error: {keep_traceback(error)}")
            sys.exit(2)
        except (KeyboardInterrupt, SystemExit):
            if not signals:
                raise
            end_now(128 + signals[0])  # all is closed; Python would wait for threads
