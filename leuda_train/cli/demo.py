"""`leuda demo`: the whole job on phantoms."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leuda_deploy.cli import app, say
from leuda_deploy.cli.app import MAKE
from leuda_train.cli.need import need_torch


@app.command(rich_help_panel=MAKE)
def demo(
    out: Annotated[Path, typer.Option(help="Everything goes there.")] = Path("runs/demo"),
) -> None:
    """The whole job on phantoms, in minutes on a CPU.  [dim]Needs: leuda\\[train].[/dim]"""
    need_torch("leuda demo")
    from rich.console import Console

    from leuda_deploy.machine.progress import show_progress
    from leuda_train.runs.demo import read_demo, run_demo, table

    console = Console()
    summary = read_demo(out)
    if summary is not None:
        console.print(f"reusing {out}; delete it to start over", soft_wrap=True)
    else:
        summary = run_demo(out, show_progress)
    console.print(table(summary))
    console.print(f"{summary['seconds']['total']:.0f} s on {summary['hardware']}", soft_wrap=True)
    for what, path in summary["look_at"].items():
        console.print(f"{what:<22}{path}", soft_wrap=True)
    page = Path(summary["look_at"]["all of it, as a page"]).resolve().as_uri()
    say(f"Open {page} in a browser. The labels beside the truth, in three planes and 3D:")
    say(f"leuda view {out} {out / 'cohort' / 'ct_test'}")
