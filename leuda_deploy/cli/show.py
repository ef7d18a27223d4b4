"""reports, outcomes, exports -> text for people. What programs read is printed as JSON instead."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from leuda_deploy.bench.doctor import Diagnosis
from leuda_deploy.engines.onnx_runtime import runs_on_the_cpu
from leuda_deploy.errors import printable
from leuda_deploy.export.verify import Verified
from leuda_deploy.jobs.prepare import mended_words
from leuda_deploy.jobs.report import Report
from leuda_deploy.jobs.run_jobs import Outcome
from leuda_deploy.model.export_folder import ProofTiling, read_manifest, read_proof
from leuda_deploy.model.model_file import ModelFile
from leuda_deploy.proof.choose_engine import explain
from leuda_deploy.proof.trial import Trial

MAX_LINE = 2000  # characters
WHY_FULL = {
    "asked": "--search full",
    "not proven": "the model's export proved no search",
    "entropy map": "the entropy map says something of each",
    "mirrored": "the search was not proven with --mirror",
    "unlike": "the scan does not look like those that the search was proven on",
    "thick slices": "they lie too far apart to leave one out",
}


def show_report(report: Report, console: Console) -> None:
    """Structures with their volumes, then what ran and where the time went."""
    table = Table("structure")
    table.add_column("mL", justify="right")
    predicted = report.predicted_dice
    if predicted is not None:
        table.add_column("predicted Dice", justify="right")
    for name, millilitres in report.volumes_ml.items():
        dice = [] if predicted is None else [f"{predicted[name]:.2f}" if name in predicted else "-"]
        table.add_row(Text(name), f"{millilitres:.1f}", *dice)
    console.print(table)
    phases = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in report.seconds.items())
    lines = [
        f"labels   {report.labels}",
        *(f"region   {name}: {path}" for name, path in (report.regions or {}).items()),
        f"engine   {report.engine}{_threads(report)}",
        f"model    {report.model} (sha256 {report.model_sha256[:12]}, feed {report.feed})",
        f"time     {report.total_seconds:.2f} s; by phase, overlapping: {phases}",
    ]
    if report.peak_memory_mb is not None:
        lines.append(
            f"memory   {report.peak_memory_mb:.0f} MB at its peak, "
            f"{report.predicted_peak_mb:.0f} MB predicted"
        )
    lines += _series_lines(report)
    lines.append(f"unsure   of {report.low_confidence:.1%} of the structures' voxels")
    lines.append(f"slices   {_slices_line(report)}")
    lines.append(f"windows  {_windows_line(report)}")
    if report.domain is not None:
        looks = "like" if report.domain["fits"] else "NOT like"
        lines.append(f"looks    {looks} the scans of training (z = {report.domain['z']})")
    taken = {name: ml for name, ml in (report.cleaned_ml or {}).items() if ml}
    lines += [f"cleaned  {ml:.1f} mL of islands of {name} taken away" for name, ml in taken.items()]
    lines += [f"flag     {flag.structure}: {flag.flag}" for flag in report.flags]
    if report.overlay:
        lines.append(f"look at  {report.overlay}")
    # markup off: rich would read "[x]" in a path or a name as its own
    console.print("\n".join(map(_shown, lines)), soft_wrap=True, highlight=False, markup=False)


def _threads(report: Report) -> str:
    return "" if report.threads is None else f" on {report.threads} threads"


def _slices_line(report: Report) -> str:
    """How many slices were scored, and why not fewer."""
    slices = report.slices
    because = slices["full_because"]
    if because is None and slices["searched"] is None:  # a 3D model: see `_windows_line`
        return f"all {slices['all']} scored, by few windows where nothing is found"
    if because is None:
        return (
            f"{slices['scored']} of {slices['all']} scored, {slices['searched']} of them to find "
            "where there is something; the others are background"
        )
    return f"all {slices['all']} scored: {WHY_FULL.get(str(because), because)}"


def _windows_line(report: Report) -> str:
    """What of each slice was scored, and in what."""
    slice_, part, window, count = (
        " x ".join(map(str, report.windows[name])) for name in ("slice", "part", "window", "count")
    )
    scored = "all" if part == slice_ else f"{part}, the rest is air,"
    whole = "at once, as" if count == "1 x 1" else f"in {count} windows of"
    line = f"of {slice_} pixels {scored} scored {whole} {window}"
    if "along" in report.windows:
        line += ", {} of {} along the slices".format(*report.windows["along"])
    return line


def _shown(line: str) -> str:
    """Paths, licences and messages hold what others wrote: a line of them that obeys nothing."""
    return printable(line, MAX_LINE)


def _series_lines(report: Report) -> list[str]:
    """Which DICOM series it was, and what had to be mended."""
    if report.series is None:
        return []
    said = report.series
    number = "" if said["number"] is None else f"{said['number']} "
    lines = [
        f"series   {number}'{said['description']}', {said['modality']}, {said['images']} images"
    ]
    if isinstance(said["mended"], Mapping):
        lines.append(f"mended   {mended_words(said['mended'])}")
    return lines


def show_outcomes(outcomes: Sequence[Outcome], console: Console) -> None:
    """A line a scan and what is odd about it; how many there are of each kind; what is next."""
    table = Table()
    table.add_column("scan", overflow="fold")
    table.add_column()
    table.add_column("s", justify="right")
    table.add_column("mL", overflow="fold")
    reports = [outcome.report for outcome in outcomes if outcome.report is not None]
    if any(map(_odd, reports)):
        table.add_column("odd", overflow="fold")
    for outcome in outcomes:
        report = outcome.report
        if report is None:
            kind = "was done" if outcome.skipped else "failed"
            table.add_row(
                Text(_shown(outcome.job.scan.name)), kind, "", Text(_shown(outcome.error or ""))
            )
            continue
        volumes = ", ".join(f"{name} {ml:.1f}" for name, ml in report.volumes_ml.items())
        seconds = f"{report.total_seconds:.1f}"
        odd = [Text(_shown("; ".join(_odd(report))))] if len(table.columns) > 4 else []
        table.add_row(Text(_shown(outcome.job.scan.name)), "done", seconds, Text(volumes), *odd)
    console.print(table)
    failed = sum(outcome.error is not None for outcome in outcomes)
    skipped = sum(outcome.skipped for outcome in outcomes)
    console.print(
        f"{len(outcomes) - failed - skipped} labelled, {skipped} were done before, {failed} failed",
        highlight=False,
    )
    folders = {outcome.job.output.parent for outcome in outcomes if outcome.error is None}
    for folder in sorted(folders):
        line = f"look at  leuda view {shlex.quote(str(folder))}"
        console.print(_shown(line), soft_wrap=True, highlight=False, markup=False)


def _odd(report: Report) -> list[str]:
    """What a reader should know of a scan before its volumes are used."""
    unlike = report.domain is not None and not report.domain["fits"]
    odd = ["NOT like the scans of training"] if unlike else []
    return odd + [f"{flag.structure}: {flag.flag}" for flag in report.flags]


def verified_lines(found: Verified, export: Path) -> list[str]:
    """What an export is, and which of its engines fit this machine."""
    lines = [
        f"whole    {found.model}, {found.files} files as their manifest says",
        f"model    {found.name}: {found.precision}, feed {found.feed}, {found.licence}",
        f"labels   {', '.join(found.structures)}; window {found.window}",
        f"sha256   {found.model_sha256} (the file)",
        f"         {found.content_sha256} (graph, weights and card)",
        f"machine  {found.gpu or 'no NVIDIA GPU'}",
    ]
    if found.uncoded:
        lines.append(f'codes    none for {", ".join(found.uncoded)}: DICOM calls that "Tissue"')
    if found.signed_by is not None:
        lines.append(f"signed   with the key of {found.signed_by}")
    for engine in found.engines:
        lines.append(
            f"engine   {engine.name}: {engine.family}, {engine.target}, {engine.precision}"
        )
        if engine.misfits:
            lines += [f"         does not fit: {misfit}" for misfit in engine.misfits]
            lines.append(f"         {engine.remedy}")
        else:
            state = "proven" if engine.proven else f"to prove: leuda verify {export} --prove SCAN"
            lines.append(f"         fits; {state}")
    return [_shown(line) for line in lines]


def trial_lines(trials: Sequence[Trial]) -> list[str]:
    """What was found of each engine that was tried on this machine."""
    lines = []
    for trial in trials:
        speed = f"{trial.best_ms:.2f} ms a window; " if trial.window_ms else ""
        lines.append(f"tried    {trial.engine}: {speed}{explain(trial)}")
    return [_shown(line) for line in lines]


def diagnosis_lines(found: Diagnosis) -> list[str]:
    """What works here, what does not, and what mends it."""
    machine = found.machine
    memory = "?" if machine.memory_bytes is None else f"{machine.memory_bytes / 1e9:.1f} GB"
    lines = [
        f"machine   {machine.cores:g} cores, {memory}; Python {machine.python}, {machine.system}",
        f"gpu       {machine.gpu or 'no NVIDIA GPU'}; driver {machine.driver or 'none'}",
        f"packages  {', '.join(f'{name} {version}' for name, version in found.packages.items())}",
        f"model     {found.model}",
    ]
    for finding in found.findings:
        lines.append(f"{finding.state:<9} {finding.name}: {finding.detail}")
        if finding.mend:
            lines.append(f"          mend: {finding.mend}")
    runs = f"on {', '.join(found.runs_on)}" if found.runs_on else "on nothing"
    lines.append(f"infer     would run {runs}")
    return [_shown(line) for line in lines]


def _tiling_line(tiling: ProofTiling) -> str:
    """A way of scoring less of a slice, and whether it gives the labels of windows."""
    what = "in one pass" if tiling.whole else "in windows"
    what += "" if tiling.air is None else f", less air (up to {tiling.air:.0%} of the brightness)"
    found = f"no: {tiling.refused}" if tiling.refused else "the labels of windows over all of it"
    return f"{what}, {tiling.pixels:.0%} of the pixels: {found}"


FOR = ("triton", "monai")  # programs that an export is also written for


def export_summary(model: ModelFile, written: Mapping[str, Path]) -> dict[str, Any]:
    """What an export folder holds: facts for programs, and the same as "lines" for people.

    Args:
        model: The model file of the folder.
        written: Where it was written for other programs: "triton", "monai".
    """
    folder, card = model.folder, model.card
    engines = read_manifest(folder).engines
    size_mb = len(model.content) / 1e6
    open_axes = "dynamic batch" + (" and window" if card.options.dynamic_window else "")
    lines = [
        (
            "model",
            f"{model.path} ({card.precision}, {size_mb:.1f} MB, opset {card.opset}, {open_axes})",
        ),
        ("feed", f"{card.feed}, {card.provenance.network} of {card.provenance.method}"),
    ]
    whole_proof, proof = read_proof(folder)
    for stage in proof.stages:
        line = (
            f"{stage.stage}: largest |Δ| {stage.max_abs:.2g} of the spread, "
            f"{stage.disagreement:.3%} of pixels differ, over {stage.windows} windows"
        )
        lines.append(("proven", line))
    if proof.int8_layers is not None:
        kept, lifted = len(proof.int8_layers), len(proof.lifted_layers)
        lines.append(("int8", f"{kept} convolutions, {lifted} lifted back until the gate passed"))
    for tiling in proof.tilings:
        lines.append(("slices", _tiling_line(tiling)))
    if card.search is not None:
        line = (
            f"a slice every {card.search.step_mm:g} mm, then {card.search.margin_mm:g} mm around "
            f"what is found: {card.search.scored} of {card.search.slices} slices of "
            f"{card.search.scans} scans scored, Dice with the full pass at least "
            f"{card.search.dice:.4f}"
        )
        lines.append(("search", line))
    elif card.tiling.find_first:
        lines.append(("search", "windows between two that find nothing are left out"))
    elif proof.no_search:
        lines.append(("search", f"{proof.no_search}; every slice is scored"))
    for name, passport in engines.items():
        state = "proven" if passport.proven else "not run yet: no such GPU here, or no scans"
        line = (
            f"{folder / name} ({passport.family} {passport.version}, SM {passport.capability}, "
            f"{passport.engine_mb} MB, {passport.build_seconds} s; {state})"
        )
        lines.append(("engine", line))
    lines += [(program, str(path)) for program, path in written.items()]
    option = "" if runs_on_the_cpu(card.precision) else " --engine openvino"
    lines.append(("next", f"leuda infer SCAN.nii.gz --model {folder}{option}"))
    return {
        "card": card.model_dump(mode="json"),
        "parity": whole_proof,
        "engines": {name: passport.model_dump(mode="json") for name, passport in engines.items()},
        **{program: str(written[program]) if program in written else None for program in FOR},
        "lines": [(word, _shown(line)) for word, line in lines],
    }
