"""Small configs, image sets and cohorts that the training half's tests share."""

from __future__ import annotations

import copy
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from leuda_deploy.scans.intensity import Intensity
from leuda_train.config.load import parse_config
from leuda_train.config.schema import TrainConfig
from leuda_train.config.streams import SOURCE_STREAMS, TARGET_STREAMS
from leuda_train.data.aligned_sets import AlignedSets
from leuda_train.data.batches import Draw
from leuda_train.data.slices import Slices
from leuda_train.loop.hardware import Hardware
from leuda_train.loop.loop import StageRun, Watch
from leuda_train.networks.cyclegan import Generator

CPU = Hardware(torch.device("cpu"), "fp32")
AFFINE = np.diag([2.0, 2.0, 4.0, 1.0])

CONFIG = {
    "name": "tiny",
    "method": "le-uda",
    "device": "cpu",
    "precision": "fp32",
    "recipe": {"window": [16, 16], "clip_percentiles": [0.0, 98.0], "normalisation": "zscore"},
    "translation": {
        "width": 4,
        "blocks": 1,
        "discriminator_width": 4,
        "discriminator_layers": 1,
        "steps": 12,
        "batch": 2,
        "learning_rate": 1e-3,
        "lambda_cycle": 10.0,
        "lambda_identity": 0.5,
        "pool": 3,
    },
    "unet": {"widths": [4, 8], "dropout": [0.05, 0.1]},
    "objective": {
        "supervised_on": ["source", "source_cycled"],
        "lambda_intra": 1.0,
        "lambda_inter": 0.1,
        "lambda_adv_intra": 0.01,
        "lambda_adv_inter": 0.01,
        "warmup_epochs": 1,
        "ramp_epochs": 4,
        "ema_decay": 0.99,
        "teacher_batchnorm": "own",
        "teacher_noise": 0.1,
        "teacher_noise_limit": 0.2,
    },
    "adversarial": {"levels": [1], "width": 4, "learning_rate": 2e-4},
    "schedule": {
        "epochs": 4,
        "steps_per_epoch": 3,
        "batch_labelled": 2,
        "batch_unlabelled": 2,
        "learning_rate": 1e-3,
        "checkpoint_seconds": 0.0,
    },
    "augment": {"scale": [0.9, 1.1], "rotation_degrees": 10.0},
    "test": {"network": "intra_teacher", "feed": "target_as_source"},
}

NO_TERMS = {
    "lambda_intra": 0.0,
    "lambda_inter": 0.0,
    "lambda_adv_intra": 0.0,
    "lambda_adv_inter": 0.0,
}

COHORT = """\
name = "tiny"

[classes]
a = 10
b = 20

[slices]
axis = "superior"
spacing_mm = "native"
background_values = [30]

[source]
modality = "MR"
labelled = { images = "mr/*_image.nii.gz", labels = "mr/*_label.nii.gz" }
unlabelled = { images = "mr_more/*_image.nii.gz" }

[target]
modality = "CT"
unlabelled = { images = "ct/*_image.nii.gz" }
upper_bound = { labels = "ct_labels/*_label.nii.gz" }
test = { images = "ct_test/*_image.nii.gz", labels = "ct_test/*_label.nii.gz" }
"""


def content(**sections: object) -> dict:
    """CONFIG as a fresh dictionary, with some keys of some sections replaced."""
    made = copy.deepcopy(CONFIG)
    for key, value in sections.items():
        made[key] = {**made.get(key, {}), **value} if isinstance(value, dict) else value
    return made


def config(**sections: object) -> TrainConfig:
    return parse_config(content(**sections), "the tiny config")


def draw(**changed: object) -> Draw:
    """What a step of the tiny config draws: both labelled streams, all six unlabelled ones."""
    tiny = config()
    every = {
        "seed": tiny.seed,
        "supervised": tiny.objective.supervised_on,
        "labelled_count": 2,
        "unlabelled": (*SOURCE_STREAMS, *TARGET_STREAMS),
        "unlabelled_count": 2,
        "restyle_target": False,
        "augment": tiny.augment,
        "style": tiny.style,
    }
    return Draw(**{**every, **changed})


def aligned_sets(count: int = 6, size: int = 16, seed: int = 0) -> AlignedSets:
    """Random images; the others of a family are its first plus 1 and plus 2."""
    rng = np.random.default_rng(seed)
    images = {}
    for family in (SOURCE_STREAMS, TARGET_STREAMS):
        first = rng.normal(size=(count, size, size)).astype(np.float32)
        images |= {stream: first + np.float32(i) for i, stream in enumerate(family)}
    labels = (images["source"] > 0.5).astype(np.uint8) + (images["source"] > 1.0)
    return AlignedSets(
        images=images, classes=3, labels=labels.astype(np.uint8), labelled_rows=np.arange(4)
    )


def write_scan(path: Path, values: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, affine), path)


def write_tiny_cohort(root: Path) -> Path:
    """Two labelled and one unlabelled source scans, two target scans, one test scan."""
    rng = np.random.default_rng(0)
    for folder, labels, names in (
        ("mr", "mr", ("m1", "m2")),
        ("mr_more", None, ("m3",)),
        ("ct", "ct_labels", ("c1", "c2")),
        ("ct_test", "ct_test", ("c3",)),
    ):
        for name in names:
            image = rng.integers(0, 1000, size=(18, 16, 3), dtype=np.int16)
            write_scan(root / folder / f"{name}_image.nii.gz", image)
            if labels is not None:
                label = np.zeros(image.shape, dtype=np.int16)
                label[2:6, 3:9], label[8:12, 3:9], label[14:16] = 10, 20, 30
                write_scan(root / labels / f"{name}_label.nii.gz", label)
    path = root / "cohort.toml"
    path.write_text(COHORT)
    return path


@contextmanager
def stage(name: str):
    """A stage that reports to nobody."""
    yield quiet


def quiet(done: int, total: int, note: str) -> None:
    pass


def stage_run(
    folder: Path,
    *,
    seconds: float = 60.0,
    hardware: Hardware = CPU,
    watch: Watch | None = None,
) -> StageRun:
    """A stage on the CPU that keeps its checkpoints in the folder and reports to nobody."""
    watch = watch or Watch(progress=quiet)
    return StageRun(hardware=hardware, folder=folder, checkpoint_seconds=seconds, watch=watch)


def generator() -> Generator:
    """The same untrained generator every time."""
    torch.manual_seed(0)
    return Generator(4, 1)


def made(cache: Path) -> list[Path]:
    """What a cache holds besides its locks."""
    return sorted(path for path in cache.iterdir() if path.suffix != ".lock")


def make_slices(count: int = 5) -> Slices:
    """Slices (count, 16, 16) of noise in both domains."""
    rng = np.random.default_rng(0)
    source, target = rng.normal(size=(2, count, 16, 16)).astype(np.float32)
    return Slices(
        key="tiny",
        source=source,
        source_labels=np.zeros(source.shape, np.uint8),
        labelled_rows=np.arange(count),
        target=target,
        target_labels=None,
        target_scans=np.zeros(count, np.int64),
        target_intensities=(Intensity(-1.0, 1.0, 0.0, 1.0, (-0.5, 0.0, 0.5)),),
    )
