"""stage 2: aligned image sets -> student and two teachers, by the step in `step.py`."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from leuda_train.config.schema import TrainConfig
from leuda_train.config.tested import Feed
from leuda_train.data.aligned_sets import AlignedSets, take_rows
from leuda_train.data.batches import Draw, make_batch, seed_dropout, step_generator
from leuda_train.export.first_model import FirstModel
from leuda_train.loop.hardware import Hardware
from leuda_train.loop.loop import StageRun, run_steps
from leuda_train.loop.metrics_log import Row
from leuda_train.loop.profile import phase
from leuda_train.networks.batchnorm import reestimate
from leuda_train.networks.cyclegan import Generator
from leuda_train.networks.product import DeployedNetwork
from leuda_train.objective.label_free import Probe, label_free_score, make_probe
from leuda_train.objective.schedules import lambdas, learning_rate
from leuda_train.objective.step import le_uda_step
from leuda_train.stages.build import build_networks
from leuda_train.stages.drift import Drift, drift
from leuda_train.stages.self_labels import SelfLabels

FEED_BATCHES = 8  # batches read at once when batch norms are re-estimated: steadier statistics


@dataclass(frozen=True, kw_only=True)
class Adapted:
    """The trained networks, in evaluation mode, after the last step, and which one is the product.

    products  network name -> its product now: the network, behind the generator if it
              reads x^{t→s}
    chosen    the product of the run, and its network, feed, epoch and label-free score; None of the
              last two where it was distilled
    scores    label-free scores by epoch, a row each
    probe     what label-free scores are taken on; None for the upper bound
    looks     on request: every candidate at every look, with its weights
    source_scans  of the unlabelled source scans, those whose labels by a teacher were learned from
              at last, and all of them; None where the method labels none
    drift     of a source-free run, by class: how far it went from its first labels. Where that is
              too far for one of them, the product is the first model itself
    """

    products: dict[str, DeployedNetwork]
    chosen: DeployedNetwork
    network: str
    feed: Feed
    epoch: int | None
    score: float | None
    scores: list[Row]
    history: list[Row]
    probe: Probe | None = None
    looks: list[dict[str, Any]] = field(default_factory=list)
    source_scans: tuple[int, int] | None = None
    drift: dict[int, Drift] = field(default_factory=dict)


def adapt(
    sets: AlignedSets,
    config: TrainConfig,
    run: StageRun,
    to_source: Generator | None = None,
    first: FirstModel | None = None,
) -> Adapted:
    """Train by the config's method. Resumes from the run's folder.

    to_source  the generator of stage 1, where a network is tested on x^{t→s}
    first      what a source-free run goes on from
    """
    trainer = Adaptation(sets, config, run.hardware, to_source, first, run.recomputed)
    schedule = config.schedule
    steps = schedule.epochs * schedule.steps_per_epoch
    history = run_steps(trainer, run, name=config.method, steps=steps)
    best = trainer.best
    products = {
        name: trainer.product(name, config.test.feed_of(name)).eval()
        for name in config.networks_in_use
    }
    chosen = copy.deepcopy(trainer.product(best["network"], best["feed"])).eval()
    chosen.network.load_state_dict(best["weights"])
    if first is not None:
        network = run.hardware.place(copy.deepcopy(first.network))
        products["first_model"] = DeployedNetwork(network, None).eval()
    if config.test.batchnorm == "feed":
        for product in (*products.values(), chosen):
            _fit_to_feed(product, sets, config, run.hardware)
    found = {}
    if first is not None:
        began = trainer.labels.of_target(copy.deepcopy(network), config.objective)
        images = sets.images["target"]
        found = drift(products["first_model"], began, chosen, images, run.hardware)
        if any(one.too_far for one in found.values()):
            chosen = copy.deepcopy(products["first_model"])
            best = {"network": "first_model", "feed": "target", "epoch": 0, "score": None}
    return Adapted(
        products=products,
        chosen=chosen,
        network=best["network"],
        feed=best["feed"],
        epoch=best["epoch"],
        score=best["score"],
        scores=trainer.scores,
        history=history,
        probe=trainer.probe,
        looks=trainer.looks,
        source_scans=trainer.labels.source_scans,
        drift=found,
    )


def _fit_to_feed(
    product: DeployedNetwork, sets: AlignedSets, config: TrainConfig, hardware: Hardware
) -> None:
    """Re-estimate a product's batch norms on its unlabelled feed, in a fixed order of slices."""
    images, size = sets.images["target"], config.schedule.batch_unlabelled * FEED_BATCHES
    rows = np.random.default_rng(config.seed).permutation(len(images))
    # whole batches alone: each counts the same
    parts = np.array_split(rows, max(1, round(len(rows) / size)))
    batches = (hardware.put(take_rows(images, part, hardware)[:, None]) for part in parts)
    with hardware.autocast():
        reestimate(product.network, hardware.place(product), batches)


