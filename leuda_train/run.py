"""cohort + config -> a run folder: slices, translation, adaptation, evaluation, in this order.

    RUN/config.toml       the resolved config
    RUN/checkpoints/      the newest two states while stage 2 runs
    RUN/model.pt          the product: what `leuda export` reads
    RUN/metrics.jsonl     loss terms of every stage, and images/s, as they come
    RUN/predictions/      labels of the test scans
    RUN/evaluation.json   Dice and distances on them
    RUN/run.png           its image sets and the curves
    RUN/predictions.png   best, median and worst test scan: truth and prediction
    RUN/profile.json      on request: where the time went, by stage
    RUN/tensorboard/      on request: metrics.jsonl for TensorBoard, a folder a stage

Slices and translated sets are in the cache folder, shared by every run with the same settings.
Of several processes (see `ranks.py`) all train; the first one writes, logs and evaluates.
"""

from __future__ import annotations

import json
import shutil
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from numpy.typing import NDArray

from leuda_deploy.domain import domain_of
from leuda_deploy.errors import InputError
from leuda_deploy.recipe import Recipe, fit_intensity
from leuda_deploy.volume import atomic_path, read_volume
from leuda_train.adapt import Adapted, adapt
from leuda_train.batches import AlignedSets
from leuda_train.cohort import Cohort, read_cohort
from leuda_train.config import Stream, TrainConfig, make_recipe, parse_config
from leuda_train.distil import distil
from leuda_train.hardware import Hardware, check_compiler, choose_hardware
from leuda_train.held_out import evaluate_product, oracle
from leuda_train.loop import Progress, Watch
from leuda_train.metrics import Metrics
from leuda_train.pictures import draw_predictions, draw_run
from leuda_train.product import ProductFacts, save_product
from leuda_train.ranks import Ranks, joined
from leuda_train.slices import Slices, load_slices
from leuda_train.translate import Translation, load_translation

# The image families that look like what the product is fed, and how many slices of each are kept
# to prove exports on.
PARITY_SAMPLES: dict[Stream, int] = {"target": 64, "source_as_target": 16, "target_cycled": 16}
Stage = Callable[[str], AbstractContextManager[Progress]]


def train(
    cohort_file: Path,
    config: TrainConfig,
    out: Path,
    *,
    cache: Path | None,
    stage: Stage,
    labelled: int | None = None,
    profile: bool = False,
    tensorboard: bool = False,
) -> dict[str, Any]:
    """Do every stage that is not done yet; the evaluation of the finished run.

    labelled: how many of the labelled source scans keep their labels; the rest count as unlabelled.
    stage("name") gives a context manager that yields a progress function. Raises InputError if
    `out` holds a run of another config or cohort.
    """
    with joined(config.device) as ranks:
        return _train(cohort_file, config, out, cache, stage, labelled, profile, tensorboard, ranks)


