"""a network on engine after engine -> how far each is off PyTorch fp32 on the CPU, and how fast.

Parity is in units of the scores' spread; see `Tolerances`. On a GPU convolutions of PyTorch, ONNX
Runtime and TensorRT in "fp32" may use TF32, which has the mantissa of fp16. So a row says which
precision's tolerances it meets, whatever it calls itself. Latency is from host array to host
array, as leuda uses an engine, each call beside one of PyTorch eager, in turn.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from math import inf
from typing import Any, get_args

import numpy as np
import torch
from export_matrix import interleaved

from leuda_deploy.engines.engine import Float32, Scorer
from leuda_deploy.engines.onnx_runtime import OnnxEngine
from leuda_deploy.engines.tensorrt.engine import EXTRAS, TensorRTEngine
from leuda_deploy.export.add_engines import add_engines
from leuda_deploy.export.to_tensorrt import THIS_MACHINE, EngineTarget
from leuda_deploy.machine.gpu import find_gpu
from leuda_deploy.model.card import Precision
from leuda_deploy.model.model_file import ModelFile
from leuda_deploy.model.passport import Family
from leuda_deploy.proof.parity import TOLERANCES, Parity, Tolerances, check_parity
from leuda_train.loop.hardware import Hardware
from leuda_train.loop.hardware import Precision as AutocastPrecision
from leuda_train.networks.product import TorchEngine
from parts.networks import PRECISIONS, Made, make, names
from parts.plan import Folder, Setting
from parts.rows import AbsentError, Row, Rows

# figures are wanted, also bad ones
ANYTHING = Tolerances(max_abs=inf, mean_abs=inf, made_up_max_abs=inf, disagreement=inf, dice=-inf)
FINEST_FIRST: tuple[Precision, ...] = ("fp32", "fp16", "bf16")
FIGURES = ("max_abs", "mean_abs", "made_up_max_abs", "disagreement")
BATCHES = (1, 8)


def pytorch(day: Folder, setting: Setting, rows: Rows) -> None:
    """Eager as torch has it, without TF32, and AMP."""
    device = torch.device(setting.device)
    kinds: dict[str, tuple[AutocastPrecision, bool]] = {
        "PyTorch eager": ("fp32", True),
        "PyTorch AMP bf16": ("bf16", True),
    }
    if device.type == "cuda":
        kinds["PyTorch eager, no TF32"] = "fp32", False
        kinds["PyTorch AMP fp16"] = "fp16", True
    for name in names(setting):
        made = make(day, setting, name)
        for title, (precision, fast) in kinds.items():

            def open_one(
                precision: AutocastPrecision = precision, fast: bool = fast, made: Made = made
            ) -> tuple[Scorer, str]:
                engine = TorchEngine(made.product, Hardware(device, precision))
                return with_tf32(engine, fast), str(engine.hardware)

            compare(rows, made, setting, title, open_one, precision)


def onnx_runtime(day: Folder, setting: Setting, rows: Rows) -> None:
    """CUDA; in a dry run the CPU, under that name."""
    provider: Any = "cpu" if setting.dry_run else "cuda"
    for name in names(setting):
        made = make(day, setting, name)
        for precision in PRECISIONS:

            def open_one(precision: str = precision, made: Made = made) -> tuple[Scorer, str]:
                engine = OnnxEngine(made.model(precision), provider)
                return engine, engine.description

            title = f"ONNX Runtime {provider.upper()} {precision}"
            compare(rows, made, setting, title, open_one, precision)


def tensorrt(day: Folder, setting: Setting, rows: Rows) -> None:
    """Each TensorRT that is installed; its engine is built beside a copy of the model file."""
    for name in names(setting):
        made = make(day, setting, name)
        for family in get_args(Family):
            for precision in PRECISIONS:

                def open_one(
                    family: Family = family, precision: str = precision, made: Made = made
                ) -> tuple[Scorer, str]:
                    return build(made, family, precision)

                title = f"{family} {precision}"
                compare(rows, made, setting, title, open_one, precision)


def build(made: Made, family: Family, precision: str) -> tuple[Scorer, str]:
    """The engine for this GPU, built or as an earlier process built it."""
    if find_spec(family) is None:
        raise AbsentError(f"{family} is not installed: pip install 'leuda[{EXTRAS[family]}]'")
    gpu = find_gpu()
    if gpu is None:
        raise AbsentError(f"{family} needs an NVIDIA GPU")
    folder = made.folder / f"{precision}-{family}"
    if not folder.is_dir():
        shutil.copytree(made.folder / precision, folder)
    target = EngineTarget(family=family, name=THIS_MACHINE, capability=gpu.capability, gpu=gpu.name)
    passport = add_engines(ModelFile.open(folder), [target], probes=None)[target.file_name]
    engine = TensorRTEngine(ModelFile.open(folder), target.file_name, unproven=True)
    return engine, f"{engine.description}, built in {passport.build_seconds:.0f} s"


def compare(
    rows: Rows,
    made: Made,
    setting: Setting,
    title: str,
    open_one: Callable[[], tuple[Scorer, str]],
    precision: str,
) -> None:
    """One row: open the engine, compare its scores with the yardstick's, time it."""

    def measure() -> Row:
        scorer, description = open_one()
        card = made.model("fp32").card
        parity = check_parity(
            made.expected,
            scorer,
            made.probes,
            stage=title,
            card=card,
            tolerances=ANYTHING,
        )
        return {
            "description": description,
            "meets": meets(parity),
            **{name: float(f"{getattr(parity, name):.3g}") for name in FIGURES},
            "worst_dice": round(worst_dice(parity), 5),
            "windows": parity.windows,
            "latency": latency(scorer, made, setting),
        }

    rows.measure(
        f"{made.name}: {title}", measure, network=made.name, engine=title, precision=precision
    )


def worst_dice(parity: Parity) -> float:
    """Of the classes that are there, between the two label maps."""
    return min(dice for dice in parity.class_dice.values() if dice is not None)


def meets(parity: Parity) -> Precision | None:
    """The finest precision whose tolerances hold; None if none does."""
    for precision in FINEST_FIRST:
        allowed = TOLERANCES[precision]
        near = all(getattr(parity, name) <= getattr(allowed, name) for name in FIGURES)
        if near and worst_dice(parity) >= allowed.dice:
            return precision
    return None


def latency(scorer: Scorer, made: Made, setting: Setting) -> dict[str, Row]:
    """Milliseconds a call by batch, with PyTorch eager between the calls."""
    eager = TorchEngine(made.product, Hardware(torch.device(setting.device), "fp32"))
    windows = made.probes.windows[: made.probes.real]
    rounds = 2 if setting.dry_run else 40
    found = {}
    for batch in BATCHES:
        some = np.ascontiguousarray(np.resize(windows, (batch, *windows.shape[1:])))
        times = interleaved({("eager", ""): eager, ("this", ""): scorer}, some, rounds)
        ours, theirs = times["this", ""], times["eager", ""]
        found[str(batch)] = {
            "ms": ours,
            "eager_ms": theirs,
            "times_eager": round(theirs["p50"] / max(ours["p50"], 1e-3), 2),
        }
    return found


def with_tf32(engine: Scorer, allowed: bool) -> Scorer:
    """The same engine; its convolutions may use TF32, or not."""

    def scores(windows: Float32) -> Float32:
        with _tf32(allowed):
            return engine(windows)

    return scores


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
