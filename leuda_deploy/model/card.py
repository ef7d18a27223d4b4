"""the model card: what a model file says of itself, kept as JSON in its ONNX metadata.

It is all that training hands to deployment besides the weights. The card of a file from elsewhere
is untrusted: size-limited, validated against this schema, never evaluated. Long because the whole
schema stands here.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from leuda_deploy.errors import ModelError, describe, printable
from leuda_deploy.machine.outside import parse_json
from leuda_deploy.model.dice_curve import DiceCurve
from leuda_deploy.model.refine import AS_PREDICTED, Refine
from leuda_deploy.model.regions import MOST_REGIONS
from leuda_deploy.model.search import Search
from leuda_deploy.model.tiling import Tiling
from leuda_deploy.scans.dicom.rules import SeriesRules
from leuda_deploy.scans.intensity.likeness import IntensityProfile
from leuda_deploy.scans.recipe import Depth, Recipe

SCHEMA_VERSION = 1
METADATA_KEY = "leuda.card"
MAX_CARD_BYTES = 1 << 20
AGAIN = "export it again: leuda export RUN -o exports/NAME"


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("must be one line of printable text")
    return text


# it is shown, and written into other files: no line breaks, escapes or marks of direction in it
Text = Annotated[str, Field(max_length=500), AfterValidator(_printable)]
Lines = Annotated[str, Field(max_length=500)]  # made printable where it is shown
Channel = Annotated[int, Field(ge=0, le=255)]
Precision = Literal["fp32", "fp16", "bf16", "int8"]

# Distinct on grey images, also for the colour-blind (after Okabe and Ito, 2008).
PALETTE: tuple[tuple[int, int, int], ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (213, 94, 0),
    (0, 158, 115),
    (204, 121, 167),
    (240, 228, 66),
    (0, 114, 178),
    (160, 160, 160),
)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Code(NamedTuple):
    """What a term means to other programs, as DICOM has it: ("SCT", "10200004", "Liver").

    scheme   who numbers the terms: SCT is SNOMED CT; a scheme of your own begins with 99
    value    the term's number there
    meaning  the term, for people
    """

    scheme: Annotated[str, Field(min_length=1, max_length=16), AfterValidator(_printable)]
    value: Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_printable)]
    meaning: Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_printable)]


class Pieces(_Part):
    """What is kept of one structure by the clean-up.

    largest_only  the largest piece alone
    smallest_ml   else every piece of at least so many millilitres; the largest one in any case
    """

    largest_only: bool
    smallest_ml: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0


Millilitres = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Anatomy(_Part):
    """What the training labels say of one structure.

    pieces     of which pieces it may consist
    volume_ml  smallest and largest, where it is whole; None: every training scan cuts it
    """

    pieces: Pieces
    volume_ml: tuple[Millilitres, Millilitres] | None = None


class Structure(_Part):
    """One class of the model.

    name     of the structure
    value    its class number, which it also has in the label files that are written
    colour   red, green and blue in pictures
    code     what DICOM objects call it; none: they call it "Tissue", beside its name
    anatomy  what the training labels say of it; None: not known, nothing is cleaned up or flagged
    """

    name: Text
    value: Annotated[int, Field(ge=1, le=255)]
    colour: tuple[Channel, Channel, Channel]
    code: Code | None = None
    anatomy: Anatomy | None = None


class Provenance(_Part):
    """Where the weights come from.

    method         what was trained on what
    network        which of the networks of the run it is
    cohort         name of the cohort
    cohort_sha256  over what the cohort says and the bytes of its scans and labels
    config         the resolved config of the run
    seed           of the run
    steps          training steps
    created        date of the export
    versions       of the packages that made it
    test_dice      on the cohort's held-out scans, by structure; None: there were none
    """

    method: Text
    network: Text
    cohort: Text
    cohort_sha256: Text
    config: dict[str, object]
    seed: int
    steps: int
    created: Text
    versions: dict[str, Text]
    test_dice: dict[str, float] | None = None


class GraphOptions(_Part):
    """What the graph does beyond (B, C, *window) -> logits with a fixed window.

    dynamic_window    it takes any window whose sides are multiples of window_multiple
    window_multiple   see dynamic_window; 1 if the window is fixed
    output            its scores: logits, or after a softmax over the classes; of regions, a sigmoid
    regions           it has one score for each structure and none for background: structures are
                      regions, which may overlap; in one label map, the later of two is seen
    """

    dynamic_window: bool = False
    window_multiple: Annotated[int, Field(ge=1, le=4096)] = 1
    output: Literal["logits", "probabilities"] = "logits"
    regions: bool = False


class Int8(_Part):
    """On what an int8 graph was proven.

    weight_bits  7: it is the same network on every processor; 8: x86 without VNNI may compute
                 another one
    proven_on    kinds of processor on which every engine agreed with fp32
    """

    weight_bits: Literal[7, 8]
    proven_on: tuple[Text, ...]


class ModelCard(_Part):
    """What a model is, how scans are prepared for it, and what its outputs mean.

    schema_version  of this table
    name            of the model
    modality        of the scans it is for
    channels        what the network reads together, in order, as T1, T2; none: one scan
    structures      the classes, in order; background is class 0 and has no entry
    opset           of ONNX
    licence         under which the weights may be used
    feed  what the graph is given is always the normalised target scan; this says what the network
          inside reads: the target itself, or the target through the generator `to_source`
    precision  what most of the network computes in; inputs and scores are always fp32
    domain  intensity profile of the target scans of training; None: not known
    tiling  how windows are laid, blended, mirrored and left out
    depth   of a 3D graph's windows; None: the graph is 2D
    series  which DICOM series of a study the model is for
    int8    of a graph in int8: on what it was proven; None: another precision, or not known
    search  how few slices find all there is, where the export proved it; None: score every slice
    dice_curve  how far its probabilities can be believed; None: no Dice is predicted
    refine  what is done to the probabilities of classes before labels are taken
    sha256  over graph, weights and card; see `model_file`
    """

    schema_version: Literal[1] = 1
    name: Text
    modality: Text
    recipe: Recipe
    channels: Annotated[tuple[Text, ...], Field(max_length=32)] = ()
    structures: Annotated[tuple[Structure, ...], Field(min_length=1, max_length=255)]
    feed: Literal["target", "target_as_source"]
    precision: Precision = "fp32"
    options: GraphOptions = GraphOptions()
    domain: IntensityProfile | None = None
    tiling: Tiling = Tiling()
    depth: Depth | None = None
    series: SeriesRules = SeriesRules()
    int8: Int8 | None = None
    search: Search | None = None
    dice_curve: DiceCurve | None = None
    refine: Refine = AS_PREDICTED
    opset: Annotated[int, Field(ge=1)]
    licence: Lines
    provenance: Provenance
    sha256: Text

    @property
    def window(self) -> tuple[int, ...]:
        """What the graph reads at once: (h, w), or (d, h, w) of a 3D graph."""
        return (self.depth.slices, *self.recipe.window) if self.depth else self.recipe.window

    @property
    def probabilities(self) -> bool:
        """Whether the graph's scores are after a softmax."""
        return self.options.output == "probabilities"

    @property
    def scan_count(self) -> int:
        """C: how many scans the network reads together."""
        return max(1, len(self.channels))

    @property
    def score_count(self) -> int:
        """K: how many scores a pixel has; background has one, unless structures are regions."""
        return len(self.structures) + (not self.options.regions)

    @property
    def region_threshold(self) -> float | None:
        """The score above which a pixel is in a region; None: it is in the class of the largest."""
        if not self.options.regions:
            return None
        return 0.5 if self.probabilities else 0.0

    @property
    def label_names(self) -> dict[int, str]:
        """Label value -> structure name."""
        return {structure.value: structure.name for structure in self.structures}

    def to_json(self) -> str:
        """The text that is stored in the model file."""
        return self.model_dump_json()