def _train(
    cohort_file: Path,
    config: TrainConfig,
    out: Path,
    cache: Path | None,
    stage: Stage,
    labelled: int | None,
    profile: bool,
    tensorboard: bool,
    ranks: Ranks,
) -> dict[str, Any]:
    began = time.monotonic()
    cohort = read_cohort(cohort_file)
    if labelled is not None:
        cohort = cohort.with_labelled(labelled)
    recipe = make_recipe(config, cohort.spec.slices.axis, cohort.spec.slices.spacing_mm)
    resolved = _resolved(out, config, cohort)
    done = out / "evaluation.json"
    finished: dict[str, Any] | None = ranks.told(
        json.loads(done.read_text()) if ranks.first and done.is_file() else None
    )
    if finished is not None:
        return finished
    check_upper_bound(config, cohort)
    hardware = choose_hardware(config.device, config.precision, ranks)
    check_shares(config, ranks)
    if config.compile:
        check_compiler(hardware)
    cache = cache or out.parent / "cache"
    if ranks.first:
        with atomic_path(out / "config.toml") as temporary:
            temporary.write_text(resolved)
    else:
        stage = _silent
    metrics = Metrics(out, tensorboard=tensorboard) if ranks.first else None
    profiles: dict[str, Any] | None = {} if profile else None
    watch = partial(Watch, metrics=metrics, profiles=profiles)

    with stage("slices") as progress:
        slices = load_slices(
            cohort,
            recipe,
            cache,
            target_labels=config.uses_target_labels,
            progress=lambda done, total: progress(done, total, ""),
            ranks=ranks,
        )
    translation = None
    if config.uses_translation:
        with stage(f"translation ({config.translation.title})") as progress:
            translation = load_translation(
                slices,
                config.translation,
                cache,
                hardware,
                seed=config.seed,
                checkpoint_seconds=config.schedule.checkpoint_seconds,
                watch=watch(progress=progress),
            )
    with stage(config.method) as progress:
        sets = _aligned(slices, translation, config)
        adapted = adapt(
            sets,
            1 + len(cohort.structures),
            config,
            hardware,
            out / "checkpoints",
            watch(progress=progress),
            translation.to_source if translation is not None else None,
        )
    if config.distil is not None:
        with stage("distillation") as progress:
            reports = watch(progress=progress)
            adapted = _distilled(adapted, sets, cohort, config, hardware, out, reports)
    if metrics is not None:
        metrics.close()
    if not ranks.first:
        told: dict[str, Any] = ranks.told()
        return told
    if profiles:
        with atomic_path(out / "profile.json") as temporary:
            temporary.write_text(json.dumps(profiles, indent=1))
    facts = _facts(adapted, config, cohort, recipe, hardware)
    save_product(out, adapted.chosen, facts, _samples(slices, translation))

    evaluation: dict[str, Any] = {}
    if cohort.role("target test"):
        with stage("test scans") as progress:
            evaluation = evaluate_product(adapted.chosen, cohort, recipe, hardware, out, progress)
            if config.reports_oracle:
                evaluation["oracle"] = oracle(
                    adapted.products, evaluation, cohort, recipe, hardware, out, progress
                )
        draw_predictions(out / "predictions.png", evaluation, cohort, recipe, out / "predictions")
    draw_run(out / "run.png", slices, translation, adapted.history)
    evaluation |= {
        "method": config.method,
        "network": adapted.network,
        "feed": config.test.feed_of(adapted.network),
        "epoch": adapted.epoch,
        "label_free_score": adapted.score,
        "label_free_scores": adapted.scores,
        "hardware": str(hardware),
        "seconds": round(time.monotonic() - began, 1),
    }
    with atomic_path(done) as temporary:
        temporary.write_text(json.dumps(evaluation, indent=1, allow_nan=False))
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    ranks.told(evaluation)
    return evaluation


def check_upper_bound(config: TrainConfig, cohort: Cohort) -> None:
    """Raises InputError if the method reads target labels that the cohort does not have."""
    if config.uses_target_labels and cohort.spec.target.upper_bound is None:
        raise InputError(
            f"method {config.method} needs [target] upper_bound labels, which cohort "
            f"{cohort.spec.name} does not have"
        )


def check_shares(config: TrainConfig, ranks: Ranks) -> None:
    """Raises InputError if the batches of stage 2 or 3 cannot be shared by the processes."""
    ranks.check_share(config.schedule.batch_labelled, "schedule.batch_labelled")
    if config.objective.unlabelled_streams or config.distil is not None:
        ranks.check_share(config.schedule.batch_unlabelled, "schedule.batch_unlabelled")


@contextmanager
def _silent(name: str) -> Iterator[Progress]:
    """The stages of a process that is not the first."""
    yield lambda done, total, note: None


