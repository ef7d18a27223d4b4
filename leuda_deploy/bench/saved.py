"""result of `leuda bench` -> a JSON file and a chart beside it, and never over something else."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from leuda_deploy.bench.bench import Result, read_earlier
from leuda_deploy.bench.chart import OWN_MARK, draw_bench
from leuda_deploy.errors import InputError
from leuda_deploy.machine.files import write_json
from leuda_deploy.machine.outputs import Output, plan_outputs


def plan_saved(path: Path, *, inputs: Iterable[Path], force: bool = False) -> None:
    """Refuse, before any work, what must not be written. Raises InputError."""
    outputs = [
        Output(path=path, what="results", option="--save", endings=(".json",), is_ours=_is_result),
        Output(path=chart_path(path), what="chart", option="--save", is_ours=_is_chart),
    ]
    plan_outputs(outputs, inputs=inputs, force=force)


def save_bench(path: Path, result: Result) -> None:
    """Write the results and their chart."""
    write_json(path, result)
    draw_bench(chart_path(path), result)


def chart_path(path: Path) -> Path:
    """Where the chart of a result file lies: x.json -> x.png."""
    return path.with_suffix(".png")


def _is_result(path: Path) -> bool:
    try:
        known = set(Result.__annotations__)
        return known - {"accuracy"} <= set(read_earlier(path)) <= known
    except InputError:
        return False


def _is_chart(path: Path) -> bool:
    try:
        with Image.open(path) as picture:
            return picture.info.get("Software") == OWN_MARK
    except (OSError, ValueError, SyntaxError):  # Pillow's, for what is no picture
        return False
