"""what is exported, and what is asked of it -> an export folder, engines, a Triton model.

What `leuda export` does, in order. Torch is not imported for an ONNX file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from leuda_deploy.errors import InputError
from leuda_deploy.export.add_engines import add_engines
from leuda_deploy.export.import_onnx import copy_export, package_graph
from leuda_deploy.export.to_tensorrt import EngineTarget
from leuda_deploy.export.to_triton import to_triton
from leuda_deploy.machine.progress import ShowProgress, show_nothing
from leuda_deploy.model.card import GraphOptions, ModelCard, Precision
from leuda_deploy.model.model_file import ModelFile
from leuda_deploy.model.signature import private_key, sign_export
from leuda_deploy.model.tiling import DEFAULT_TILING, Tiling
from leuda_deploy.proof.probes import Probes, probes_of_scans
from leuda_deploy.scans.dicom.rules import NO_RULES, SeriesRules
from leuda_train.export.elsewhere.to_monai import to_monai

Kind = Literal["run", "onnx", "nnunet", "monai"]


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """What is exported, and into what.

    source     a finished run's folder, an *.onnx file, a model folder of nnU-Net, a MONAI bundle
    kind       which of these
    output     the export folder; None: the *.onnx file's own
    card       of an *.onnx file from elsewhere: its model card
    precision, graph, tiling, licence
               of a run or a model of nnU-Net: what its model file is and says
    series     of a run: which DICOM series the model takes
    folds      of a model of nnU-Net; none: all that are finished
    region_order
               of a MONAI bundle whose structures overlap: their names, the largest first
    targets    TensorRT engines to build
    prove      scans to compare an engine on, and to prove a search on; without them a run is
               compared on its own slices, and its search on its unlabelled target scans
    search     of a run: prove a search, and refuse the export without one; or do not look for one;
               None: if there is one
    triton     a Triton model repository to write into
    monai      a folder to write a MONAI bundle into
    sign       a private key to sign the export with
    """

    source: Path
    kind: Kind
    output: Path | None = None
    card: Path | None = None
    precision: Precision = "fp32"
    graph: GraphOptions = field(default_factory=GraphOptions)
    tiling: Tiling = DEFAULT_TILING
    series: SeriesRules = NO_RULES
    licence: str = "not stated"
    folds: tuple[str, ...] = ()
    region_order: tuple[str, ...] = ()
    targets: tuple[EngineTarget, ...] = ()
    prove: tuple[Path, ...] = ()
    search: bool | None = None
    triton: Path | None = None
    monai: Path | None = None
    sign: Path | None = None


def export_as_asked(
    request: ExportRequest, show: ShowProgress = show_nothing
) -> tuple[ModelFile, dict[str, Path]]:
    """Write and prove what is asked; the model file, and its folders for "triton" and "monai".

    Raises:
        InputError: What is asked does not go together; nothing is written then.
        TrainingError: The run is not finished.
        ModelError: The *.onnx file or an engine is not what it says.
        ParityError: The model or an engine disagrees with what it was made from; it is not kept.
    """
    _check(request)
    if request.sign is not None:
        private_key(request.sign)  # what is none is found before the work
    export = {
        "run": _export_run,
        "onnx": _import_onnx,
        "nnunet": _export_nnunet,
        "monai": _export_monai,
    }[request.kind]
    model = export(request, show)
    if request.targets:
        probes = _probes(request, model.card)
        with show("TensorRT") as progress:
            add_engines(model, list(request.targets), probes=probes, progress=progress)
    written: dict[str, Path] = {}
    if request.triton is not None:
        written["triton"] = to_triton(model, request.triton)
    if request.monai is not None:
        written["monai"] = to_monai(model, request.monai)
    if request.sign is not None:
        sign_export(model.folder, request.sign)
    return model, written


def _check(request: ExportRequest) -> None:
    """Raises InputError if what is asked does not go together."""
    if request.card is not None and (request.kind != "onnx" or request.output is None):
        raise InputError("--card is for an *.onnx file from elsewhere, and needs -o exports/NAME")
    if request.kind != "run" and (request.search or request.series != NO_RULES):
        raise InputError("--search and --rules need a run")
    if request.folds and request.kind != "nnunet":
        raise InputError("--fold is for --from-nnunet")
    if request.region_order and request.kind != "monai":
        raise InputError("--region-order is for --from-monai; a card lists its regions in order")
    if request.kind == "nnunet" and request.tiling.mirror:
        raise InputError("--mirror is not for --from-nnunet: the checkpoint says along which axes")
    if request.kind != "onnx" and request.output is None:
        raise InputError("say where the export goes: -o exports/NAME")
    if request.kind not in ("onnx", "monai"):
        return
    _check_given(request)


def _check_given(request: ExportRequest) -> None:
    """The same, of a graph that is there already."""
    if not request.source.exists():
        raise InputError(f"no such file: {request.source}")
    if request.precision != "fp32" or request.graph != GraphOptions():
        raise InputError(
            "--precision, --dynamic-window and --probabilities need a run or --from-nnunet"
        )
    asked = (request.triton, request.monai, request.output, request.sign)
    if not request.targets and not any(asked):
        raise InputError(
            f"{request.source} is an export already: ask for --trt, --triton, --monai or --sign, "
            "or -o exports/NAME"
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


def _export_nnunet(request: ExportRequest, show: ShowProgress) -> ModelFile:
    from leuda_train.export.elsewhere.export_nnunet import export_nnunet

    assert request.output is not None  # `_check`
    with show(f"ONNX {request.precision}") as progress:
        model, _ = export_nnunet(
            request.source,
            request.output,
            scans=request.prove,
            folds=request.folds,
            licence=request.licence,
            precision=request.precision,
            options=request.graph,
            tiling=request.tiling,
            search=request.search is not False,
            progress=progress,
        )
    return model


def _export_monai(request: ExportRequest, show: ShowProgress) -> ModelFile:
    from leuda_train.export.elsewhere.export_monai import export_monai

    assert request.output is not None  # `_check`
    return export_monai(
        request.source,
        request.output,
        scans=request.prove,
        order=request.region_order,
        licence=request.licence,
    )


def _import_onnx(request: ExportRequest, show: ShowProgress) -> ModelFile:
    if request.card is not None and request.output is not None:
        return package_graph(request.source, request.card, request.output)
    return copy_export(request.source, request.output)


def _probes(request: ExportRequest, card: ModelCard) -> Probes | None:
    """The windows that an engine is proven on; None if there is nothing to make them of."""
    if request.prove:
        return probes_of_scans(card, list(request.prove))
    if request.kind == "run":
        from leuda_train.export.export_run import run_probes

        return run_probes(request.source)
    return None