def parse_card(text: str, origin: str) -> ModelCard:
    """Validate a card from a model file. Raises ModelError in one line; origin names the file."""
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > MAX_CARD_BYTES:
        raise ModelError(
            f"the model card of {origin} has {size:,} bytes; at most {MAX_CARD_BYTES:,} are read"
        )
    content = parse_json(text, f"the model card of {origin}", failed=ModelError)
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        fix = "update leuda" if isinstance(version, int) and version > SCHEMA_VERSION else AGAIN
        raise ModelError(
            f"the model card of {origin} has schema version "
            f"{printable(str(version), 20)!r}, this leuda reads version {SCHEMA_VERSION}: {fix}"
        )
    try:
        card = ModelCard.model_validate(content)
    except ValidationError as error:
        raise ModelError(
            f"the model card of {origin} is not valid: {describe(error)}; if another version of "
            f"leuda wrote it, {AGAIN}"
        ) from error
    names = [structure.name for structure in card.structures]
    if len(set(names)) != len(names):
        raise ModelError(f"the model card of {origin} names two structures alike: {names}")
    if [structure.value for structure in card.structures] != list(range(1, len(names) + 1)):
        raise ModelError(f"the model card of {origin} numbers its structures out of order")
    if card.depth is None and "slices" in card.tiling.mirror:
        raise ModelError(f"the model card of {origin} mirrors slices, but its graph is 2D")
    if (line := _unsupported(card)) is not None:
        raise ModelError(f"the model card of {origin} {line}")
    return card


def _unsupported(card: ModelCard) -> str | None:
    """What does not go together with the graph's windows, channels or regions; None if all does."""
    if card.tiling.whole and not card.options.dynamic_window:
        return "scores whole slices, but its graph has a fixed window"
    if card.tiling.find_first and (card.depth is None or card.options.regions):
        return "finds first among windows: that is for 3D graphs of classes"
    plain = card.depth is None and card.scan_count == 1 and not card.options.regions
    if (card.tiling.whole or card.tiling.air or card.refine) and not plain:
        what = "scores slices whole, or less air, or refines probabilities"
        return f"{what}: that is for 2D graphs of one scan and its classes"
    if card.scan_count > 1:
        if card.recipe.outside != "zero":
            return 'has several channels: that needs "outside": "zero" in its recipe'
        if card.domain is not None or card.search is not None or card.tiling.skip_floor:
            return "has several channels: domain, search and skip_floor are of one scan alone"
    if card.options.regions:
        if len(card.structures) > MOST_REGIONS:
            return f"has {len(card.structures)} regions; at most {MOST_REGIONS} are told apart"
        if card.search is not None or any(each.anatomy for each in card.structures):
            return "has regions: search and anatomy are of structures that do not overlap"
    return None
