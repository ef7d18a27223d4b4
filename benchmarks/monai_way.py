"""scan + network -> labels, as a MONAI bundle does it: one process, transforms in memory.

    python benchmarks/monai_way.py SCAN MODEL_FOLDER LABELS [--images IMAGES.npy] [--default-grid]

LoadImage, Orientation, intensity, Spacing, SliceInferer (sliding_window_inference for a 2D network)
with PyTorch eager fp32, inverse of the scores, argmax, SaveImage. `Spacing` keeps the scan's field
of view (scale_extent=True): by default it keeps the first voxel's centre instead, and its grid is a
quarter of a pixel away from ours. Prints seconds by stage and the peak memory as JSON.

--default-grid   Spacing as it is by default
--images FILE    put these normalised slices (D, h, w) in place of what Spacing made
"""

from __future__ import annotations

import argparse
import json
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import monai.transforms as mt
import numpy as np
import torch
from made_ct import SPACING_MM, STRUCTURES, WIDTHS, WINDOW
from monai.data import decollate_batch
from monai.inferers import SliceInferer

from leuda_deploy.machine.memory import peak_bytes
from leuda_train.networks.unet import UNet


def pipeline(
    scan: Path, model: Path, out: Path, *, images: Path | None = None, default_grid: bool = False
) -> dict[str, Any]:
    """Label one scan; seconds by stage, end to end, and peak memory."""
    network = UNet(1 + len(STRUCTURES), WIDTHS, (0.0,) * len(WIDTHS))
    network.load_state_dict(torch.load(model / "network.pt", weights_only=True))
    network.eval()
    seconds: dict[str, float] = {}
    began = last = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal last
        seconds[name] = time.perf_counter() - last
        last = time.perf_counter()

    data = mt.LoadImaged("image", ensure_channel_first=True)({"image": scan})
    lap("read")
    spacing = (SPACING_MM, SPACING_MM, -1)
    extent = {} if default_grid else {"scale_extent": True, "align_corners": True}
    prepare = mt.Compose(
        [
            mt.Orientationd("image", axcodes="LPS"),
            mt.ScaleIntensityRangePercentilesd("image", 0.5, 99.5, -1, 1, clip=True),
            mt.Spacingd("image", pixdim=spacing, mode="bilinear", **extent),
        ]
    )
    data = prepare(data)
    if images is not None:  # (D, h, w) -> (1, x, y, z)
        data["image"].copy_(torch.from_numpy(np.load(images).transpose(2, 1, 0))[None])
    lap("prepare")
    # the network reads rows down and columns across; MONAI's arrays are x first
    inferer = SliceInferer(spatial_dim=2, roi_size=(WINDOW, WINDOW), sw_batch_size=8, overlap=0.5)
    with torch.no_grad():
        batch = data["image"][None]
        batched = inferer(batch, lambda x: network(x.transpose(-1, -2))[0].transpose(-1, -2))
    data["pred"] = decollate_batch(batched)[0]
    lap("network")
    finish = mt.Compose(
        [
            mt.Invertd("pred", prepare, orig_keys="image", nearest_interp=False),
            mt.AsDiscreted("pred", argmax=True),
        ]
    )
    data = finish(data)
    lap("inverse")
    folder = out.parent / out.name.removesuffix(".nii.gz")
    mt.SaveImage(
        folder, output_postfix="", separate_folder=False, output_dtype=np.uint8, print_log=False
    )(data["pred"])
    lap("write")
    next(folder.iterdir()).rename(out)
    return {
        "total_seconds": time.perf_counter() - began,
        "seconds": seconds,
        "engine": f"MONAI {metadata.version('monai')}, PyTorch eager fp32",
        "peak_memory_mb": (peak_bytes() or 0) / 1e6,
    }


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser()
    for name in ("scan", "model", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--default-grid", action="store_true")
    asked = parser.parse_args()
    found = pipeline(
        asked.scan, asked.model, asked.out, images=asked.images, default_grid=asked.default_grid
    )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
