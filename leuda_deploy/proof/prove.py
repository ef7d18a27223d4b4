"""model file + reference scores -> what each engine of this CPU makes of it, or a refusal."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec

import onnx

from leuda_deploy.engines.engine import Float32, Scorer
from leuda_deploy.engines.onnx_runtime import OnnxEngine, runs_on_the_cpu
from leuda_deploy.engines.openvino import OpenVinoEngine
from leuda_deploy.errors import LeudaError, MissingExtraError, ParityError
from leuda_deploy.model.card import Precision
from leuda_deploy.model.model_file import ModelFile
from leuda_deploy.proof.layers import first_layer_that_differs
from leuda_deploy.proof.parity import TOLERANCES, Parity, Tolerances, check_parity
from leuda_deploy.proof.probes import Probes
from leuda_deploy.proof.processor import HELD_TO, INSTRUCTIONS

# What counts as another layer when the fault is looked for: several times what rounding does.
LAYER_LIMITS: dict[Precision, float] = {"fp32": 1e-3, "fp16": 1e-2, "int8": 0.25}


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What a model file is held to.

    title   what gave the scores, as a parity report names it: "PyTorch fp32"
    probes  the windows that were scored
    scores  (N, K, h, w) float32, of these windows
    graph   the ONNX graph that gave the scores, or None; with it, a refusal names the first layer
            that differs
    tolerances  how far an engine may be off; None: what is usual for the precision
    """

    title: str
    probes: Probes
    scores: Float32
    graph: onnx.ModelProto | None = None
    tolerances: Tolerances | None = None


def prove(model: ModelFile, reference: Reference) -> tuple[Parity, ...]:
    """Run a model file on each engine of this CPU and compare it with the reference.

    Returns:
        What was found, by engine: ONNX Runtime, then OpenVINO where it is installed.

    Raises:
        ParityError: For the first engine that disagrees.
        MissingExtraError: No installed engine can run the file.
    """
    card = model.card
    found: list[Parity] = []
    for title, engine in _engines(model):
        try:
            parity = check_parity(
                reference.scores,
                engine,
                reference.probes,
                stage=f"{reference.title} -> {title} {card.precision}",
                card=card,
                tolerances=reference.tolerances or TOLERANCES[card.precision],
            )
        except ParityError as error:
            if found:  # another engine computes the same graph rightly: no layer of it is at fault
                raise ParityError(
                    f"{error}; '{found[0].stage}' passed; nothing was kept",
                    figure=error.figure,
                    class_name=error.class_name,
                ) from error
            where = _first_wrong_layer(model, reference, error.window)
            if where is None:
                raise
            raise error.adding(f"{where}; nothing was kept") from error
        found.append(parity)
    return tuple(found)


def prove_held_to(kind: str, model: ModelFile, reference: Reference) -> Parity:
    """As another kind of processor computes it: OpenVINO, held to the instructions of that kind.

    For a process of its own: OpenVINO reads its limit once. ONNX Runtime sums exactly on any kind.

    Raises:
        ParityError: It disagrees with the reference.
        LeudaError: OpenVINO does not keep to the limit.
    """
    os.environ[INSTRUCTIONS] = HELD_TO[kind]
    engine = OpenVinoEngine(model, precision="fp32")
    if any("avx512" in name for name in engine.kernels) != (kind == "x86 AVX-512"):
        kernels = ", ".join(sorted(engine.kernels))
        raise LeudaError(f"OpenVINO was held to {HELD_TO[kind]} and runs {kernels}")
    card = model.card
    return check_parity(
        reference.scores,
        engine,
        reference.probes,
        stage=f"{reference.title} -> OpenVINO as on {kind} {card.precision}",
        card=card,
        tolerances=reference.tolerances or TOLERANCES[card.precision],
    )


def _first_wrong_layer(model: ModelFile, reference: Reference, window: int | None) -> str | None:
    """The first layer that computes something else on this probe; None where it cannot be told."""
    if reference.graph is None or window is None or model.card.precision not in LAYER_LIMITS:
        return None
    probe = reference.probes.windows[window][None]
    limit = LAYER_LIMITS[model.card.precision]
    return first_layer_that_differs(reference.graph, model.graph(), probe, limit=limit)


def _engines(model: ModelFile) -> Iterator[tuple[str, Scorer]]:
    """ONNX Runtime where it runs this precision on the CPU, and OpenVINO where it is installed.

    OpenVINO computes in the precision of the graph. It compiles for seconds, so each engine is
    opened only when the one before has agreed.
    """
    if runs_on_the_cpu(model.card.precision):
        yield "ONNX Runtime CPU", OnnxEngine(model)
    elif find_spec("openvino") is None:
        raise MissingExtraError("proving a bf16 graph", "OpenVINO", "openvino")
    if find_spec("openvino") is not None:
        openvino = OpenVinoEngine(model, precision="fp32")
        if model.card.precision == "bf16" and not openvino.layers["bf16"]:
            raise LeudaError(
                "this processor has no bf16, so a bf16 graph cannot be proven here; export it on "
                "one that has (AVX512-BF16 or AMX), or choose --precision fp16"
            )
        yield "OpenVINO CPU", openvino
