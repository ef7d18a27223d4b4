"""a finished run, or its model.pt alone -> what `leuda adapt` goes on from, or why it cannot.

Weights, and what the source's labels taught: how frequent classes are, of which pieces a structure
consists, how large it is. Numbers, and no image.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from leuda_deploy.errors import InputError, TrainingError, reading
from leuda_deploy.machine.files import file_sha256
from leuda_deploy.model.export_folder import MODEL_FILE
from leuda_train.config.load import load_config
from leuda_train.config.schema import RecipeConfig, TrainConfig
from leuda_train.data.cohort import Cohort
from leuda_train.export.product_file import ProductFacts, load_weights
from leuda_train.loop.run_folder import RunFolder

# of the first run's config, what is said of that run alone
ITS_OWN = ("method", "device", "precision", "distil", "first_model")


@dataclass(frozen=True, kw_only=True)
class FirstModel:
    """The network of a finished run, in evaluation mode, and what is known of it.

    class_shares  (K,) the share of pixels that each class has in the source's labels
    sha256        of the model.pt
    """

    network: nn.Module
    facts: ProductFacts
    class_shares: tuple[float, ...]
    sha256: str

    def config(self, config: str | None, method: str, **overrides: Any) -> TrainConfig:
        """What is trained, and how long; recipe and network are those of the model.

        Args:
            config: As for `load_config`; None: that of the first run.
            method: As for `load_config`.
            **overrides: As for `load_config`.

        Raises:
            InputError: They do not go together.
        """
        facts = self.facts
        before = {key: value for key, value in facts.config.items() if key not in ITS_OWN}
        # what a run's recipe can say; slice axis and spacing are the cohort's
        recipe = facts.recipe.model_dump(mode="json", include=set(RecipeConfig.model_fields))
        return load_config(
            before if config is None else config,
            method,
            recipe=recipe,
            unet={"widths": facts.widths, "dropout": facts.dropout},
            first_model=self.sha256,
            **overrides,
        )

    def check_cohort(self, cohort: Cohort) -> None:
        """Raises InputError if the cohort is not one of target scans as the model reads them."""
        spec, recipe = cohort.spec, self.facts.recipe
        if spec.source is not None:
            raise InputError(
                f"cohort {spec.name} has a [source], and `leuda adapt` reads none: leave the table "
                "out, or train on it with `leuda train`"
            )
        if tuple(spec.classes) != self.facts.structures:
            raise InputError(
                f"[classes] of cohort {spec.name} are {', '.join(spec.classes)}; the model's are "
                f"{', '.join(self.facts.structures)}, in this order"
            )
        if (spec.slices.axis, spec.slices.spacing_mm) != (recipe.slice_axis, recipe.spacing_mm):
            raise InputError(
                f"[slices] of cohort {spec.name}: the model reads slices with axis = "
                f"{recipe.slice_axis!r} and spacing_mm = {recipe.spacing_mm!r}, not "
                f"{spec.slices.axis!r} and {spec.slices.spacing_mm!r}"
            )


def read_first_model(path: Path) -> FirstModel:
    """Read a run's folder or a model.pt.

    Raises:
        InputError: There is none, it cannot be trained on, or it does not read the target itself.
        TrainingError: It is damaged.
    """
    if path.suffix == ".onnx" or (path / MODEL_FILE).is_file():
        raise InputError(
            f"{path} is an ONNX export, whose weights cannot be trained: give the run that it was "
            "made from, or the run's model.pt"
        )
    file = RunFolder(path).model if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"{path} holds no finished run (no {file.name}); run `leuda train` first")
    with reading(lambda what: TrainingError(f"{file} is not a model.pt of a run: {what}")):
        product, facts = load_weights(file)
    if facts.feed != "target":
        raise InputError(
            f"{path} has {facts.network} behind a generator that was trained on source scans; "
            "`leuda adapt` needs a network that reads the target itself: train one "
            "with --method style"
        )
    if facts.class_shares is None:
        raise InputError(
            f"{path} does not say how frequent classes are in its labels: it is from before "
            "`leuda adapt`; run `leuda train` again"
        )
    return FirstModel(
        network=product.network,
        facts=facts,
        class_shares=facts.class_shares,
        sha256=file_sha256(file),
    )
