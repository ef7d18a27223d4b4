"""a folder of phantoms -> every command of `leuda` on small data, as `stop.py` starts it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

CONFIG = """
precision = "fp32"
[recipe]
window = [32, 32]
clip_percentiles = [0.5, 99.5]
normalisation = "minmax"
[translation]
width = 8
blocks = 2
discriminator_width = 8
discriminator_layers = 2
steps = {steps}
batch = 4
learning_rate = 1e-3
lambda_cycle = 10.0
lambda_identity = 0.1
pool = 20
[unet]
widths = [8, 16, 32]
dropout = [0.05, 0.1, 0.2]
[objective]
supervised_on = {supervised_on}
lambda_intra = 1.0
lambda_inter = 0.1
lambda_adv_intra = 0.002
lambda_adv_inter = 0.002
warmup_epochs = 1
ramp_epochs = 2
ema_decay = 0.99
teacher_batchnorm = "own"
teacher_noise = 0.1
teacher_noise_limit = 0.2
[adversarial]
levels = [2, 1]
width = 8
learning_rate = 2e-4
[schedule]
epochs = {epochs}
steps_per_epoch = 10
batch_labelled = 4
batch_unlabelled = 2
learning_rate = 0.003
[augment]
scale = [0.9, 1.1]
rotation_degrees = 10.0
[test]
network = "intra_teacher"
feed = "target_as_source"
"""


@dataclass(frozen=True)
class Command:
    """A command on small data.

    arguments  for `leuda`; given an empty folder: it writes there alone
    start      how Python is told what to run
    at_most    seconds after which it is stopped, where it would go on for longer
    """

    arguments: Callable[[Path], list[object]]
    start: tuple[str, ...] = ("-m", "leuda_train")
    at_most: float | None = None


def commands(data: Path) -> dict[str, Command]:
    """All of them by name; `data` holds what `prepare` made."""
    cohort, config, run = data / "ph" / "cohort.toml", data / "long.toml", data / "run"
    scans, series = data / "ph" / "ct_test", data / "series"
    scan, labels = (sorted(scans.glob(f"*_{kind}.nii.gz"))[0] for kind in ("image", "label"))
    export, found = data / "export", data / "labels.nii.gz"
    graph, model = export / "model.onnx", ("--model", export)
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    # the launcher of --gpus; its two processes find no GPU, and train on the CPU
    gpus = (
        "import signal\nsignal.signal(signal.SIGINT, signal.SIG_DFL)\nimport torch\n"
        "torch.cuda.device_count = lambda: 2\nfrom leuda_train.cli import main\nmain()"
    )

    def train(out: Path) -> list[object]:
        return ["train", cohort, "--out", out / "run", "--config", config, "--cache", out / "c"]

    def folders(out: Path) -> list[object]:
        place = data / "ph"
        return [
            *("cohort", "folders", "-o", out / "c.toml"),
            *("--source-images", place / "mr_labelled" / "*_image.nii.gz"),
            *("--source-labels", place / "mr_labelled" / "*_label.nii.gz"),
            *("--target-images", place / "ct_unlabelled" / "*_image.nii.gz"),
        ]

    return {
        "phantom": Command(lambda out: ["phantom", out / "ph"]),
        "cohort folders": Command(folders),
        "train": Command(train, at_most=25),
        "train --gpus 2": Command(
            lambda out: [*train(out), "--gpus", 2], start=("-c", gpus), at_most=25
        ),
        "train under torchrun": Command(train, start=(*torchrun, "-m", "leuda_train"), at_most=25),
        "compare": Command(
            lambda out: [
                *("compare", cohort, "--out", out / "all", "--config", config, "--seeds", 1),
                *("--methods", "source-only,le-uda", "--cache", out / "c"),
            ],
            at_most=25,
        ),
        "demo": Command(lambda out: ["demo", "--out", out / "demo"], at_most=40),
        "adapt": Command(
            lambda out: ["adapt", data / "own", cohort, "--out", out / "new", "--cache", out / "c"],
            at_most=25,
        ),
        "export": Command(lambda out: ["export", run, "-o", out / "e"]),
        "export --precision int8": Command(
            lambda out: ["export", run, "-o", out / "e", "--precision", "int8"]
        ),
        "export of a file": Command(lambda out: ["export", graph, "-o", out / "e"]),
        "card init": Command(
            lambda out: [
                *("card", "init", graph, "-o", out / "card.json", "--modality", "CT"),
                *("--structures", "a,b,c,d", "--axis", "superior", "--spacing", "2"),
            ]
        ),
        "verify": Command(lambda _: ["verify", export]),
        "verify --prove": Command(lambda _: ["verify", export, "--prove", scan]),
        "infer": Command(lambda out: ["infer", data / "large.nii", *model, "-o", out / "l.nii.gz"]),
        "infer, DICOM": Command(
            lambda out: [
                *("infer", series, *model, "-o", out / "l.nii.gz", "--dicom-seg", out / "s.dcm"),
            ]
        ),
        "infer, a folder": Command(lambda out: ["infer", scans, *model, "-o", out / "l"]),
        "infer --jobs 2": Command(
            lambda out: ["infer", scans, *model, "-o", out / "l", "--jobs", 2]
        ),
        "bench": Command(
            lambda out: [
                *("bench", *model, "--shape", "128x128x40", "--rounds", 2),
                *("--save", out / "b.json"),
            ]
        ),
        "evaluate": Command(lambda _: ["evaluate", found, labels, "--cohort", cohort]),
        "report": Command(lambda out: ["report", run, "-o", out / "r.html"]),
        "picture": Command(lambda out: ["picture", scan, labels, "-o", out / "p.webp"]),
        "series": Command(lambda _: ["series", series]),
        "doctor": Command(lambda _: ["doctor"]),
        "view --html": Command(lambda out: ["view", scan, labels, "--html", out / "v.html"]),
        "view": Command(lambda _: ["view", scan, labels, "--no-browser"], at_most=4),
        "listen": Command(
            lambda out: ["listen", "--queue", out / "q", *model, "--port", 0], at_most=6
        ),
    }
