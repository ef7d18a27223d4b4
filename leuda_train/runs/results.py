"""trained networks -> what is kept of a run: the deployed network, its scores, two pictures."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from leuda_deploy.machine.progress import Progress
from leuda_deploy.model.card import Anatomy
from leuda_deploy.model.dice_curve import DiceCurve
from leuda_deploy.model.refine import AS_PREDICTED, Refine
from leuda_deploy.scans.intensity.likeness import profile_of
from leuda_deploy.scans.label_map import read_label_map
from leuda_deploy.scans.stack import Stack
from leuda_deploy.scans.volume import read_volume
from leuda_train.config.schema import TrainConfig
from leuda_train.config.streams import Stream
from leuda_train.config.tested import Feed
from leuda_train.data.aligned_sets import AlignedSets
from leuda_train.data.slices import Slices
from leuda_train.evaluation.anatomy import cohort_anatomy
from leuda_train.evaluation.dice_curve import (
    TOGETHER,
    LabelledScan,
    fit_dice_curve,
    kept_by,
    some_of,
)
from leuda_train.evaluation.held_out import HeldOut, oracle
from leuda_train.evaluation.ranking import rank_correlation
from leuda_train.export.product_file import ProductFacts, save_product
from leuda_train.export.shortcuts.extents import extents_mm
from leuda_train.networks.product import DeployedNetwork, TorchEngine
from leuda_train.objective.label_free import label_free_score
from leuda_train.pages.pictures import draw_predictions, draw_run
from leuda_train.runs.run import Run
from leuda_train.stages.adapt import Adapted
from leuda_train.stages.translated_sets import TranslatedSets

# The image families that look like what the product is fed, and how many slices of each are kept
# to prove exports on.
PARITY_SAMPLES: dict[Stream, int] = {"target": 64, "source_as_target": 16, "target_cycled": 16}


KEPT = 0.85  # Dice of each structure's true labels with the same, refined, for this to be done


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What the stages of a run leave behind."""

    slices: Slices
    translated: TranslatedSets
    sets: AlignedSets
    adapted: Adapted
    refine: Refine = AS_PREDICTED


def save_result(run: Run, trained: Trained) -> None:
    """Write the deployed network and its facts, and slices to prove exports on."""
    facts, samples = product_facts(run, trained), parity_samples(trained.translated)
    save_product(run.folder.path, trained.adapted.chosen, facts, samples)


def evaluate_run(run: Run, trained: Trained) -> dict[str, Any]:
    """Score the test scans, if there are any; all of evaluation.json but the seconds."""
    adapted = trained.adapted
    evaluation: dict[str, Any] = {}
    if run.cohort.role("target test"):
        held_out = HeldOut(run.cohort, run.recipe, run.hardware, refine=trained.refine)
        with run.show("test scans") as progress:
            numbers = run.cohort.structures
            rules = {numbers[name]: part.pieces for name, part in _anatomy(run).items()}
            evaluation = held_out.evaluate(
                adapted.chosen, run.folder.predictions, progress, clean_up=rules
            )
            evaluation |= score_networks(run, trained, held_out, progress)
            if run.config.reports_oracle:
                dice = evaluation["summary"]["as_predicted"]["mean"]["dice"]
                evaluation["oracle"] = oracle(dice, evaluation["networks"])
    return evaluation | {
        "method": run.config.method,
        "network": adapted.network,
        "feed": adapted.feed,
        "epoch": adapted.epoch,
        "refine": trained.refine.model_dump(),
        "label_free_score": adapted.score,
        "label_free_scores": adapted.scores,
        "hardware": str(run.hardware),
        **_source_scans(adapted),
        **_drift(run, adapted),
    }


def _source_scans(adapted: Adapted) -> dict[str, Any]:
    """Of how many unlabelled source scans the labels by a teacher were learned from."""
    if adapted.source_scans is None:
        return {}
    learned, there = adapted.source_scans
    return {"source_scans_by_teacher": {"learned_from": learned, "of": there}}


