"""scan file + engine -> labels, picture, and a report of what was found and what really ran."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from leuda_deploy.engines import OnnxEngine
from leuda_deploy.infer import segment, volumes_ml
from leuda_deploy.overlay import draw_overlay
from leuda_deploy.progress import stage
from leuda_deploy.timing import Clock
from leuda_deploy.volume import check_label_path, read_volume, write_labels


@dataclass(frozen=True, kw_only=True)
class Report:
    """What `leuda infer` did to one scan."""

    scan: str
    labels: str
    overlay: str | None
    model: str
    model_sha256: str
    engine: str
    feed: str
    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    volumes_ml: dict[str, float]
    seconds: dict[str, float]
    peak_memory_mb: float | None  # None where the system does not tell

    def as_dict(self) -> dict[str, object]:
        """JSON-able."""
        return asdict(self)


def infer_file(
    scan: Path,
    engine: OnnxEngine,
    output: Path,
    *,
    frame: int | None = None,
    batch: int = 8,
    overlay: bool = True,
) -> Report:
    """Read a scan, label it, write labels (and a PNG beside them), say what happened."""
    check_label_path(output, scan)
    clock = Clock()
    with clock("read"):
        volume = read_volume(scan, frame=frame)
    card = engine.card
    with stage(f"{volume.name} on {engine.description}") as progress:
        found = segment(
            volume,
            engine,
            card.recipe,
            batch=batch,
            progress=lambda done, total: progress(done, total, ""),
        )
    with clock("write"):
        write_labels(output, found.labels, volume, card.label_names)
    picture = output.with_name(output.name.removesuffix(".gz").removesuffix(".nii") + ".png")
    if overlay:
        with clock("overlay"):
            draw_overlay(picture, volume, found.labels, card)
    names = [structure.name for structure in card.structures]
    return Report(
        scan=str(scan),
        labels=str(output),
        overlay=str(picture) if overlay else None,
        model=str(engine.path),
        model_sha256=engine.sha256,
        engine=engine.description,
        feed=card.feed,
        shape=volume.shape,
        spacing_mm=tuple(round(size, 4) for size in volume.spacing_mm),
        volumes_ml={
            name: round(millilitres, 3)
            for name, millilitres in volumes_ml(found.labels, volume, names).items()
        },
        seconds={name: round(s, 4) for name, s in {**found.seconds, **clock.seconds}.items()},
        peak_memory_mb=_peak_memory_mb(),
    )


def show_report(report: Report, console: Console) -> None:
    """For people: structures with volumes, then what ran and where the time went."""
    table = Table("structure")
    table.add_column("mL", justify="right")
    for name, millilitres in report.volumes_ml.items():
        table.add_row(Text(name), f"{millilitres:.1f}")
    console.print(table)
    stages = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in report.seconds.items())
    lines = [
        f"labels   {report.labels}",
        f"engine   {report.engine}",
        f"model    {report.model} (sha256 {report.model_sha256[:12]}, feed {report.feed})",
        f"time     {sum(report.seconds.values()):.2f} s: {stages}",
    ]
    if report.peak_memory_mb is not None:
        lines.append(f"memory   {report.peak_memory_mb:.0f} MB at its peak")
    if report.overlay:
        lines.append(f"look at  {report.overlay}")
    # markup off: rich would read "[x]" in a path or a name as its own
    console.print("\n".join(lines), soft_wrap=True, highlight=False, markup=False)


def _peak_memory_mb() -> float | None:
    """Largest resident set of this process so far."""
    if sys.platform == "win32":
        return None
    import resource

    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)
