"""a model folder of nnU-Net -> exports/NAME, proven against its network in PyTorch, or nothing.

    TRAINER__PLANS__CONFIGURATION/plans.json, dataset.json, fold_0/checkpoint_final.pth, ...

Several folds become one graph, whose scores are the mean of theirs, as nnU-Net takes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from leuda_deploy.engines.open_engine import reference_engine
from leuda_deploy.errors import InputError, MissingExtraError, ModelError, describe, reading
from leuda_deploy.export.to_onnx import OPSET
from leuda_deploy.machine.progress import Progress, no_progress
from leuda_deploy.model.card import GraphOptions, ModelCard, Precision, Provenance, parse_card
from leuda_deploy.model.export_folder import check_replaceable
from leuda_deploy.model.model_file import ModelFile
from leuda_deploy.model.tiling import DEFAULT_TILING, Tiling
from leuda_deploy.proof.parity import BY_WINDOW, Parity
from leuda_deploy.proof.probes import windows_of_scans
from leuda_train.export.elsewhere.nnunet_plans import Plans, read_plans
from leuda_train.export.proven import write_proven
from leuda_train.export.shortcuts.prove_blocks import with_block_search
from leuda_train.export.shortcuts.whole_scans import named_scans

CHECKPOINT = "checkpoint_final.pth"
# where the classes may come from that a plans.json names
NETWORKS = "dynamic_network_architectures.architectures."
PARTS = "torch.nn."
NORMS = (nn.InstanceNorm2d, nn.InstanceNorm3d)
# what a checkpoint holds besides tensors and primitives: losses, as numbers of numpy
SAFE: list[Any] = [
    np.dtype,
    np.dtypes.Float32DType,
    np.dtypes.Float64DType,
    np.dtypes.Int64DType,
    np._core.multiarray.scalar,  # type: ignore[attr-defined]
]


class AsNnunet(nn.Module):
    """Windows as a recipe has them -> the mean of the folds' logits, on the same axes."""

    def __init__(self, folds: Sequence[nn.Module], *, swap: bool, rescaled: bool) -> None:
        super().__init__()
        self.folds = nn.ModuleList(folds)
        self.swap, self.rescaled = swap, rescaled

    def forward(self, windows: Tensor) -> Tensor:
        """Logits."""
        if self.rescaled:  # -1 to 1 -> 0 to 1
            windows = 0.5 * windows + 0.5
        if self.swap:
            windows = windows.transpose(-1, -2)
        logits: Tensor = self.folds[0](windows)
        for fold in self.folds[1:]:
            logits = logits + fold(windows)
        if len(self.folds) > 1:
            logits = logits / len(self.folds)
        if self.swap:
            logits = logits.transpose(-1, -2)
        return logits


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The checkpoints of the folds that are exported, and what they say of themselves."""

    folds: tuple[str, ...]
    states: tuple[Mapping[str, Tensor], ...]
    configuration: str
    trainer: str
    mirror: tuple[int, ...]
    epochs: int


def export_nnunet(  # noqa: PLR0913  (an option of the command each)
    folder: Path,
    out: Path,
    *,
    scans: Sequence[Path],
    folds: Sequence[str] = (),
    licence: str = "not stated",
    precision: Precision = "fp32",
    options: GraphOptions | None = None,
    tiling: Tiling = DEFAULT_TILING,
    search: bool = True,
    progress: Progress = no_progress,
) -> tuple[ModelFile, Parity]:
    """Export a model that nnU-Net trained.

    Args:
        folder: TRAINER__PLANS__CONFIGURATION, as nnU-Net leaves it.
        out: The export folder.
        scans: Whose windows the export is proven on; int8 takes its ranges from them, too.
        folds: "0", "1" or "all"; none: those that are finished.
        licence: Of the weights.
        precision: What the graph computes in.
        options: Probabilities instead of logits; whether there are regions the plans say.
        tiling: How windows overlap; along which axes they may be mirrored the checkpoint says.
        search: Of a 3D network: label the scans in full, and leave out the windows between others
            that find nothing, if that gives the same labels.
        progress: Told how far the lowering of the precision is.

    Raises:
        ModelError: The folder is not what nnU-Net writes, or does what no recipe can say.
        InputError: There is no scan to prove it on, or `out` holds something else.
        ParityError: The graph disagrees with the network.
        MissingExtraError: dynamic_network_architectures is not installed.
    """
    check_replaceable(out)
    if not scans:
        raise InputError(f"{folder} has no scans to prove its export on: --prove SCAN.nii.gz")
    options = options or GraphOptions()
    if options.dynamic_window:
        raise InputError("--dynamic-window is for runs; nnU-Net's windows are those of its plans")
    trained = read_checkpoints(folder, folds)
    plans = read_plans(folder, trained.configuration)
    if plans.channels and precision == "int8":
        raise InputError("int8 of a network that reads several scans together is not offered")
    network = AsNnunet(
        [build_network(plans, state, trained.trainer) for state in trained.states],
        swap=plans.swap,
        rescaled=plans.rescaled,
    ).eval()
    card = _card(plans, trained, out.name, licence, options, tiling)
    parse_card(card.to_json(), f"the export of {folder}")  # what goes together is checked there
    families = windows_of_scans(card, scans)

    def with_shortcut(model: ModelFile, report: dict[str, object]) -> ModelFile:
        if search and card.depth and card.scan_count == 1 and not card.options.regions:
            named = named_scans(scans, card.recipe, card.depth)
            model, found = with_block_search(model, reference_engine(model), named)
            report["windows_between"] = found
            if found["refused"]:
                report["no_search"] = f"no search is proven: {found['refused']}"
        return model

    return write_proven(
        network,
        card,
        families,
        out,
        precision=precision,
        calibration=np.concatenate([*families.values()]),
        tolerances=BY_WINDOW if any(isinstance(m, NORMS) for m in network.modules()) else None,
        finish=with_shortcut,
        progress=progress,
    )


def read_checkpoints(folder: Path, folds: Sequence[str] = ()) -> Trained:
    """Read the folds' checkpoints; no code in them is run. Raises ModelError."""
    if not folder.is_dir():
        raise ModelError(f"no such folder: {folder}")
    finished = sorted(path.parent.name for path in folder.glob(f"fold_*/{CHECKPOINT}"))
    chosen = [f"fold_{fold}" for fold in folds]
    chosen = chosen or [name for name in finished if name != "fold_all"] or finished
    if not chosen or not {*chosen} <= {*finished}:
        what = ", ".join(sorted({*chosen} - {*finished})) or "no fold"
        raise ModelError(
            f"{folder}: {what} has a {CHECKPOINT}; finished are {', '.join(finished) or 'none'}"
        )
    states = [_load(folder / name / CHECKPOINT) for name in chosen]
    first = states[0]
    with reading(lambda what: ModelError(f"{folder} is not as nnU-Net writes it: {what}")):
        return Trained(
            folds=tuple(name.removeprefix("fold_") for name in chosen),
            states=tuple(state["network_weights"] for state in states),
            configuration=str(first["init_args"]["configuration"]),
            trainer=str(first["trainer_name"]),
            mirror=tuple(first.get("inference_allowed_mirroring_axes") or ()),
            epochs=int(first.get("current_epoch", 0)),
        )


