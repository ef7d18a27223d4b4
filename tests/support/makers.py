"""arrays and changes -> volumes, cards and model files that are small enough to reason on.

The model is one 1x1 convolution. Its three scores are 0, x - t1 and 2x - t1 - t2, so that the
largest one says between which thresholds x lies: its labels are known without running it.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from leuda_deploy.jobs.node.peers import Tls
from leuda_deploy.model.card import ModelCard, Provenance, Structure
from leuda_deploy.model.export_folder import MODEL_FILE
from leuda_deploy.model.model_file import write_model
from leuda_deploy.scans.recipe import Recipe
from leuda_deploy.scans.volume import Volume

THRESHOLDS = (-0.3001, 0.2503)  # on a "minmax" scan, which goes from -1 to 1


class MakeVolume(Protocol):
    """The type of `make_volume`, for tests that take it as a fixture."""

    def __call__(
        self, raw: NDArray[Any], affine: NDArray[np.float64] | None = None, **other: Any
    ) -> Volume: ...


class MakeCard(Protocol):
    """The type of `make_card`."""

    def __call__(self, **other: Any) -> ModelCard: ...


class MakeModel(Protocol):
    """The type of `make_model`."""

    def __call__(self, folder: Path, recipe: Recipe | None = None, **card_fields: Any) -> Path: ...


class MakeAffine(Protocol):
    """The type of `oblique_affine`."""

    def __call__(self, spacing_mm: tuple[float, float, float]) -> NDArray[np.float64]: ...


class ThresholdLabels(Protocol):
    """The type of `threshold_labels`."""

    def __call__(self, values: NDArray[Any]) -> NDArray[np.uint8]: ...


def make_volume(
    raw: NDArray[Any], affine: NDArray[np.float64] | None = None, **other: Any
) -> Volume:
    """A Volume in memory; keyword arguments replace the defaults."""
    settings: dict[str, Any] = {
        "name": "scan",
        "slope": 1.0,
        "inter": 0.0,
        "header": None,
        "shape": raw.shape,
    }
    affine = np.eye(4) if affine is None else affine
    return Volume(raw=raw, affine=affine, **(settings | other))


def organ_with_islands() -> NDArray[np.uint8]:
    """Labels. Class 1: pieces of 64, 8 and 1 voxels. Class 2: one of 27, touching by a corner."""
    labels = np.zeros((20, 20, 20), dtype=np.uint8)
    labels[0:4, 0:4, 0:4] = 1
    labels[10:12, 10:12, 10:12] = 1
    labels[19, 19, 19] = 1
    labels[4:7, 4:7, 4:7] = 2
    return labels


def make_card(**other: Any) -> ModelCard:
    """A valid card for two structures; keyword arguments replace its fields."""
    colours = ((230, 159, 0), (86, 180, 233))
    fields: dict[str, Any] = {
        "name": "thresholds",
        "modality": "CT",
        "recipe": Recipe(
            slice_axis="superior",
            spacing_mm="native",
            window=(16, 16),
            clip_percentiles=(0.0, 100.0),
            normalisation="minmax",
        ),
        "structures": tuple(
            Structure(name=name, value=value, colour=colours[value - 1])
            for value, name in enumerate(("grey", "bright"), start=1)
        ),
        "feed": "target",
        "opset": 20,
        "licence": "MIT",
        "provenance": Provenance(
            method="none",
            network="thresholds",
            cohort="none",
            cohort_sha256="0" * 64,
            config={"thresholds": list(THRESHOLDS)},
            seed=0,
            steps=0,
            created="2026-01-01",
            versions={},
        ),
        "sha256": "0" * 64,
    }
    return ModelCard(**(fields | other))


def make_model(folder: Path, recipe: Recipe | None = None, **card_fields: Any) -> Path:
    """Write the threshold model with its card into a folder; returns the model file.

    With a `depth` in the card it is a 3D graph.
    """
    card = make_card(**({"recipe": recipe} if recipe else {}), **card_fields)
    low, high = THRESHOLDS
    sides = [None] * len(card.window)
    weight = np.array([0, 1, 2], dtype=np.float32).reshape(3, 1, *(1 for _ in sides))
    bias = np.array([0, -low, -low - high], dtype=np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["windows", "weight", "bias"], ["logits"])],
        "thresholds",
        [helper.make_tensor_value_info("windows", TensorProto.FLOAT, ["batch", 1, *sides])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3, *sides])],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(bias, "bias")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    path = folder / MODEL_FILE
    write_model(model, card, path)
    return path


def threshold_labels(values: NDArray[Any]) -> NDArray[np.uint8]:
    """What the threshold model must say of a scan at native spacing, worked out directly."""
    values = np.asarray(values, dtype=np.float64)
    low, high = values.min(), values.max()
    x = 2 * (values - low) / (high - low) - 1
    gap = min(float(np.abs(x - threshold).min()) for threshold in THRESHOLDS)
    assert gap > 1e-5, "the test scan has a voxel on a threshold, where float32 may differ"
    return np.sum([x > threshold for threshold in THRESHOLDS], axis=0, dtype=np.uint8)


def oblique_affine(spacing_mm: tuple[float, float, float]) -> NDArray[np.float64]:
    """RAS-like axes, turned by 20 degrees about z and 10 about x."""
    about_z, about_x = np.radians(20), np.radians(10)
    turn_z = [
        [np.cos(about_z), -np.sin(about_z), 0],
        [np.sin(about_z), np.cos(about_z), 0],
        [0, 0, 1],
    ]
    turn_x = [
        [1, 0, 0],
        [0, np.cos(about_x), -np.sin(about_x)],
        [0, np.sin(about_x), np.cos(about_x)],
    ]
    affine = np.eye(4)
    affine[:3, :3] = np.array(turn_z) @ np.array(turn_x) @ np.diag(spacing_mm)
    affine[:3, 3] = (-40.0, 12.5, 7.25)
    return affine


def quiet(done: int, total: int, note: str) -> None:
    """A progress callback that tells nobody."""


def random_network(*channels: int, seed: int = 0) -> onnx.ModelProto:
    """Windows (B, 1, 16, 16) -> scores (B, last of channels, 16, 16).

    3x3 convolutions conv0, conv1, ... from one of `channels` to the next, random weights w0, w1,
    ..., and nothing between them.
    """
    rng = np.random.default_rng(seed)
    names = ["windows", *(f"features{k}" for k in range(1, len(channels) - 1)), "logits"]
    nodes, weights = [], []
    for k, (width, wider) in enumerate(pairwise(channels)):
        values = rng.normal(size=(wider, width, 3, 3)) / np.sqrt(9 * width)
        weights.append(numpy_helper.from_array(values.astype(np.float32), f"w{k}"))
        ends = [names[k], f"w{k}"], [names[k + 1]]
        nodes.append(helper.make_node("Conv", *ends, name=f"conv{k}", pads=[1, 1, 1, 1]))
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width, 16, 16])
        for name, width in (("windows", channels[0]), ("logits", channels[-1]))
    ]
    graph = helper.make_graph(nodes, "network", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def certificates(folder: Path) -> Tls:
    """A certificate for this computer that is its own authority."""
    x509 = pytest.importorskip("cryptography.x509", reason="cryptography is not installed")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "leuda test")])
    now = datetime.now(UTC)
    address = x509.IPAddress(ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder.mkdir(exist_ok=True)
    pem = serialization.Encoding.PEM
    (folder / "cert.pem").write_bytes(certificate.public_bytes(pem))
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(secret)
    cert = folder / "cert.pem"
    return Tls(certificate=cert, key=folder / "key.pem", authority=cert)
