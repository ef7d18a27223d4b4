"""cohort + config -> a finished run folder: slices, translation, adaptation, distillation, results.

    RUN/config.toml       the resolved config
    RUN/checkpoints/      the newest two states while stage 2 runs
    RUN/model.pt          the product, weights and numbers: what `leuda export` and `adapt` read
    RUN/windows.pt        slices that exports are proven on
    RUN/metrics.jsonl     loss terms of every stage, and images/s, as they come
    RUN/predictions/      labels of the test scans
    RUN/evaluation.json   Dice and distances on them
    RUN/run.png           its image sets and the curves
    RUN/scans.json        the cohort as it was found
    RUN/report.html       all of this to read; both are drawn anew every few minutes meanwhile
    RUN/predictions.png   best, median and worst test scan: truth and prediction
    RUN/memory.json       what each stage was to take of memory, and took
    RUN/profile.json      on request: where the time went, by stage
    RUN/tensorboard/      on request: metrics.jsonl for TensorBoard, a folder a stage

Slices and translated sets are in the cache folder, shared by every run with the same settings.
Of several processes (see `ranks.py`) all train; the first one writes, logs and evaluates.
"""

from __future__ import annotations

import shutil
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from leuda_deploy.machine.files import write_json
from leuda_deploy.machine.outside import read_json
from leuda_deploy.machine.progress import ShowProgress, show_nothing
from leuda_deploy.scans.recipe import Recipe
from leuda_train.config.load import make_recipe
from leuda_train.config.schema import TrainConfig
from leuda_train.data.aligned_sets import AlignedSets
from leuda_train.data.cohort import Cohort
from leuda_train.data.slices import Slices, hold_out, load_slices, slices_there
from leuda_train.export.first_model import FirstModel
from leuda_train.loop.hardware import Hardware, Precision, check_compiler, choose_hardware
from leuda_train.loop.metrics_log import Metrics
from leuda_train.loop.ranks import Ranks, process_group
from leuda_train.loop.run_folder import MAX_EVALUATION_BYTES, RunFolder
from leuda_train.pages.live_page import LivePage
from leuda_train.runs.checks import check_classes, plan_memory, warn_if_long
from leuda_train.runs.results import (
    Trained,
    draw_pictures,
    evaluate_run,
    refine_of,
    save_result,
)
from leuda_train.runs.resume import (
    Beginning,
    check_free,
    check_precision,
    check_same_run,
    check_translation,
    claimed,
    read_beginning,
)
from leuda_train.runs.run import Run, check_labels, check_shares, write_config, write_scans
from leuda_train.stages.adapt import adapt
from leuda_train.stages.distil import distil
from leuda_train.stages.translate import STAGE, folder_of, load_translation, translation_key
from leuda_train.stages.translated_sets import TranslatedSets, untranslated


def train(  # noqa: PLR0913  (public: an option of the command each)
    cohort: Cohort,
    config: TrainConfig,
    out: Path,
    *,
    first: FirstModel | None = None,
    cache: Path | None = None,
    show: ShowProgress = show_nothing,
    profile: bool = False,
    tensorboard: bool = False,
) -> dict[str, Any]:
    """Train a method on a cohort, evaluate it on the test scans, and keep all of it in a folder.

    What is done already is not done again: a killed run goes on from its last checkpoint, a
    finished one returns at once. Target labels are read for the evaluation alone (and by the
    method `supervised`, the upper bound).

    Args:
        cohort: The scans, as `read_cohort` gives them; `cohort.with_labelled(n)` keeps the labels
            of n source scans alone.
        config: What is trained, and how long, as `load_config` gives it.
        out: The run folder, made if it is not there.
        first: What a source-free run goes on from; `config` is then one of `first.config`.
        cache: Slices and translations, shared by runs. Default: the folder `cache` beside `out`.
        show: A stage's title -> a context manager that yields its progress callback.
        profile: Also write where the time went.
        tensorboard: Also write the metrics for TensorBoard.

    Returns:
        What evaluation.json holds: `summary`, `volumes` and `structures` as `evaluate_paths`
        returns them if the cohort has test scans; the method, the chosen network and what it is
        fed; hardware and seconds.

    Raises:
        InputError: `out` holds a run of another config or cohort, or the config cannot be run on
            this cohort or machine.
        TrainingError: A loss is not finite, or a checkpoint cannot be written.
    """
    began = time.monotonic()
    with process_group(config.device) as ranks:
        recipe = make_recipe(config, cohort.spec.slices.axis, cohort.spec.slices.spacing_mm)
        folder = RunFolder(out)
        if ranks.first:  # who begins to write while the others still look
            check_free(folder)
        check_same_run(folder, config, cohort)
        finished = _finished(folder, ranks)
        if finished is not None:
            return finished
        check_labels(config, cohort, first)
        hardware = choose_hardware(config.device, config.precision, ranks)
        check_shares(config, ranks)
        if config.compile:
            check_compiler(hardware)
        with claimed(folder) if ranks.first else nullcontext():
            finished = _finished(folder, ranks)  # by who held the claim until now
            if finished is not None:
                return finished
            beginning = ranks.broadcast(read_beginning(folder) if ranks.first else None)
            check_precision(beginning, config, hardware)
            classes = 1 + len(cohort.structures)
            kept = cache or out.parent / "cache"
            needs = None
            if ranks.first:
                done = _stages_done(cohort, config, recipe, kept, beginning, hardware)
                needs = plan_memory(config, classes, hardware, done=done)
            needs = ranks.broadcast(needs)
            if ranks.first:
                write_config(folder, config, cohort)
                write_scans(folder, config, cohort, recipe)
                warn_if_long(config, classes, hardware)
            page = LivePage(folder=folder, method=config.method, slice_axis=recipe.slice_axis)
            run = Run(
                cohort=cohort,
                config=config,
                recipe=recipe,
                folder=folder,
                cache=kept,
                hardware=hardware,
                show=page.watching(show) if ranks.first else show_nothing,
                metrics=Metrics(folder, tensorboard=tensorboard) if ranks.first else None,
                profiles={} if profile else None,
                first=first,
                needs=needs,
            )
            trained = _do_stages(run, page, beginning)
            evaluation: dict[str, Any] | None = None
            if ranks.first:
                if run.profiles:
                    write_json(folder.profile, run.profiles)
                trained = replace(trained, refine=refine_of(run, trained))
                save_result(run, trained)
                evaluation = evaluate_run(run, trained)
                evaluation["seconds"] = round(time.monotonic() - began, 1)
                write_json(folder.evaluation, evaluation)
                shutil.rmtree(folder.checkpoints, ignore_errors=True)
                draw_pictures(run, trained, evaluation)  # last: no picture costs a score
                page.finish()
            shared: dict[str, Any] = ranks.broadcast(evaluation)
            return shared