def _drift(run: Run, adapted: Adapted) -> dict[str, Any]:
    """How far a source-free run went from its first model, and whether that one is the product."""
    if not adapted.drift:
        return {}
    names = {number: name for name, number in run.cohort.structures.items()}
    return {
        "drift": {names[number]: asdict(one) for number, one in adapted.drift.items()},
        "lost": [names[number] for number, one in adapted.drift.items() if one.too_far],
    }


def draw_pictures(run: Run, trained: Trained, evaluation: Mapping[str, Any]) -> None:
    """Draw the image sets and the curves, and the predictions, if there are test scans."""
    folder = run.folder
    draw_run(folder.run_picture, trained.translated, trained.adapted.history, run.recipe.slice_axis)
    if "volumes" in evaluation:
        picture, predictions = folder.predictions_picture, folder.predictions
        draw_predictions(picture, evaluation, run.cohort, run.recipe, predictions)


def score_networks(
    run: Run, trained: Trained, held_out: HeldOut, progress: Progress
) -> dict[str, Any]:
    """Every network in use after the last epoch, on both feeds if there is a generator.

    Returns:
        `networks`: a row each, with its label-free score beside its Dice; `ranking`: how well the
        ones rank the others, over networks, and over epochs where that was asked for.
    """
    adapted, to_source, folder = trained.adapted, trained.translated.to_source, run.folder.oracle
    generators: dict[Feed, nn.Module | None] = {"target": None}
    if to_source is not None:
        generators["target_as_source"] = to_source
    rows = []
    for name, product in adapted.products.items():
        for feed, generator in generators.items():
            network = DeployedNetwork(product.network, generator)
            score = None
            if adapted.probe is not None:
                score = label_free_score(run.hardware.place(network), adapted.probe, run.hardware)
            found = held_out.score(network, folder, progress)
            rows.append({"network": name, "feed": feed, "label_free_score": score, **found})
    ranking = {"networks": rank_correlation((row["label_free_score"], row["dice"]) for row in rows)}
    looks = []
    for look in adapted.looks:
        network = DeployedNetwork(
            adapted.products[look["network"]].network, generators[look["feed"]]
        )
        network = copy.deepcopy(network)
        network.network.load_state_dict(look["weights"])
        looks.append((look["score"], held_out.score(network, folder, progress)["dice"]))
    if looks:
        ranking["epochs"] = rank_correlation(looks)
    return {"networks": rows, "ranking": ranking}


def parity_samples(translated: TranslatedSets) -> dict[str, NDArray[np.float32]]:
    """Slices (n, h, w) of each image family that there is, evenly spread over it."""
    samples: dict[str, NDArray[np.float32]] = {}
    for family, count in PARITY_SAMPLES.items():
        if family in translated.images:
            every = translated.images[family]
            chosen = np.linspace(0, len(every) - 1, min(count, len(every)))
            samples[family] = np.array(every[chosen.astype(int)])
    return samples


def product_facts(run: Run, trained: Trained) -> ProductFacts:
    """What has to be known of the product besides its weights."""
    config, cohort, adapted = run.config, run.cohort, trained.adapted
    widths = config.unet.widths
    if config.distil is not None:
        widths = config.distil.widths(widths)
    before = None if run.first is None else run.first.facts
    return ProductFacts(
        recipe=run.recipe,
        structures=tuple(cohort.structures),
        codes=(before.codes if before else {}) | cohort.spec.codes,
        modality=cohort.spec.target.modality,
        feed=adapted.feed,
        network=adapted.network,
        widths=widths,
        dropout=config.unet.dropout,
        generator=(config.translation.width, config.translation.blocks),
        method=config.method,
        cohort=cohort.spec.name,
        cohort_sha256=cohort.sha256,
        config=config.model_dump(mode="json"),
        seed=config.seed,
        steps=_steps(adapted, config) + (before.steps if before else 0),
        hardware=str(run.hardware),
        domain=profile_of(trained.slices.target_intensities),
        extents_mm=before.extents_mm if before else _extents_mm(run),
        anatomy=_anatomy(run),
        dice_curve=_dice_curve(run, trained),
        refine=trained.refine,
        class_shares=before.class_shares if before else _class_shares(run, trained.slices),
    )


