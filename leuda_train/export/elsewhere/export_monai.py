"""a MONAI bundle with an ONNX graph or a TorchScript -> exports/NAME, checked, or nothing."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from pydantic import ValidationError

from leuda_deploy.engines.engine import Float32
from leuda_deploy.errors import InputError, ModelError, describe, reading
from leuda_deploy.export.import_onnx import package_graph, precision_of, read_graph
from leuda_deploy.machine.files import atomic_folder, write_json
from leuda_deploy.model.card import PALETTE, GraphOptions, ModelCard, Provenance, Structure
from leuda_deploy.model.export_folder import (
    MODEL_FILE,
    PARITY_FILE,
    check_replaceable,
    write_manifest,
)
from leuda_deploy.model.model_file import ModelFile
from leuda_deploy.proof.parity import BY_WINDOW, Parity, run_windows
from leuda_deploy.proof.probes import probes_of_scans
from leuda_deploy.proof.prove import Reference, prove
from leuda_train.export.elsewhere.monai_bundle import Bundle, read_bundle
from leuda_train.export.elsewhere.torchscript import load_torchscript

OPSET = 18


def export_monai(
    folder: Path,
    out: Path,
    *,
    scans: Sequence[Path] = (),
    order: Sequence[str] = (),
    licence: str = "not stated",
) -> ModelFile:
    """Export the network of a MONAI bundle.

    Args:
        folder: The bundle.
        out: The export folder.
        scans: Whose windows a TorchScript's export is proven on. An ONNX graph is run on noise, as
            any graph from elsewhere.
        order: Of regions: their names, each before those that are shown over it in a label map.
        licence: Of the weights.

    Raises:
        ModelError: The bundle does what no card can say, or its network is not what it says.
        InputError: Regions have no order, a TorchScript no scan, or `out` holds something else.
        ParityError: The graph disagrees with the TorchScript.
    """
    check_replaceable(out)
    bundle = read_bundle(folder)
    script = bundle.graph.suffix == ".ts"
    if script and not scans:
        raise InputError(f"{bundle.graph} has no scans to prove its export on: --prove SCAN.nii.gz")
    places = _places(bundle, order)
    with tempfile.TemporaryDirectory(prefix="leuda-monai-") as temporary:
        path, card_file = Path(temporary) / "graph.onnx", Path(temporary) / "card.json"
        graph = read_graph(_from_torchscript(bundle, path) if script else bundle.graph)
        _fit(graph, bundle, places)
        onnx.save(graph, path)
        card = _card(bundle, graph, [bundle.scores[place] for place in places], out.name, licence)
        card_file.write_text(card.model_dump_json(), encoding="utf-8")
        if not script:
            return package_graph(path, card_file, out)
        proven = package_graph(path, card_file, Path(temporary) / "export")
        proof = _prove(proven, bundle, places, scans)
        with atomic_folder(out) as final:
            shutil.copytree(proven.folder, final, dirs_exist_ok=True)
            write_json(final / PARITY_FILE, {"stages": [parity.as_dict() for parity in proof]})
            write_manifest(final, known={MODEL_FILE: proven.sha256})
    return replace(proven, path=out / MODEL_FILE)


def _places(bundle: Bundle, order: Sequence[str]) -> list[int]:
    """Which of the bundle's scores become those of the graph, in order. Raises InputError."""
    if not bundle.regions:
        if order:
            raise InputError("--region-order: the structures of this bundle do not overlap")
        return list(range(len(bundle.scores)))
    if len(bundle.scores) == 1:
        return [0]
    if sorted(order) != sorted(bundle.scores):
        raise InputError(
            f"its regions overlap; say which is shown over which, the largest first: "
            f"--region-order '{','.join(bundle.scores)}' in another order"
        )
    return [bundle.scores.index(name) for name in order]


