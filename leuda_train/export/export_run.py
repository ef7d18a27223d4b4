"""a finished run -> exports/NAME: a model file in the precision asked for, proven, or nothing."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from leuda_deploy.engines.open_engine import reference_engine
from leuda_deploy.errors import LeudaError, TrainingError, reading
from leuda_deploy.export.to_onnx import OPSET
from leuda_deploy.inference.slabs import scoring_of
from leuda_deploy.machine.outside import read_json
from leuda_deploy.machine.progress import Progress, no_progress
from leuda_deploy.model.card import (
    PALETTE,
    GraphOptions,
    ModelCard,
    Precision,
    Provenance,
    Structure,
)
from leuda_deploy.model.export_folder import check_replaceable
from leuda_deploy.model.model_file import ModelFile
from leuda_deploy.model.tiling import DEFAULT_TILING, Tiling
from leuda_deploy.proof.parity import Parity
from leuda_deploy.proof.probes import Probes, make_probes
from leuda_deploy.scans.dicom.rules import NO_RULES, SeriesRules
from leuda_train.export.product_file import ProductFacts, load_product
from leuda_train.export.proven import write_proven
from leuda_train.export.shortcuts.prove_search import with_search
from leuda_train.export.shortcuts.prove_tiling import with_tiling
from leuda_train.export.shortcuts.whole_scans import (
    label_in_full,
    named_scans,
    target_scans,
)
from leuda_train.loop.run_folder import MAX_EVALUATION_BYTES, RunFolder


def export_run(  # noqa: PLR0913  (public: an option of the command each)
    run: Path,
    out: Path,
    *,
    licence: str = "not stated",
    precision: Precision = "fp32",
    options: GraphOptions | None = None,
    tiling: Tiling = DEFAULT_TILING,
    series: SeriesRules = NO_RULES,
    search: bool | None = None,
    search_on: Sequence[Path] = (),
    progress: Progress = no_progress,
) -> tuple[ModelFile, Parity]:
    """Export a finished run: model.onnx, card.json (the same card, to read), parity.json, manifest.

    The folder appears only when each form agrees with the one before it on real slices, their
    borders, noise and extremes: PyTorch -> ONNX fp32 -> ONNX in the precision asked for.
    Both graphs are run by every engine for this CPU that is installed.

    Args:
        run: The run folder that `train` filled.
        out: The export folder. Its name becomes the model's.
        licence: Licence of the weights, for the card.
        precision: What the graph computes in. Its inputs and scores are always fp32.
        options: Other window sizes; probabilities instead of logits.
        tiling: How windows overlap, and whether they may be mirrored.
        series: Which DICOM series of a study the model is for.
        search: True: the card has a proven search, or nothing is kept; False: none is looked for,
            nor whether slices can be scored whole, or air left out; None: the card has what is
            proven, and parity.json says why if not.
        search_on: Scans to prove these on; by default the run's unlabelled target scans.
        progress: Told how far the lowering of the precision, and the proof of the search, is.

    Returns:
        The model file, and what the last comparison found.

    Raises:
        ParityError: Two forms disagree, or a search was asked for that is not proven; nothing is
            kept.
        TrainingError: The run is not finished.
        InputError: A scan is not there, or `out` holds something that is not an export.
    """
    check_replaceable(out)
    product, facts, families = load_product(run)
    scans = named_scans(search_on, facts.recipe) or target_scans(run, facts.recipe)
    card = make_card(facts, out.name, licence, _test_dice(run), options or GraphOptions(), tiling)
    card = card.model_copy(update={"series": series})

    def with_shortcuts(model: ModelFile, report: dict[str, object]) -> ModelFile:
        """The model with the tiling and the search that are proven, if they are."""
        if search is False:
            return model
        engine = reference_engine(model)
        try:
            scoring, classes = scoring_of(model.card), 1 + len(model.card.structures)
            passes = label_in_full(scans, engine, scoring, classes=classes, progress=progress)
            model, report["tilings"] = with_tiling(model, engine, passes)
            model, report["search"] = with_search(model, engine, passes, facts)
        except LeudaError as error:  # a scan may have gone bad since
            if search:
                raise
            report["no_search"] = str(error)
        return model

    return write_proven(
        product,
        card,
        families,
        out,
        precision=precision,
        calibration=families["target"],
        finish=with_shortcuts,
        progress=progress,
    )


def run_probes(run: Path) -> Probes:
    """The windows that this run's exports are proven on."""
    return make_probes(load_product(run)[2])


def make_card(
    facts: ProductFacts,
    name: str,
    licence: str,
    test_dice: dict[str, float] | None,
    options: GraphOptions,
    tiling: Tiling = DEFAULT_TILING,
) -> ModelCard:
    """The card of a run's product; the exporter fills in the checksum."""
    structures = tuple(
        Structure(
            name=structure,
            value=value,
            colour=PALETTE[(value - 1) % len(PALETTE)],
            code=facts.codes.get(structure),
            anatomy=facts.anatomy.get(structure),
        )
        for value, structure in enumerate(facts.structures, start=1)
    )
    provenance = Provenance(
        method=facts.method,
        network=facts.network,
        cohort=facts.cohort,
        cohort_sha256=facts.cohort_sha256,
        config=facts.config,
        seed=facts.seed,
        steps=facts.steps,
        created=datetime.now(UTC).date().isoformat(),
        versions={package: metadata.version(package) for package in ("leuda", "torch", "onnx")},
        test_dice=test_dice,
    )
    return ModelCard(
        name=name,
        modality=facts.modality,
        recipe=facts.recipe,
        structures=structures,
        feed=facts.feed,
        options=_with_multiple(options, facts),
        domain=facts.domain,
        dice_curve=facts.dice_curve,
        refine=facts.refine,
        tiling=tiling,
        opset=OPSET,
        licence=licence,
        provenance=provenance,
        sha256="",
    )


def _with_multiple(options: GraphOptions, facts: ProductFacts) -> GraphOptions:
    """Windows of an open graph have to be multiples of what the U-Net, and the generator, halve."""
    if not options.dynamic_window:
        return options
    halvings = max(len(facts.widths) - 1, 2 if facts.feed == "target_as_source" else 0)
    return options.model_copy(update={"window_multiple": 2**halvings})


def _test_dice(run: Path) -> dict[str, float] | None:
    """Mean Dice by structure on the run's test scans, if it was tested."""
    path = RunFolder(run).evaluation
    if not path.is_file():
        return None
    with reading(lambda what: TrainingError(f"{path} is not what `leuda train` wrote: {what}")):
        summary = read_json(path, most=MAX_EVALUATION_BYTES).get("summary")
        if summary is None:
            return None
        # what the deployed model says: cleaned up, where the run knew how
        rows = summary.get("cleaned_up", summary["as_predicted"])["structures"]
        found = {name: row["dice"] for name, row in rows.items() if row["dice"] is not None}
        return {name: round(dice, 4) for name, dice in found.items()} or None