def build_network(plans: Plans, state: Mapping[str, Tensor], trainer: str) -> nn.Module:
    """The network of the plans with these weights. Raises ModelError, MissingExtraError."""
    network = untrained(plans)
    with reading(
        lambda what: ModelError(
            f"the weights do not fit {type(network).__name__} of plans.json; does {trainer} build "
            f"a network of its own? {what}"
        )
    ):
        network.load_state_dict(state)
    return network.eval()


def untrained(plans: Plans) -> nn.Module:
    """The network of the plans with weights at random. Raises ModelError, MissingExtraError."""
    said = plans.architecture
    name = str(said["network_class_name"])
    with reading(lambda what: ModelError(f"cannot build {name} as plans.json says: {what}")):
        arguments = dict(said["arch_kwargs"])
        for key in said["_kw_requires_import"]:
            if arguments[key] is not None:
                arguments[key] = _class(arguments[key], PARTS)
        network: nn.Module = _class(name, NETWORKS)(
            input_channels=max(1, len(plans.channels)),
            num_classes=len(plans.structures) + (not plans.regions),
            deep_supervision=False,
            **arguments,
        )
    return network


def _class(name: str, home: str) -> Any:
    """A class by name. A file from elsewhere names no other modules than those under `home`."""
    if not name.startswith(home):
        raise ModelError(f"plans.json names {name}, and only classes of {home[:-1]} are built")
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith("dynamic_network_architectures"):
            raise MissingExtraError(
                "a network of nnU-Net", "dynamic_network_architectures", "nnunet"
            ) from error
        raise


def _load(path: Path) -> Any:
    with (
        reading(lambda what: ModelError(f"{path} cannot be read: {what}")),
        torch.serialization.safe_globals(SAFE),
    ):
        return torch.load(path, map_location="cpu", weights_only=True)


def _card(
    plans: Plans,
    trained: Trained,
    name: str,
    licence: str,
    options: GraphOptions,
    tiling: Tiling,
) -> ModelCard:
    blending = "nnunet" if tiling.blending == "gaussian" else tiling.blending
    packages = ("leuda", "torch", "onnx", "dynamic_network_architectures")
    try:
        provenance = Provenance(
            method=f"nnU-Net, {trained.trainer}, {plans.name}",
            network=str(plans.architecture["network_class_name"]).rpartition(".")[2],
            cohort=plans.dataset,
            cohort_sha256="not stated",
            config={
                "folds": list(trained.folds),
                "epochs": trained.epochs,
                "configuration": dict(plans.configuration),
            },
            seed=0,
            steps=0,
            created=datetime.now(UTC).date().isoformat(),
            versions={package: metadata.version(package) for package in packages},
        )
        return ModelCard(
            name=name,
            modality=plans.modality,
            recipe=plans.recipe,
            channels=plans.channels,
            structures=plans.structures,
            feed="target",
            options=options.model_copy(update={"regions": plans.regions}),
            tiling=tiling.model_copy(
                update={
                    "blending": blending,
                    "mirror": plans.mirror_axes(trained.mirror),
                }
            ),
            depth=plans.depth,
            opset=OPSET,
            licence=licence,
            provenance=provenance,
            sha256="",
        )
    except ValidationError as error:
        raise ModelError(f"{plans.dataset} makes no model card: {describe(error)}") from error
