"""Tables in a terminal of 80 columns: no line is longer, no heading or figure is cut or broken."""

from __future__ import annotations

from io import StringIO
from typing import Any

from rich.console import Console

from leuda_deploy.cli.bench import show_bench
from leuda_train.runs.compare import table

ENGINES = ("ort-cpu", "ort-cuda", "openvino", "tensorrt", "tensorrt-rtx")
METHODS = ("source-only", "le-uda-fourier", "le-uda-plus-without-translated")


def engine(name: str, index: int) -> dict[str, Any]:
    """A row of `bench`, every figure of which has its own digits."""
    return {
        "engine": name,
        "description": f"what {name} is",
        "cold_seconds": 100.01 + index,
        "p50_seconds": 10.02 + index,
        "p95_seconds": 10.03 + index,
        "p99_seconds": 10.04 + index,
        "voxels_per_second": 2_500_000 + 100_000 * index,
        "stage_seconds": {"read": 1.25 + index, "normalise": 41.5 + index, "network": 100.05},
        "least_seconds": {"read": 1.0 + index, "normalise": 0.25},
        "peak_mb": None if index == 1 else 1200.0 + index,
    }


def lines_of(console: Console) -> list[str]:
    assert isinstance(console.file, StringIO)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)
    return lines


def terminal() -> Console:
    return Console(width=80, file=StringIO())


def test_bench_of_every_engine():
    rows = [engine(name, index) for index, name in enumerate(ENGINES)]
    result = {"shape": [512, 512, 300], "rounds": 5, "machine": "a test", "engines": rows}
    console = terminal()
    show_bench(result, console)
    lines = lines_of(console)
    cells = {line.split("  ")[0]: line.split()[1:] for line in lines}
    assert next(line.split() for line in lines if "ort-cuda" in line) == list(ENGINES)
    assert cells["p50 s"][1:] == ["10.02", "11.02", "12.02", "13.02", "14.02"]
    assert cells["peak MB"][1:] == ["1200", "-", "1202", "1203", "1204"]
    assert cells["Mvoxel/s"] == ["2.5", "2.6", "2.7", "2.8", "2.9"]
    assert cells["read"][:4] == ["1.25", "(1.2x)", "2.25", "(1.1x)"]
    assert cells["normalise"][:4] == ["41.50", "(166x)", "42.50", "(170x)"]
    assert cells["network"] == ["100.05"] * 5
    assert "tensorrt-rtx: what tensorrt-rtx is" in lines


def compared(method: str, index: int) -> dict[str, Any]:
    """A row of `compare`, the widest that figures get."""
    row: dict[str, Any] = {"method": method, "labelled": "all", "seeds": 10, "minutes": 1234.5}
    row["oracle_dice"] = 0.9 if index else None
    row["networks"] = [
        {"network": network, "feed": "target_as_source", "dice": 0.5 + index / 10,
         "dice_std": 0.042 if index else None, "product": network == "student"}
        for network in ("student", "inter_teacher")
    ]  # fmt: skip
    for variant, shift in (("as_predicted", 0.1), ("largest_component", 0.2)):
        row |= {
            f"{variant}.dice": 0.5 + shift, f"{variant}.dice_std": 0.042,
            f"{variant}.assd_mm": 34 + shift if index else None,
            f"{variant}.assd_mm_std": 10.0 if index else None,
            f"{variant}.missing": 4,
        }  # fmt: skip
    return row


def test_comparison_of_methods_with_long_names():
    rows = [compared(method, index) for index, method in enumerate(METHODS)]
    comparison = {"rows": rows, "ranking": {"spearman": -0.5, "n": 4}}
    console = terminal()
    console.print(table(comparison))
    lines = [" ".join(line.split()) for line in lines_of(console)]
    assert "method labels seeds Dice ASSD mm dist. oracle min" in lines
    assert "method labels seeds Dice ASSD mm dist. min" in lines
    assert "source-only all 10 0.600 ± 0.042 - 4 - 1234" in lines
    assert "le-uda-fourier all 10 0.600 ± 0.042 34.10 ± 10.00 4 0.900 1234" in lines
    assert "le-uda-fourier all 10 0.700 ± 0.042 34.20 ± 10.00 4 1234" in lines
    broken = lines.index("le-uda-plus- all 10 0.600 ± 0.042 34.10 ± 10.00 4 0.900 1234")
    assert lines[broken + 1 : broken + 3] == ["without-", "translated"]  # at its hyphens
    assert "source-only all student * target_as_source 0.500 one seed" in lines
    assert "inter_teacher target_as_source 0.700 ± 0.042" in " ".join(lines)
    assert any("-0.50" in line for line in lines)