def draw_of(config: TrainConfig, step: int) -> Draw:
    """What a step of stage 2 draws."""
    config = config.at(step // config.schedule.steps_per_epoch)
    look = config.appearance
    return Draw(
        seed=config.seed,
        supervised=config.objective.supervised_on,
        labelled_count=config.schedule.batch_labelled,
        unlabelled=config.objective.unlabelled_streams,
        unlabelled_count=config.schedule.batch_unlabelled,
        restyle_target=config.objective.lambda_pseudo > 0,
        augment=config.augment,
        style=config.style,
        appearance=None if look is None else (look, config.target_appearance),
        source_pseudo_share=config.objective.source_pseudo_share,
        structure_share=config.schedule.structure_share,
        copy_paste=config.objective.copy_paste,
        size=config.window_at(step),
    )


class Adaptation:
    """One LE-UDA iteration at a time."""

    def __init__(
        self,
        sets: AlignedSets,
        config: TrainConfig,
        hardware: Hardware,
        to_source: Generator | None = None,
        first: FirstModel | None = None,
        recomputed: int = 0,
    ) -> None:
        self.config, self.hardware = config, hardware
        to_edges = first is None or first.facts.refine.edges
        self.labels = SelfLabels(sets.on_device(hardware), hardware, to_edges=to_edges)
        last = config.schedule.epochs * config.schedule.steps_per_epoch - 1
        self.draw = draw_of(config, last)
        self.images_per_step = self.draw.images_per_step
        self.to_source = hardware.place(to_source) if to_source is not None else None
        labelled = not (config.uses_target_labels or config.source_free)  # in the source
        self.probe = make_probe(sets, hardware, config.seed) if labelled else None
        self.updates_before = first.facts.steps if first is not None else 0
        self.scores: list[Row] = []
        self.looks: list[dict[str, Any]] = []
        self.best: dict[str, Any] = {}
        torch.manual_seed(config.seed)
        self.nets = build_networks(
            config, sets.classes, sets.class_shares, hardware, first, recomputed
        )

    def step(self, step: int) -> dict[str, Tensor]:
        """Draw the batch of this step and train on it."""
        epoch = step // self.config.schedule.steps_per_epoch
        config = self.config.at(epoch)
        objective = config.objective
        rate = learning_rate(step, config.schedule, objective.warmup_epochs)
        self.nets.student_optimizer.param_groups[0]["lr"] = rate
        with phase("pseudo-labels"):
            self.labels.renew(step, config, self.nets)
        with phase("data"):
            self.draw = draw_of(self.config, step)
            batch = make_batch(self.labels.sets, self.draw, self.hardware, step, self.labels.target)
        seed_dropout(config.seed, "dropout", step, self.hardware)
        every = config.schedule.shares_every
        terms = le_uda_step(
            self.nets,
            batch,
            lambdas(epoch, objective),
            objective,
            self.hardware,
            update=self.updates_before + step,
            generator=step_generator(config.seed, "teacher noise", step),
            shares=not config.source_free and every > 0 and (step + 1) % every == 0,
        )
        with phase("selection"):
            self._select(step + 1)
        return terms

    def product(self, network: str, feed: Feed) -> DeployedNetwork:
        """The product of a network as it is now, to be fed so."""
        through = feed == "target_as_source"
        assert self.to_source is not None or not through
        return DeployedNetwork(getattr(self.nets, network), self.to_source if through else None)

    def _select(self, done: int) -> None:
        """Score the candidates every few epochs and at the end; keep the best that may be kept."""
        schedule, test = self.config.schedule, self.config.test
        last = done == schedule.epochs * schedule.steps_per_epoch
        if not last and (
            test.select == "last" or done % (test.select_epochs * schedule.steps_per_epoch)
        ):
            return
        row: Row = {"epoch": done / schedule.steps_per_epoch}
        for name, feed in self.config.candidates:
            score = 0.0
            if self.probe is not None:
                score = label_free_score(self.product(name, feed), self.probe, self.hardware)
            row[f"{name} on {feed}"] = score
            better = not self.best or score > self.best["score"]
            if better or test.rank_epochs:
                weights = getattr(self.nets, name).state_dict()
                look = {
                    "score": score,
                    "network": name,
                    "feed": feed,
                    "epoch": round(row["epoch"]),
                    "weights": {key: value.detach().clone() for key, value in weights.items()},
                }
                self.best = look if better else self.best
                self.looks += [look] if test.rank_epochs else []
        self.scores.append(row)

    def state(self) -> dict[str, Any]:
        """Every network, optimiser and the scaler, and what was selected so far."""
        parts = {name: part.state_dict() for name, part in vars(self.nets).items()}
        found = {"scores": self.scores, "best": self.best, "looks": self.looks}
        return parts | found | self.labels.state()

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        for name, part in vars(self.nets).items():
            if name in state:  # a run from before a part was there goes on with a fresh one
                part.load_state_dict(state[name])
        self.scores, self.best = list(state["scores"]), state["best"]
        self.looks = list(state.get("looks", []))
        if self.best:  # of a run from before a network could be chosen on either feed
            self.best.setdefault("feed", self.config.test.feed_of(self.best["network"]))
        self.labels.restore(state)