def _resolved(out: Path, config: TrainConfig, cohort: Cohort) -> str:
    """The text of config.toml. Raises InputError if `out` has another: one folder, one run."""
    resolved = config.model_dump(mode="json", exclude_none=True) | {"cohort_sha256": cohort.sha256}
    path = out / "config.toml"
    if path.is_file() and not _same_run(path, config, cohort):
        raise InputError(
            f"{out} holds a run of another config or cohort (see {path}); choose another --out"
        )
    return "# The resolved config of this run, written by `leuda train`.\n" + tomli_w.dumps(
        resolved
    )


def _same_run(path: Path, config: TrainConfig, cohort: Cohort) -> bool:
    """Whether a config.toml says the same; a key that it lacks, being older, has its default."""
    content = tomllib.loads(path.read_text())
    if content.pop("cohort_sha256") != cohort.sha256:
        return False
    try:
        return parse_config(content, str(path)) == config
    except InputError:
        return False


def _aligned(slices: Slices, translation: Translation | None, config: TrainConfig) -> AlignedSets:
    images = (
        translation.images
        if translation is not None
        else {
            "source": slices.source,
            "target": slices.target,
        }
    )
    if config.uses_target_labels:
        assert slices.target_labels is not None
        every = np.arange(len(slices.target))
        return AlignedSets(images=images, labels=slices.target_labels, labelled_rows=every)
    return AlignedSets(
        images=images,
        labels=slices.source_labels,
        labelled_rows=slices.labelled_rows,
        target_scans=slices.target_scans,
    )


def _samples(slices: Slices, translation: Translation | None) -> dict[str, NDArray[np.float32]]:
    """Slices (n, h, w) of each image family that there is, evenly spread over it."""
    images = {"target": slices.target} if translation is None else translation.images
    samples = {}
    for family, count in PARITY_SAMPLES.items():
        if family in images:
            every = images[family]
            chosen = np.linspace(0, len(every) - 1, min(count, len(every)))
            samples[str(family)] = np.array(every[chosen.astype(int)])
    return samples


def _distilled(
    adapted: Adapted,
    sets: AlignedSets,
    cohort: Cohort,
    config: TrainConfig,
    hardware: Hardware,
    out: Path,
    watch: Watch,
) -> Adapted:
    """Stage 3: the teachers, as they are after the last step, become one small network."""
    teachers = {name: adapted.products[name] for name in config.teachers}
    classes = 1 + len(cohort.structures)
    folder = out / "checkpoints" / "distil"
    product = distil(teachers, sets, classes, config, hardware, folder, watch)
    products = {**adapted.products, "distilled": product}
    return replace(
        adapted, chosen=product, network="distilled", products=products, epoch=None, score=None
    )


def _facts(
    adapted: Adapted, config: TrainConfig, cohort: Cohort, recipe: Recipe, hardware: Hardware
) -> ProductFacts:
    """What has to be known of the product besides its weights."""
    widths = config.unet.widths
    targets = cohort.role("target unlabelled")
    if config.distil is not None:
        widths = config.distil.widths(widths)
    return ProductFacts(
        recipe=recipe,
        structures=tuple(cohort.structures),
        modality=cohort.spec.target.modality,
        feed=config.test.feed_of(adapted.network),
        network=adapted.network,
        widths=widths,
        dropout=config.unet.dropout,
        generator=(config.translation.width, config.translation.blocks),
        method=config.method,
        cohort=cohort.spec.name,
        cohort_sha256=cohort.sha256,
        config=config.model_dump(mode="json"),
        seed=config.seed,
        steps=_steps(adapted, config),
        hardware=str(hardware),
        domain=domain_of([fit_intensity(read_volume(scan.image), recipe) for scan in targets]),
    )


def _steps(adapted: Adapted, config: TrainConfig) -> int:
    """Steps of stages 2 and 3 that the product's weights have seen."""
    epochs = config.schedule.epochs if adapted.epoch is None else adapted.epoch
    return epochs * config.schedule.steps_per_epoch + (config.distil.steps if config.distil else 0)
