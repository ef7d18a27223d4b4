"""a made CT with four structures -> scans for the benchmarks, and a U-Net trained to label them.

The structures are discs of wavy outline in a body, blurred as a scanner blurs (Gaussian, 0.8
pixels) before white noise is added; they swell and turn along z. In a long scan they fill some of
the slices alone, and taper off towards their ends as organs do.
"""

from __future__ import annotations

import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy.ndimage import gaussian_filter

WINDOW, SPACING_MM, PIXEL_MM, SIZE = 256, 1.5, 0.75, 512
MULTIPLE = 16  # of its sides, the windows that a U-Net of five levels takes
WIDTHS = (32, 64, 128, 256, 512)
STRUCTURES = ("liver", "spleen", "kidney", "vertebra")
# centre (x, y) and radius as shares of the plane, and Hounsfield units, of body and structures
DISCS = (
    (0.50, 0.50, 0.42, 20.0),
    (0.36, 0.42, 0.14, 110.0),
    (0.68, 0.40, 0.09, 160.0),
    (0.60, 0.64, 0.06, 220.0),
    (0.46, 0.76, 0.08, 400.0),  # above a hundredth of every slice: the clip limit lies in it
)
# where each structure begins and ends, as shares of the slices that are filled
ROWS = ((0.0, 1.0), (0.1, 0.75), (0.3, 1.0), (0.0, 1.0))
BLUR_PIXELS, NOISE_HU = 0.8, 20.0
# training: slices, crops a step and their side, steps, Adam's largest step
SLICES, BATCH, CROP, STEPS, RATE = 48, 4, 128, 300, 3e-3


def anatomy(
    z: float, size: int, scales: tuple[float, ...] = (1.0,) * 4
) -> tuple[np.ndarray, np.ndarray]:
    """One axial slice (size, size) in Hounsfield units, unblurred, and its labels; z's period is 1.

    The same field of view at any size: pixel centres lie at (i + 0.5) / size.

    scales  of each structure's radius; 0: it is not in this slice
    """
    y, x = (np.mgrid[:size, :size] + 0.5) / size
    image, labels = np.full((size, size), -1000.0, np.float32), np.zeros((size, size), np.uint8)
    for k, (cx, cy, radius, value) in enumerate(DISCS):
        swell = 1 + 0.25 * np.sin(2 * np.pi * (z + 0.17 * k)) * (k > 0)
        wave = 1 + 0.12 * np.sin(5 * np.arctan2(y - cy, x - cx) + 6.3 * z + k)
        scale = scales[k - 1] if k else 1.0
        inside = np.hypot(x - cx, y - cy) < radius * swell * wave * scale
        image[inside], labels[inside] = value, k
    return image, labels


def ct_slice(
    z: float, rng: np.random.Generator, scales: tuple[float, ...] = (1.0,) * 4
) -> np.ndarray:
    """One slice as scanned: (512, 512) Hounsfield units, blurred, with noise."""
    image = gaussian_filter(anatomy(z, SIZE, scales)[0], BLUR_PIXELS)
    return image + rng.normal(0, NOISE_HU, (SIZE, SIZE))


def write_scan(
    path: Path, slices: int, *, filled: range | None = None, spacing_mm: float = 1.0, seed: int = 0
) -> None:
    """A CT of 512 x 512 x slices int16, axial, as scanners store it (LPS).

    filled  the slices that hold structures, which taper off; None: all, and none does
    """
    rng = np.random.default_rng(seed)
    voxels = np.empty((SIZE, SIZE, slices), np.int16, order="F")
    for k in range(slices):
        scales = (1.0,) * 4 if filled is None else scales_at(k, filled)
        voxels[:, :, k] = ct_slice(place(k * spacing_mm), rng, scales).T.round()
    nib.save(nib.Nifti1Image(voxels, affine(slices, spacing_mm)), path)


