"""a run or an ONNX file, and what is asked of it -> an export folder, engines, a Triton model.

What `leuda export` does, in order. Torch is imported for a run alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from leuda_deploy.errors import InputError
from leuda_deploy.export.add_engines import add_engines
from leuda_deploy.export.import_onnx import copy_export, package_graph
from leuda_deploy.export.to_tensorrt import EngineTarget
from leuda_deploy.export.to_triton import to_triton
from leuda_deploy.machine.progress import ShowProgress, show_nothing
from leuda_deploy.model.card import GraphOptions, ModelCard, Precision
from leuda_deploy.model.model_file import ModelFile
from leuda_deploy.model.tiling import DEFAULT_TILING, Tiling
from leuda_deploy.proof.probes import Probes, probes_of_scans
from leuda_deploy.scans.dicom.rules import NO_RULES, SeriesRules


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """What is exported, and into what.

    source     a finished run's folder, or an *.onnx file
    output     the export folder; None: the *.onnx file's own
    card       of an *.onnx file from elsewhere: its model card
    precision, graph, tiling, series, licence
               of a run alone: what its model file is and says
    targets    TensorRT engines to build
    prove      scans to compare an engine on, and to prove a search on; without them a run is
               compared on its own slices, and its search on its unlabelled target scans
    search     of a run: prove a search, and refuse the export without one; or do not look for one;
               None: if there is one
    triton     a Triton model repository to write into
    """

    source: Path
    output: Path | None = None
    card: Path | None = None
    precision: Precision = "fp32"
    graph: GraphOptions = field(default_factory=GraphOptions)
    tiling: Tiling = DEFAULT_TILING
    series: SeriesRules = NO_RULES
    licence: str = "not stated"
    targets: tuple[EngineTarget, ...] = ()
    prove: tuple[Path, ...] = ()
    search: bool | None = None
    triton: Path | None = None

    @property
    def from_run(self) -> bool:
        """Whether the source is a run."""
        return self.source.suffix != ".onnx"


def export_as_asked(
    request: ExportRequest, show: ShowProgress = show_nothing
) -> tuple[ModelFile, Path | None]:
    """Write and prove what is asked; the model file, and the folder in the Triton repository.

    Raises:
        InputError: What is asked does not go together; nothing is written then.
        TrainingError: The run is not finished.
        ModelError: The *.onnx file or an engine is not what it says.
        ParityError: The model or an engine disagrees with what it was made from; it is not kept.
    """
    _check(request)
    model = _export_run(request, show) if request.from_run else _import_onnx(request)
    if request.targets:
        probes = _probes(request, model.card)
        with show("TensorRT") as progress:
            add_engines(model, list(request.targets), probes=probes, progress=progress)
    served = to_triton(model, request.triton) if request.triton is not None else None
    return model, served


def _check(request: ExportRequest) -> None:
    """Raises InputError if what is asked does not go together."""
    if request.card is not None and (request.from_run or request.output is None):
        raise InputError("--card is for an *.onnx file from elsewhere, and needs -o exports/NAME")
    if request.from_run:
        if request.output is None:
            raise InputError("say where the export goes: -o exports/NAME")
        return
    of_a_run = (request.graph != GraphOptions(), request.search, request.series != NO_RULES)
    if request.precision != "fp32" or any(of_a_run):
        raise InputError(
            "--precision, --dynamic-window, --probabilities, --search and --rules need a run"
        )
    if not request.targets and request.triton is None and request.output is None:
        raise InputError(
            f"{request.source} is an export already: ask for --trt or --triton, or -o exports/NAME"
        )


def _export_run(request: ExportRequest, show: ShowProgress) -> ModelFile:
    from leuda_train.export.export_run import export_run

    assert request.output is not None  # `_check`
    with show(f"ONNX {request.precision}") as progress:
        model, _ = export_run(
            request.source,
            request.output,
            licence=request.licence,
            precision=request.precision,
            options=request.graph,
            tiling=request.tiling,
            series=request.series,
            search=request.search,
            search_on=request.prove,
            progress=progress,
        )
    return model


def _import_onnx(request: ExportRequest) -> ModelFile:
    if request.card is not None and request.output is not None:
        return package_graph(request.source, request.card, request.output)
    return copy_export(request.source, request.output)


def _probes(request: ExportRequest, card: ModelCard) -> Probes | None:
    """The windows that an engine is proven on; None if there is nothing to make them of."""
    if request.prove:
        return probes_of_scans(card, list(request.prove))
    if request.from_run:
        from leuda_train.export.export_run import run_probes

        return run_probes(request.source)
    return None
