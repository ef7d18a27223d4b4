"""a torch module and its card -> an export folder, proven form by form, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from leuda_deploy.engines.engine import Float32, Scorer
from leuda_deploy.errors import ParityError
from leuda_deploy.export.lower_precision import lower_precision
from leuda_deploy.export.to_onnx import WithSoftmax, to_onnx
from leuda_deploy.machine.files import atomic_folder, write_json
from leuda_deploy.machine.progress import Progress, no_progress
from leuda_deploy.model.card import ModelCard, Precision
from leuda_deploy.model.export_folder import (
    CARD_FILE,
    MODEL_FILE,
    PARITY_FILE,
    check_replaceable,
    write_manifest,
)
from leuda_deploy.model.model_file import ModelFile
from leuda_deploy.proof.parity import Parity, Tolerances, run_windows
from leuda_deploy.proof.probes import make_probes
from leuda_deploy.proof.prove import LAYER_LIMITS, Reference, prove
from leuda_train.export.first_wrong_layer import first_layer_that_differs

Finish = Callable[[ModelFile, dict[str, object]], ModelFile]


def write_proven(  # noqa: PLR0913  (what its two callers differ in)
    network: torch.nn.Module,
    card: ModelCard,
    families: Mapping[str, Float32],
    out: Path,
    *,
    precision: Precision = "fp32",
    calibration: Float32,
    tolerances: Tolerances | None = None,
    finish: Finish | None = None,
    progress: Progress = no_progress,
) -> tuple[ModelFile, Parity]:
    """Write model.onnx, card.json, parity.json and the manifest, if each form agrees with the last.

    Args:
        network: Windows (B, C, *window) -> logits (B, K, *window).
        card: What it is. Whether empty windows may be left out is found here.
        families: Windows (n, *window), or (n, C, *window), by image family, to compare on.
        out: The export folder.
        precision: What the graph computes in.
        calibration: Windows (n, *window) that int8 takes its ranges from.
        tolerances: How far the fp32 graph may be off; None: what is usual.
        finish: What else is proven of the model file, and said in parity.json.
        progress: Told how far the lowering of the precision is.

    Raises:
        ParityError: Two forms disagree; nothing is kept.
        InputError: `out` holds something that is not an export.
    """
    check_replaceable(out)
    module = WithSoftmax(network) if card.options.output == "probabilities" else network
    probes = make_probes(families, several_channels=card.scan_count > 1)
    module.eval()

    @torch.no_grad()
    def engine(windows: Float32) -> Float32:
        """The yardstick: float32 on the CPU, wherever and however the network was trained."""
        scores: Float32 = module(torch.from_numpy(windows)).numpy()
        return scores

    reference = Reference(
        title="PyTorch fp32",
        probes=probes,
        scores=run_windows(engine, probes.windows),
        tolerances=tolerances,
    )
    simple = card.scan_count == 1 and not card.options.regions
    alone = simple and scores_windows_alone(engine, probes.windows)
    card = card.model_copy(update={"tiling": card.tiling.model_copy(update={"skip_floor": alone})})
    with atomic_folder(out) as folder:
        path = folder / MODEL_FILE
        model = to_onnx(module, card, path)
        parities = _prove_onnx(model, module, reference)
        report: dict[str, object] = {}
        if precision != "fp32":
            found = lower_precision(
                replace(reference, title="ONNX fp32", graph=model.graph(), tolerances=None),
                model.card,
                precision,
                path,
                calibration=calibration,
                progress=progress,
            )
            model, parities = found.model, (*parities, *found.parities)
            if precision == "int8":
                report["int8_layers"] = found.int8_layers
                report["lifted_layers"] = found.lifted_layers
        if finish is not None:
            model = finish(model, report)
        report = {"stages": [parity.as_dict() for parity in parities], **report}
        (folder / CARD_FILE).write_text(model.card.model_dump_json(indent=1))
        write_json(folder / PARITY_FILE, report)
        write_manifest(folder, known={MODEL_FILE: model.sha256})
    return replace(model, path=out / MODEL_FILE), parities[-1]


def scores_windows_alone(engine: Scorer, windows: NDArray[np.float32]) -> bool:
    """Whether an empty window is scored alike by itself and among others (N, 1, h, w).

    If so, the scores of one empty window stand for all of a scan: they differ by rounding alone, by
    less than a tenth of what the winning class is ahead anywhere in it.
    """
    empty = np.full_like(windows[:1], windows.min())
    alone, among = engine(empty), engine(np.concatenate([windows[:3], empty]))[3:]
    ranked = np.sort(alone, axis=1)
    return bool(np.abs(alone - among).max() < (ranked[:, -1] - ranked[:, -2]).min() / 10)


def _prove_onnx(
    model: ModelFile, module: torch.nn.Module, reference: Reference
) -> tuple[Parity, ...]:
    """The first stage; a refusal names the first layer that the graph does not compute."""
    try:
        return prove(model, reference)
    except ParityError as error:
        if error.window is None:
            raise
        window = reference.probes.windows[error.window][None]
        where = first_layer_that_differs(module, model.graph(), window, limit=LAYER_LIMITS["fp32"])
        raise error.adding(f"{where}; nothing was kept") from error