def scales_at(k: int, filled: range) -> tuple[float, ...]:
    """Of each structure's radius in slice k: an ellipse along its row, 0 outside of it."""
    share = (k + 0.5 - filled.start) / len(filled)
    from_centre = ((2 * share - first - last) / (last - first) for first, last in ROWS)
    return tuple(max(0.0, 1 - x * x) ** 0.5 for x in from_centre)


def affine(slices: int, spacing_mm: float = 1.0) -> np.ndarray:
    """Axial, the patient in the middle, as it comes from a scanner."""
    made = np.diag([-PIXEL_MM, -PIXEL_MM, spacing_mm, 1.0])
    made[:3, 3] = PIXEL_MM * SIZE / 2, PIXEL_MM * SIZE / 2, -slices * spacing_mm / 2
    return made


def place(k: float) -> float:
    """The z of slice k of a scan, of slices 1 mm apart."""
    return k / 150


def recipe(clip_percentiles: tuple[float, float] = (0.5, 99.5)) -> Any:
    """In-plane resampling to 1.5 mm, windows of 256."""
    from leuda_deploy.scans.recipe import Recipe

    return Recipe(
        slice_axis="superior",
        spacing_mm=(SPACING_MM, SPACING_MM),
        window=(WINDOW, WINDOW),
        clip_percentiles=clip_percentiles,
        normalisation="minmax",
    )


def train_network(classes: int, widths: tuple[int, ...], steps: int) -> Any:
    """A U-Net trained on crops of made slices (steps = 0: left as it was born).

    Half of the slices are resampled as leuda does it, half are means of 2 x 2 pixels as MONAI's
    linear interpolation between pixels gives them: the network is made for neither way alone.
    """
    import torch

    from leuda_train.networks.unet import UNet

    torch.manual_seed(0)
    network = UNet(classes, widths, (0.0,) * len(widths))
    if steps == 0:
        return network.eval()
    network, rng = network.to(memory_format=torch.channels_last), np.random.default_rng(1)
    images, labels = training_slices(rng)
    optimiser = torch.optim.Adam(network.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps)
    began = time.perf_counter()
    for step in range(steps):
        index = rng.integers(len(images), size=BATCH)
        corners = rng.integers(0, WINDOW - CROP + 1, size=(BATCH, 2))
        part = [
            (i, slice(y, y + CROP), slice(x, x + CROP))
            for i, (y, x) in zip(index, corners, strict=True)
        ]
        batch = torch.from_numpy(np.stack([images[p] for p in part])[:, None])
        truth = torch.from_numpy(np.stack([labels[p] for p in part]).astype(np.int64))
        with torch.autocast("cpu", torch.bfloat16):
            logits, _ = network(batch.to(memory_format=torch.channels_last))
        loss = torch.nn.functional.cross_entropy(logits.float(), truth)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 20 == 19:
            spent = time.perf_counter() - began
            print(f"step {step + 1}/{steps} loss {loss:.4f}, {spent:.0f} s", file=sys.stderr)
    return network.to(memory_format=torch.contiguous_format).eval()


def set_by_hand(network: Any) -> None:
    """Weights of a U-Net that labels by intensity, the rest left as it was born: all is computed.

    Channel 0 of the first level is the mean of 3 x 3 pixels, plus 1. It goes through the uppermost
    skip, and the scores are lines of it whose maximum changes where one structure gives way to the
    next. For scans whose least and largest values become -1 and 1.
    """
    import torch

    low, high = -1000 - 5.5 * NOISE_HU, DISCS[-1][3] + 5.5 * NOISE_HU
    between = [(one[3] + other[3]) / 2 for one, other in pairwise(DISCS)]
    limits = [2 * (hu - low) / (high - low) for hu in between]  # of x + 1
    skip_level = network.decoder[-1]
    with torch.no_grad():
        for layer in (network.encoder[0][0], network.encoder[0][4], skip_level[0], skip_level[4]):
            layer.weight[0], layer.bias[0] = 0.0, 0.0
            layer.weight[0, 0, 1, 1] = 1.0
        network.encoder[0][0].weight[0, 0] = 1 / 9
        network.encoder[0][0].bias[0] = 1.0
        network.output.weight.zero_()
        for k in range(len(DISCS)):
            network.output.weight[k, 0, 1, 1] = float(k)
            network.output.bias[k] = -sum(limits[:k])