def _finished(folder: RunFolder, ranks: Ranks) -> dict[str, Any] | None:
    """The evaluation of a run that is done; else None."""
    there = ranks.first and folder.evaluation.is_file()
    found: dict[str, Any] | None = ranks.broadcast(
        read_json(folder.evaluation, most=MAX_EVALUATION_BYTES) if there else None
    )
    return found


def _do_stages(run: Run, page: LivePage, beginning: Beginning | None) -> Trained:
    """Slices, then stages 1 to 3, those that the method has.

    beginning  with what stage 2 began, if it goes on from a checkpoint
    """
    config, precision = run.config, run.hardware.precision
    translated_in = _translated_in(beginning, run.hardware)
    with run.show("slices") as progress:
        slices = load_slices(
            run.cohort,
            run.recipe,
            run.cache,
            target_labels=config.uses_target_labels,
            progress=progress,
            ranks=run.hardware.ranks,
        )
    translated = untranslated(slices)
    if not config.source_free:
        sets = aligned_sets(slices, translated, run.classes, config)
        check_classes(np.asarray(sets.labels), sets.labelled_rows, run.cohort.structures)
    if config.uses_translation:
        title = f"translation ({config.translation.title})"
        with run.stage(STAGE, run.cache, title=title) as stage:
            stage = replace(stage, hardware=replace(run.hardware, precision=translated_in))
            translated = load_translation(slices, config.translation, config.seed, stage)
        check_translation(beginning, translated.fingerprint, run.folder)
    page.translated = translated
    sets = aligned_sets(slices, translated, run.classes, config, run.first)
    began_with = Beginning(
        precision=precision,
        translation=translated.fingerprint,
        translation_precision=translated_in,
    ).as_dict()
    with run.stage(config.method, run.folder.checkpoints, began_with) as stage:
        adapted = adapt(sets, config, stage, translated.to_source, run.first)
    if config.distil is not None:
        with run.stage("distillation", run.folder.distillation_checkpoints) as stage:
            # the teachers, as they are after the last step, become one small network
            teachers = {name: adapted.products[name] for name in config.teachers}
            distilled = distil(teachers, sets, config, stage)
        adapted = replace(
            adapted,
            chosen=distilled,
            network="distilled",
            feed="target",
            products={**adapted.products, "distilled": distilled},
            epoch=None,
            score=None,
        )
    if run.metrics is not None:
        run.metrics.close()
    return Trained(slices=slices, translated=translated, sets=sets, adapted=adapted)


def _translated_in(beginning: Beginning | None, hardware: Hardware) -> Precision:
    return hardware.precision if beginning is None else beginning.translation_precision


def _stages_done(
    cohort: Cohort,
    config: TrainConfig,
    recipe: Recipe,
    cache: Path,
    beginning: Beginning | None,
    hardware: Hardware,
) -> set[str]:
    """The translation, if the cache has the one that this run reads: then none is trained."""
    if not config.uses_translation or config.translation.kind != "cyclegan":
        return set()
    slices = slices_there(cohort, recipe, cache, target_labels=config.uses_target_labels)
    if slices is None:
        return set()
    precision = _translated_in(beginning, hardware)
    key = translation_key(slices, config.translation, config.seed, precision)
    return {STAGE} if folder_of(cache, key).is_dir() else set()


def aligned_sets(
    slices: Slices,
    translated: TranslatedSets,
    classes: int,
    config: TrainConfig,
    first: FirstModel | None = None,
) -> AlignedSets:
    """The image sets that there are, with the labels of the domain that is supervised."""
    images = translated.images
    if config.uses_target_labels:
        assert slices.target_labels is not None
        every = np.arange(len(slices.target))
        return AlignedSets(
            images=images, classes=classes, labels=slices.target_labels, labelled_rows=every
        )
    rows, held_out = slices.labelled_rows, None
    if config.chooses:
        assert slices.source_scans is not None
        rows, held_out = hold_out(rows, slices.source_scans, config.test.hold_out, config.seed)
    return AlignedSets(
        images=images,
        classes=classes,
        labels=slices.source_labels,
        labelled_rows=rows,
        held_out_rows=held_out,
        source_scans=slices.source_scans,
        target_scans=slices.target_scans,
        known_shares=None if first is None else torch.tensor(first.class_shares),
    )
