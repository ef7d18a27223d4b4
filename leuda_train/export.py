"""a finished run -> exports/NAME: model.onnx with its card, kept if it agrees with PyTorch."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch

from leuda_deploy.card import PALETTE, ModelCard, Provenance, Structure
from leuda_deploy.engines import OnnxEngine
from leuda_deploy.model_file import MODEL_FILE
from leuda_deploy.parity import Parity, check_parity, probe_windows
from leuda_deploy.to_onnx import OPSET, to_onnx
from leuda_deploy.volume import atomic_folder
from leuda_train.hardware import Hardware
from leuda_train.product import ProductFacts, TorchEngine, load_product


def export(run: Path, out: Path, *, licence: str = "not stated") -> tuple[ModelCard, Parity]:
    """Write out/model.onnx, out/card.json (the same card, to read) and out/parity.json.

    The folder appears only when ONNX Runtime agrees with PyTorch on real target windows and noise.
    Raises ParityError otherwise, and TrainingError if the run is not finished.
    """
    product, facts, samples = load_product(run)
    card = make_card(facts, out.name, licence, _test_dice(run))
    # the yardstick is float32 on the CPU, wherever and however the run was trained
    reference = TorchEngine(product, Hardware(torch.device("cpu"), "fp32"))
    with atomic_folder(out) as folder:
        card = to_onnx(product, card, folder / MODEL_FILE)
        parity = check_parity(
            reference,
            OnnxEngine(folder / MODEL_FILE),
            probe_windows(samples),
            stage="PyTorch fp32 -> ONNX Runtime CPU fp32",
        )
        (folder / "card.json").write_text(card.model_dump_json(indent=1))
        (folder / "parity.json").write_text(json.dumps(parity.as_dict(), indent=1))
    return card, parity


def make_card(
    facts: ProductFacts, name: str, licence: str, test_dice: dict[str, float] | None
) -> ModelCard:
    """The card of a run's product; the exporter fills in the checksum."""
    structures = tuple(
        Structure(name=structure, value=value, colour=PALETTE[(value - 1) % len(PALETTE)])
        for value, structure in enumerate(facts.structures, start=1)
    )
    provenance = Provenance(
        method=facts.method,
        network=facts.network,
        cohort=facts.cohort,
        cohort_sha256=facts.cohort_sha256,
        config=facts.config,
        seed=facts.seed,
        steps=facts.steps,
        created=datetime.now(UTC).date().isoformat(),
        versions={package: metadata.version(package) for package in ("leuda", "torch", "onnx")},
        test_dice=test_dice,
    )
    return ModelCard(
        name=name,
        modality=facts.modality,
        recipe=facts.recipe,
        structures=structures,
        feed=facts.feed,
        opset=OPSET,
        licence=licence,
        provenance=provenance,
        sha256="",
    )


def _test_dice(run: Path) -> dict[str, float] | None:
    """Mean Dice by structure on the run's test scans, if it was tested."""
    path = run / "evaluation.json"
    if not path.is_file():
        return None
    summary = json.loads(path.read_text()).get("summary")
    if summary is None:
        return None
    rows = summary["as_predicted"]["structures"]
    found = {name: row["dice"] for name, row in rows.items() if row["dice"] is not None}
    return {name: round(dice, 4) for name, dice in found.items()} or None