def training_slices(rng: np.random.Generator, count: int = SLICES) -> tuple[np.ndarray, np.ndarray]:
    """Normalised slices (N, 256, 256) float32 at places between those of the scans, and labels."""
    from leuda_deploy.scans.stack import Stack
    from leuda_deploy.scans.volume import volume_of

    places = [(2 * k + 1) / count for k in range(count)]
    voxels = np.stack([ct_slice(z, rng).T for z in places], axis=-1).round().astype(np.int16)
    stack = Stack(volume_of(voxels, affine(count)), recipe())
    images = stack.images(0, count)
    for k in range(0, count, 2):
        whole = stack.intensity(voxels[:, :, k].T.astype(np.float32))
        images[k] = whole.reshape(WINDOW, 2, WINDOW, 2).mean(axis=(1, 3))
    return images, np.stack([anatomy(z, WINDOW)[1] for z in places])


def card_of(name: str, classes: int, steps: int, *, by_hand: bool = False) -> Any:
    """The card of a model of the made CT; the exporter fills in the checksum."""
    from leuda_deploy.model.card import PALETTE, GraphOptions, ModelCard, Provenance, Structure

    names = STRUCTURES if classes == 5 else tuple(f"structure {k}" for k in range(1, classes))
    return ModelCard(
        name=name,
        modality="CT",
        recipe=recipe((0.0, 100.0)) if by_hand else recipe(),
        structures=tuple(
            Structure(name=structure, value=k, colour=PALETTE[k % len(PALETTE)])
            for k, structure in enumerate(names, start=1)
        ),
        feed="target",
        # what `leuda export --dynamic-window` writes: slices may be scored whole
        options=GraphOptions(dynamic_window=by_hand, window_multiple=MULTIPLE if by_hand else 1),
        opset=20,
        licence="MIT",
        sha256="",
        provenance=Provenance(
            method="benchmark",
            network="unet",
            cohort="made",
            cohort_sha256="",
            config={},
            seed=0,
            steps=steps,
            created="",
            versions={},
        ),
    )


def write_model(
    folder: Path, classes: int, widths: tuple[int, ...], steps: int, *, by_hand: bool = False
) -> None:
    """The same weights as a leuda model file and as torch.save writes them.

    by_hand  not trained, but set so that it labels (`set_by_hand`)
    """
    import torch

    from leuda_deploy.export.to_onnx import to_onnx
    from leuda_deploy.model.export_folder import MODEL_FILE
    from leuda_train.networks.product import DeployedNetwork

    network = train_network(classes, widths, steps)
    if by_hand:
        set_by_hand(network)
    card = card_of(folder.name, classes, steps, by_hand=by_hand)
    to_onnx(DeployedNetwork(network, None), card, folder / MODEL_FILE)
    torch.save(network.state_dict(), folder / "network.pt")


def write_int8(source: Path, folder: Path) -> None:
    """A model of `write_model` in int8, as `leuda export --precision int8` does and proves it."""

    from leuda_deploy.engines.onnx_runtime import OnnxEngine
    from leuda_deploy.export.lower_precision import lower_precision
    from leuda_deploy.model.export_folder import MODEL_FILE
    from leuda_deploy.model.model_file import ModelFile
    from leuda_deploy.proof.parity import run_windows
    from leuda_deploy.proof.probes import make_probes
    from leuda_deploy.proof.prove import Reference

    model = ModelFile.open(source)
    images, _ = training_slices(np.random.default_rng(1))
    probes = make_probes({"made CT": images[::3]})
    reference = Reference(
        title="ONNX fp32",
        probes=probes,
        scores=run_windows(OnnxEngine(model), probes.windows),
        graph=model.graph(),
    )
    lower_precision(
        reference,
        model.card,
        "int8",
        folder / MODEL_FILE,
        calibration=images[1::3],
        progress=lambda done, total, note: None,
    )
