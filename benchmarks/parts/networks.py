"""a config -> trained networks, their ONNX files, and what PyTorch on the CPU makes of windows.

Two products of paper size: a U-Net that reads the scan itself, and one behind a generator, as the
paper tests. They are trained for a moment on a made CT, so that their labels mean something.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from made_ct import card_of, recipe, training_slices
from numpy.typing import NDArray

from leuda_deploy.export.to_half import to_fp16
from leuda_deploy.export.to_onnx import to_onnx
from leuda_deploy.machine.files import atomic_folder, atomic_path
from leuda_deploy.model.export_folder import MODEL_FILE, write_manifest
from leuda_deploy.model.model_file import ModelFile, write_model
from leuda_deploy.proof.parity import run_windows
from leuda_deploy.proof.probes import Probes, make_probes
from leuda_train.loop.hardware import Hardware
from leuda_train.networks.cyclegan import Generator
from leuda_train.networks.product import DeployedNetwork, TorchEngine
from leuda_train.networks.unet import UNet
from parts.plan import Folder, Setting, day_config

NAMES = ("U-Net", "U-Net behind the translator")
PRECISIONS = ("fp32", "fp16")
CLASSES, STEPS, BATCH, CROP, RATE = 5, 150, 4, 128, 3e-3
REAL_PROBES = 16  # of the real windows: the yardstick is worked out on the CPU


@dataclass(frozen=True, kw_only=True)
class Made:
    """A network with its exports, the windows to compare on, and the yardstick's scores."""

    name: str
    folder: Path
    product: DeployedNetwork
    probes: Probes
    expected: NDArray[np.float32]

    def model(self, precision: str) -> ModelFile:
        """Its ONNX file in a precision."""
        return ModelFile.open(self.folder / precision)


def names(setting: Setting) -> tuple[str, ...]:
    """What is made; a dry run has one that holds both kinds of layers."""
    return NAMES[1:] if setting.dry_run else NAMES


def make(day: Folder, setting: Setting, name: str) -> Made:
    """Train, export, score; or what an earlier process made."""
    folder = day.model(name.lower().replace(" ", "-"))
    product = untrained(setting, name)
    if not folder.is_dir():
        with atomic_folder(folder) as temporary:
            _write(temporary, product, setting)
    product.load_state_dict(torch.load(folder / "network.pt", weights_only=True))
    with np.load(folder / "probes.npz") as kept:
        probes = Probes(
            windows=kept["windows"],
            names=tuple(kept["names"].tolist()),
            real=int(kept["real"]),
            flat=int(kept["flat"]),
        )
        expected = kept["expected"]
    return Made(name=name, folder=folder, product=product.eval(), probes=probes, expected=expected)


def untrained(setting: Setting, name: str) -> DeployedNetwork:
    """A product of the config's sizes, on the CPU."""
    config = day_config(setting, "le-uda")
    torch.manual_seed(0)
    network = UNet(CLASSES, config.unet.widths, config.unet.dropout)
    behind = name == NAMES[1]
    generator = Generator(config.translation.width, config.translation.blocks) if behind else None
    return DeployedNetwork(network, generator)


def _write(folder: Path, product: DeployedNetwork, setting: Setting) -> None:
    size = day_config(setting, "le-uda").recipe.window[0]
    count, steps = (4, 3) if setting.dry_run else (48, STEPS)
    images, labels = training_slices(np.random.default_rng(1), count)
    middle = slice((images.shape[1] - size) // 2, (images.shape[1] + size) // 2)
    images, labels = images[:, middle, middle], labels[:, middle, middle]
    _train(product, images, labels, setting.device, steps)
    product.to("cpu").eval()
    torch.save(product.state_dict(), folder / "network.pt")
    probes = _fewer(make_probes({"made CT": images[:: max(1, count // 12)]}))
    cpu = TorchEngine(product, Hardware(torch.device("cpu"), "fp32"))
    with atomic_path(folder / "probes.npz") as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            windows=probes.windows,
            names=np.array(probes.names),
            real=probes.real,
            flat=probes.flat,
            expected=run_windows(cpu, probes.windows),
        )
    product.to(memory_format=torch.contiguous_format)  # as an export has it
    card = card_of("gpu-day", CLASSES, steps)
    window = {"recipe": recipe().model_copy(update={"window": (size, size)})}
    for precision in PRECISIONS:
        (folder / precision).mkdir()
    graph = to_onnx(product, card.model_copy(update=window), folder / "fp32" / MODEL_FILE)
    half = graph.card.model_copy(update={"precision": "fp16"})
    write_model(to_fp16(graph.graph()), half, folder / "fp16" / MODEL_FILE)
    for precision in PRECISIONS:
        write_manifest(folder / precision)


def _train(
    product: DeployedNetwork,
    images: NDArray[np.float32],
    labels: NDArray[np.uint8],
    device: str,
    steps: int,
) -> None:
    """A moment of cross-entropy on crops."""
    product.to(device, memory_format=torch.channels_last).train()
    rng, crop = np.random.default_rng(0), min(CROP, images.shape[1])
    optimiser = torch.optim.Adam(product.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps)
    for _ in range(steps):
        rows = rng.integers(len(images), size=BATCH)
        y, x = rng.integers(images.shape[1] - crop + 1, size=2)
        part = (rows, slice(y, y + crop), slice(x, x + crop))
        batch = torch.from_numpy(images[part][:, None]).to(device)
        truth = torch.from_numpy(labels[part].astype(np.int64)).to(device)
        loss = torch.nn.functional.cross_entropy(product(batch), truth)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    print(f"trained for {steps} steps, the last loss is {float(loss.detach()):.4f}")


def _fewer(probes: Probes) -> Probes:
    """Fewer real windows, from first to last; what is made up stays."""
    kept = np.linspace(0, probes.real - 1, min(REAL_PROBES, probes.real)).astype(int)
    rows = [*kept.tolist(), *range(probes.real, len(probes.windows))]
    fewer = len(kept) - probes.real
    return Probes(
        windows=probes.windows[rows],
        names=tuple(probes.names[row] for row in rows),
        real=len(kept),
        flat=probes.flat + fewer,
    )
