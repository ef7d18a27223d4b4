"""what was asked for -> the setting of the day, its parts, and the configs that they run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from leuda_deploy.errors import InputError
from leuda_deploy.machine.files import write_json
from leuda_deploy.machine.outside import read_json
from leuda_train.config.load import load_config, parse_config
from leuda_train.config.schema import TrainConfig

PAPER = "paper-abdominal"
# laid over the paper's config in a dry run: everything is there, and everything is tiny
TINY: dict[str, dict[str, Any]] = {
    "recipe": {"window": [32, 32]},
    "translation": {"width": 4, "blocks": 1, "discriminator_width": 4, "discriminator_layers": 2}
    | {"steps": 4},
    "unet": {"widths": [4, 8, 8], "dropout": [0.0, 0.0, 0.0]},
    "adversarial": {"width": 4},
    "schedule": {"epochs": 2, "steps_per_epoch": 5, "batch_labelled": 2, "batch_unlabelled": 2}
    | {"shares_every": 0},
    "objective": {"warmup_epochs": 1, "ramp_epochs": 1},
}
CHECKPOINT_SECONDS = 60.0  # a day ends in the middle of a run: little of it is to be lost


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What the results of a day are of. Results of another setting do not go into the same file.

    gpu      its name; None in a dry run, which is on the CPU
    cohort   name of the cohort that is trained on; None for phantoms
    method   that is trained in the minutes that are left
    """

    dry_run: bool
    gpu: str | None
    cohort: str | None
    method: str

    @property
    def device(self) -> str:
        """Of every part."""
        return "cpu" if self.dry_run else "cuda"


@dataclass(frozen=True)
class Part:
    """A part of the day: its name, what it does, and the share of the minutes it may take."""

    name: str
    title: str
    share: float


TRAINING = "training"
PARTS = (
    Part("tests", "the tests that need a GPU", 0.20),
    Part("pytorch", "the models, and PyTorch eager and AMP", 0.20),
    Part("onnx-runtime", "ONNX Runtime beside PyTorch eager", 0.10),
    Part("tensorrt", "TensorRT beside PyTorch eager", 0.12),
    Part("throughput", f"training steps of {PAPER}", 0.13),
    Part(TRAINING, f"{PAPER}, for the minutes that are left", 1.0),
)


@dataclass(frozen=True)
class Folder:
    """Where a day keeps what it makes."""

    path: Path

    @property
    def setting(self) -> Path:
        """What the parts read."""
        return self.path / "setting.json"

    def found(self, part: str) -> Path:
        """What a part has found so far."""
        return self.path / "parts" / f"{part}.json"

    def log(self, part: str) -> Path:
        """What a part printed."""
        return self.path / "parts" / f"{part}.log"

    def model(self, name: str) -> Path:
        """A network with its exports."""
        return self.path / "models" / name

    @property
    def run(self) -> Path:
        """The run folder of the training."""
        return self.path / "run"

    def write(self, setting: Setting, cohort: Path | None) -> None:
        """For the parts. Raises InputError if the folder is a day of another setting."""
        if self.setting.is_file():
            refuse_other(setting, read_json(self.setting)["setting"], self.setting, "--out")
        place = str(cohort.resolve()) if cohort else None
        write_json(self.setting, {"setting": asdict(setting), "cohort": place})

    def read(self) -> tuple[Setting, Path | None]:
        """In a part: the setting, and the cohort.toml."""
        content = read_json(self.setting)
        return Setting(**content["setting"]), Path(content["cohort"]) if content["cohort"] else None


def day_config(setting: Setting, method: str, precision: str = "auto") -> TrainConfig:
    """The paper's config with a method; in a dry run tiny, and in fp32."""
    precision = "fp32" if setting.dry_run else precision
    config = load_config(PAPER, method, device=setting.device, precision=precision)
    content = config.model_dump(mode="json", exclude_none=True)
    for part, values in TINY.items() if setting.dry_run else ():
        content[part] |= values
    content["schedule"]["checkpoint_seconds"] = CHECKPOINT_SECONDS
    return parse_config(content, f"{PAPER} with {method}")


def refuse_other(setting: Setting, before: dict[str, Any], path: Path, option: str) -> None:
    """Raises InputError if what stands in `path` is of another setting."""
    for name, value in asdict(setting).items():
        if before.get(name) != value:
            raise InputError(
                f"{path} is of a day with {name} = {before.get(name)}, not {value}; "
                f"choose another {option}"
            )
