"""scan + network -> labels, as a MONAI bundle or nnU-Net's predictor does it, in one process.

    python benchmarks/other_ways.py monai SCAN MODEL_FOLDER LABELS [--images IMAGES.npy]
                                          [--default-grid] [--percentiles 0.5 99.5]
    python benchmarks/other_ways.py nnunet SCAN MODEL_FOLDER LABELS

monai   LoadImage, Orientation, intensity, Spacing, SliceInferer (sliding_window_inference for a 2D
        network) with PyTorch eager fp32, inverse of the scores, argmax, SaveImage. `Spacing` keeps
        the scan's field of view (scale_extent=True): by default it keeps the first voxel's centre
        instead, and its grid is a quarter of a pixel away from ours.
nnunet  nnUNetPredictor with the same U-Net as its 2D network, its own reading, resampling (cubic
        for the image, linear for the scores), sliding window (half a window's step, Gaussian, no
        mirroring) and writing. Its CT normalisation is given the limits of the scan.

Prints seconds by stage and the peak memory as JSON.

--default-grid   Spacing as it is by default
--images FILE    put these normalised slices (D, h, w) in place of what Spacing made
--percentiles    of the scan, that become -1 and 1
"""

from __future__ import annotations

import argparse
import json
import os
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from made_ct import SPACING_MM, STRUCTURES, WIDTHS, WINDOW

from leuda_deploy.machine.memory import peak_bytes
from leuda_train.networks.unet import UNet


def read_network(model: Path) -> UNet:
    """The weights that `write_model` left."""
    network = UNet(1 + len(STRUCTURES), WIDTHS, (0.0,) * len(WIDTHS))
    network.load_state_dict(torch.load(model / "network.pt", weights_only=True))
    return network.eval()


def monai(
    scan: Path,
    model: Path,
    out: Path,
    *,
    images: Path | None = None,
    default_grid: bool = False,
    percentiles: tuple[float, float] = (0.5, 99.5),
) -> dict[str, Any]:
    """Label one scan; seconds by stage, end to end, and peak memory."""
    import monai.transforms as mt
    from monai.data import decollate_batch
    from monai.inferers import SliceInferer

    network = read_network(model)
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
            mt.ScaleIntensityRangePercentilesd("image", *percentiles, -1, 1, clip=True),
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


def nnunet(scan: Path, model: Path, out: Path) -> dict[str, Any]:
    """The same by nnU-Net's own predictor."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ.setdefault(name, str(out.parent))  # else it warns of folders that it never uses
    from nnunetv2.imageio.nibabel_reader_writer import NibabelIO
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    network = ScoresAlone(read_network(model))
    seconds: dict[str, float] = {}
    began = time.perf_counter()
    files = NibabelIO()
    image, properties = files.read_images((str(scan),))
    seconds["read"] = time.perf_counter() - began
    plans = PlansManager(plans_of(float(image.min()), float(image.max()), image.shape[1:]))
    predictor = nnUNetPredictor(
        tile_step_size=0.5,
        use_mirroring=False,
        perform_everything_on_device=False,
        device=torch.device("cpu"),
        allow_tqdm=False,
    )
    labels = {"background": 0} | {name: k for k, name in enumerate(STRUCTURES, start=1)}
    predictor.manual_initialization(
        network,
        plans,
        plans.get_configuration("2d"),
        [network.state_dict()],
        {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz"},
        "nnUNetTrainer",
        None,
    )
    start = time.perf_counter()
    found = predictor.predict_single_npy_array(image, properties)
    seconds["prepare, network, inverse"] = time.perf_counter() - start
    start = time.perf_counter()
    files.write_seg(found, str(out), properties)
    seconds["write"] = time.perf_counter() - start
    return {
        "total_seconds": time.perf_counter() - began,
        "seconds": seconds,
        "engine": f"nnU-Net {metadata.version('nnunetv2')}, PyTorch eager fp32",
        "peak_memory_mb": (peak_bytes() or 0) / 1e6,
    }


class ScoresAlone(torch.nn.Module):
    """The U-Net without its features; nnU-Net's arrays are y by x, so are its windows."""

    def __init__(self, network: UNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 1, h, w) -> logits."""
        return self.network(x)[0]


def plans_of(low: float, high: float, shape: tuple[int, ...]) -> dict[str, Any]:
    """The plans of a 2D configuration that says what `made_ct.recipe` says."""
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    limits = {
        "percentile_00_5": low,
        "percentile_99_5": high,
        "mean": (low + high) / 2,
        "std": (high - low) / 2,
    }
    return {
        "dataset_name": "Dataset001_made",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [1.0, 0.75, 0.75],
        "original_median_shape_after_transp": list(shape),
        "image_reader_writer": "NibabelIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": limits},
        "configurations": {
            "2d": {
                "data_identifier": "nnUNetPlans_2d",
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": 8,
                "patch_size": [WINDOW, WINDOW],
                "median_image_size_in_voxels": [WINDOW, WINDOW],
                "spacing": [SPACING_MM, SPACING_MM],
                "normalization_schemes": ["CTNormalization"],
                "use_mask_for_norm": [False],
                "resampling_fn_data": "resample_data_or_seg_to_shape",
                "resampling_fn_seg": "resample_data_or_seg_to_shape",
                "resampling_fn_data_kwargs": resampling,
                "resampling_fn_seg_kwargs": resampling | {"is_seg": True, "order": 1},
                "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
                "resampling_fn_probabilities_kwargs": resampling | {"order": 1},
                "batch_dice": True,
                # it is given the network: this is only looked at
                "architecture": {
                    "network_class_name": "torch.nn.Identity",
                    "arch_kwargs": {},
                    "_kw_requires_import": [],
                },
            }
        },
    }


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("way", choices=("monai", "nnunet"))
    for name in ("scan", "model", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--default-grid", action="store_true")
    parser.add_argument("--percentiles", type=float, nargs=2, default=(0.5, 99.5))
    asked = parser.parse_args()
    if asked.way == "nnunet":
        found = nnunet(asked.scan, asked.model, asked.out)
    else:
        found = monai(
            asked.scan,
            asked.model,
            asked.out,
            images=asked.images,
            default_grid=asked.default_grid,
            percentiles=asked.percentiles,
        )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