def _from_torchscript(bundle: Bundle, path: Path) -> Path:
    """Write its ONNX graph. Raises ModelError."""
    import torch

    script = _script(bundle)
    example = torch.zeros(2, max(1, len(bundle.channels)), *_window(bundle))
    open_batch = {"windows": {0: "batch"}, "logits": {0: "batch"}}
    with (
        reading(lambda what: ModelError(f"{bundle.graph} cannot become ONNX: {what}")),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # of scripts, the older exporter alone makes graphs
        torch.onnx.export(
            script,
            (example,),
            path,
            dynamo=False,
            opset_version=OPSET,
            input_names=["windows"],
            output_names=["logits"],
            dynamic_axes=open_batch,
        )
    return path


def _script(bundle: Bundle) -> Any:
    with (
        reading(lambda what: ModelError(f"{bundle.graph} is no TorchScript: {what}")),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # it is said to be deprecated; bundles hold it
        return load_torchscript(bundle.graph).eval().float()


def _window(bundle: Bundle) -> tuple[int, ...]:
    return (bundle.depth.slices, *bundle.recipe.window)


def _fit(graph: onnx.ModelProto, bundle: Bundle, places: Sequence[int]) -> None:
    """Have the graph read -1 to 1 and give its regions in order, where the bundle's does not."""
    nodes, inner = graph.graph.node, graph.graph
    if bundle.zero_to_one:
        entry = inner.input[0].name
        for node in nodes:
            node.input[:] = ["leuda_zero_to_one" if name == entry else name for name in node.input]
        half = helper.make_tensor("leuda_half", TensorProto.FLOAT, [], [0.5])
        inner.initializer.append(half)
        nodes.insert(0, helper.make_node("Mul", [entry, "leuda_half"], ["leuda_scaled"]))
        ends = ["leuda_scaled", "leuda_half"], ["leuda_zero_to_one"]
        nodes.insert(1, helper.make_node("Add", *ends))
    if list(places) != sorted(places):
        scores = inner.output[0].name
        for node in nodes:
            node.output[:] = ["leuda_unordered" if name == scores else name for name in node.output]
            node.input[:] = ["leuda_unordered" if name == scores else name for name in node.input]
        inner.initializer.append(
            helper.make_tensor("leuda_order", TensorProto.INT64, [len(places)], places)
        )
        ends = ["leuda_unordered", "leuda_order"], [scores]
        nodes.append(helper.make_node("Gather", *ends, axis=1))


def _prove(
    model: ModelFile, bundle: Bundle, places: Sequence[int], scans: Sequence[Path]
) -> tuple[Parity, ...]:
    """Compare the export with the TorchScript on windows of scans. Raises ParityError."""
    import torch

    script, probes = _script(bundle), probes_of_scans(model.card, scans)

    @torch.no_grad()
    def engine(windows: Float32) -> Float32:
        given = torch.from_numpy(windows)
        scores: Float32 = script(0.5 * given + 0.5 if bundle.zero_to_one else given).numpy()
        return np.ascontiguousarray(scores[:, places])

    reference = Reference(
        title="TorchScript fp32",
        probes=probes,
        scores=run_windows(engine, probes.windows),
        tolerances=BY_WINDOW,
    )
    return prove(model, reference)


def _card(
    bundle: Bundle, graph: onnx.ModelProto, scores: Sequence[str], name: str, licence: str
) -> ModelCard:
    """Raises ModelError."""
    packages = ("leuda", "onnx", "numpy")
    names = scores if bundle.regions else scores[1:]
    try:
        return ModelCard(
            name=name,
            modality=bundle.modality,
            recipe=bundle.recipe,
            channels=bundle.channels,
            structures=tuple(
                Structure(name=each, value=value, colour=PALETTE[(value - 1) % len(PALETTE)])
                for value, each in enumerate(names, start=1)
            ),
            feed="target",
            precision=precision_of(graph),
            options=GraphOptions(regions=bundle.regions),
            tiling=bundle.tiling,
            depth=bundle.depth,
            opset=next((entry.version for entry in graph.opset_import if not entry.domain), 1),
            licence=licence,
            provenance=Provenance(
                method=f"MONAI bundle, version {bundle.version}",
                network=bundle.name,
                cohort=bundle.source,
                cohort_sha256="not stated",
                config={"monai_version": bundle.metadata.get("monai_version")},
                seed=0,
                steps=0,
                created=datetime.now(UTC).date().isoformat(),
                versions={package: metadata.version(package) for package in packages},
            ),
            sha256="",
        )
    except ValidationError as error:
        raise ModelError(f"{bundle.name} makes no model card: {describe(error)}") from error