def _anatomy(run: Run) -> dict[str, Anatomy]:
    """By structure, from the labelled source scans, also those of the model it goes on from."""
    if run.first is not None:
        return run.first.facts.anatomy
    found = cohort_anatomy(run.cohort, run.recipe)
    return {name: found[n] for name, n in run.cohort.structures.items() if n in found}


def _dice_curve(run: Run, trained: Trained) -> DiceCurve | None:
    """How far its probabilities can be believed, on labelled source scans; None without any.

    On scans that training held out, if it did. Where they were translated, what looks like the
    target is fed: that is what the product is for.
    """
    images, sets = trained.translated.images, trained.sets
    held_out = sets.held_out_rows is not None and len(sets.held_out_rows) > 0
    rows = sets.held_out_rows if held_out else sets.labelled_rows
    scans = _labelled(run, trained, rows, images.get("source_as_target", images.get("source")))
    if not scans:
        return None
    engine = TorchEngine(trained.adapted.chosen, run.hardware)
    return fit_dice_curve(
        engine, scans, classes=run.classes, held_out=held_out, refine=trained.refine
    )


def _labelled(
    run: Run, trained: Trained, rows: NDArray[np.int64] | None, fed: Any
) -> list[LabelledScan]:
    """Slices of the labelled scans that these rows are of, from the images `fed`."""
    of_scan = trained.slices.source_scans
    if run.config.uses_target_labels:
        of_scan, fed = trained.slices.target_scans, trained.translated.images["target"]
    if of_scan is None or fed is None or rows is None:
        return []
    labels = trained.sets.labels
    by_scan = [
        some_of(rows[of_scan[rows] == scan], together=TOGETHER) for scan in np.unique(of_scan[rows])
    ]
    return [
        LabelledScan(images=np.asarray(fed[some]), labels=np.asarray(labels[some]), rows=some)
        for some in by_scan
    ]


def refine_of(run: Run, trained: Trained) -> Refine:
    """What is done to probabilities: of what is asked for, all that true labels survive."""
    if run.first is not None:
        return run.first.facts.refine
    source = trained.translated.images.get("source")
    scans = _labelled(run, trained, trained.sets.labelled_rows, source)
    asked, kept = run.config.test, AS_PREDICTED
    for name in Refine.model_fields:
        more = kept.model_copy(update={name: getattr(asked, name)})
        if (
            more != kept
            and min(kept_by(more, scans, classes=run.classes).values(), default=0) >= KEPT
        ):
            kept = more
    return kept


def _class_shares(run: Run, slices: Slices) -> tuple[float, ...]:
    """(K,) the share of pixels that each class has in the source's labels, background first."""
    labels = slices.source_labels[slices.labelled_rows]
    counts = np.bincount(labels.ravel(), minlength=run.classes)
    return tuple((counts / counts.sum()).tolist())


def _extents_mm(run: Run) -> dict[str, float]:
    """The smallest extent of each structure in the labelled source scans. No target label."""
    cohort, stacks = run.cohort, []
    for scan in cohort.role("source labelled"):
        assert scan.label is not None
        volume = read_volume(scan.image, voxels=False)
        found = read_label_map(
            scan.label, class_of_raw=cohort.spec.class_of_raw("source"), like=volume
        )
        stacks.append(Stack(found.volume, run.recipe, pixel_spacing_mm=scan.pixel_spacing_mm))
    return extents_mm(stacks, cohort.structures)


def _steps(adapted: Adapted, config: TrainConfig) -> int:
    """Steps of stages 2 and 3 that the product's weights have seen."""
    epochs = config.schedule.epochs if adapted.epoch is None else adapted.epoch
    return epochs * config.schedule.steps_per_epoch + config.distil_steps
