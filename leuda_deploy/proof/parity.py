"""two engines, same windows -> they agree, or the candidate is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leuda_deploy.engines.engine import Float32, Scorer
from leuda_deploy.errors import ParityError
from leuda_deploy.model.card import ModelCard, Precision
from leuda_deploy.model.regions import region_bits
from leuda_deploy.proof.probes import Probes


@dataclass(frozen=True, kw_only=True)
class Tolerances:
    """How far a candidate may be off the reference.

    max_abs, mean_abs  largest and mean |Δlogit| on real windows, in units of the reference's
                       spread (the standard deviation of its logits on real windows)
    made_up_max_abs    the largest for noise and extremes; windows of one value need only be finite
    disagreement       share of the real windows' pixels that get another label
    dice               smallest Dice, between the two label maps, of a class over all real windows
    """

    max_abs: float
    mean_abs: float
    made_up_max_abs: float
    disagreement: float
    dice: float


TOLERANCES: dict[Precision, Tolerances] = {
    # Another order of summation: measured 1e-4 of the spread at most, 7e-7 in the mean. A wrong
    # weight, a dropped layer or swapped classes are at 1e-2 and far above. A translator's instance
    # normalisation enlarges it on a checkerboard: 1.4e-2 in OpenVINO, 2e-4 in ONNX Runtime.
    "fp32": Tolerances(
        max_abs=1e-3, mean_abs=2e-5, made_up_max_abs=5e-2, disagreement=1e-4, dice=0.9995
    ),
    # 11 bits of mantissa: 5e-4 relative a layer, some fifty layers deep, adding up like noise;
    # measured 4e-3 of the spread at most, 2e-4 in the mean. Engines that also accumulate in half
    # precision are allowed ten times that.
    "fp16": Tolerances(
        max_abs=0.05, mean_abs=2e-3, made_up_max_abs=0.5, disagreement=1e-3, dice=0.995
    ),
    # 8 bits of mantissa: eight times the steps of fp16; measured 0.05 of the spread at most, 3e-3
    # in the mean.
    "bf16": Tolerances(
        max_abs=0.2, mean_abs=1e-2, made_up_max_abs=2.0, disagreement=3e-3, dice=0.99
    ),
    # 8 bits with ranges taken from real target slices. What lies outside of them is clipped by
    # design, so made-up windows need only give finite scores. The labels are what has to stay:
    # with a Dice of at least 0.98 to fp32 in every class, the mean Dice to the truth moved by less
    # than 0.005 (benchmarks/results/export_matrix.json).
    "int8": Tolerances(
        max_abs=1.5, mean_abs=0.05, made_up_max_abs=float("inf"), disagreement=5e-3, dice=0.98
    ),
}

# fp32, of a network that normalises each window by itself (instance normalisation). Engines take
# scale * x + (shift - mean * scale), which loses digits in a window that is nearly flat: against
# PyTorch in float64, PyTorch is off by 2e-5 of the spread at most, ONNX Runtime by 1.5e-3, OpenVINO
# by 1e-2 (nnU-Net, 3D). What the labels may do stays.
BY_WINDOW = replace(TOLERANCES["fp32"], max_abs=3e-2, mean_abs=5e-4, made_up_max_abs=0.5)


@dataclass(frozen=True, kw_only=True)
class Parity:
    """What was found between a reference and a candidate. Figures of scores: see `Tolerances`.

    spread        standard deviation of the reference's scores on real windows
    class_dice    by class name, background included, between the two label maps; None: in neither
    worst_window, worst_class  where the largest |Δscore| on a real window is
    """

    stage: str
    windows: int
    real_windows: int
    spread: float
    max_abs: float
    mean_abs: float
    made_up_max_abs: float
    disagreement: float
    class_dice: dict[str, float | None]
    worst_window: str
    worst_class: str
    tolerances: Tolerances

    def as_dict(self) -> dict[str, object]:
        """For parity.json, where JSON has no infinity."""
        content = asdict(self)
        tolerances = content.pop("tolerances")
        limits = {k: v if np.isfinite(v) else None for k, v in tolerances.items()}
        return content | {"limits": limits}


def class_names(card: ModelCard) -> tuple[str, ...]:
    """The classes, or regions, in the order of the scores' channels."""
    names = tuple(structure.name for structure in card.structures)
    return names if card.options.regions else ("background", *names)


def run_windows(engine: Scorer, windows: Float32, *, batch: int = 8) -> Float32:
    """Windows (N, 1, h, w) -> scores (N, K, h, w), a few windows at a time."""
    groups = (windows[start : start + batch] for start in range(0, len(windows), batch))
    return np.concatenate([engine(np.ascontiguousarray(group)) for group in groups])


def check_parity(
    expected: Float32,
    candidate: Scorer,
    probes: Probes,
    *,
    stage: str,
    card: ModelCard,
    tolerances: Tolerances,
) -> Parity:
    """Run the candidate on the probes and compare with the reference's scores (N, K, h, w).

    The card names the classes, or the regions.

    Raises ParityError, naming stage, window and class, if a limit is passed or a value is not
    finite; its `window` is the index of the worst window.
    """
    classes, threshold = class_names(card), card.region_threshold
    found = run_windows(candidate, probes.windows)
    if expected.shape != found.shape:
        raise ParityError(
            f"{stage}: scores {found.shape} instead of {expected.shape}", figure="shape"
        )
    finite = np.isfinite(found)
    if not finite.all():
        window, channel = np.argwhere(~finite)[0, :2].tolist()
        raise ParityError(
            f"{stage}: {np.count_nonzero(~finite)} scores are not finite, the first in "
            f"'{probes.names[window]}', class {classes[channel]}",
            window=window,
            figure="finite",
            class_name=classes[channel],
        )
    real = slice(0, probes.real)
    spread = max(float(expected[real].std(dtype=np.float64)), 1e-6)
    labels, others = (_decided(scores[real], threshold) for scores in (expected, found))
    gap = np.abs(np.subtract(found, expected, out=found), out=found)  # scores of 3D windows are big
    window, channel = map(int, np.unravel_index(gap[real].argmax(), gap[real].shape)[:2])
    parity = Parity(
        stage=stage,
        windows=len(found),
        real_windows=probes.real,
        spread=spread,
        max_abs=float(gap[real].max()) / spread,
        mean_abs=float(gap[real].mean(dtype=np.float64)) / spread,
        made_up_max_abs=float(gap[probes.real : probes.flat].max(initial=0.0)) / spread,
        disagreement=float((labels != others).mean()),
        class_dice={
            name: _dice(_in(labels, k, threshold), _in(others, k, threshold))
            for k, name in enumerate(classes)
        },
        worst_window=probes.names[window],
        worst_class=classes[channel],
        tolerances=tolerances,
    )
    _judge(parity, gap, labels != others, probes, classes)
    return parity


def _decided(scores: Float32, region_threshold: float | None) -> NDArray[Any]:
    """(N, K, h, w) -> (N, h, w): class numbers, or a bit for each region."""
    if region_threshold is None:
        classes: NDArray[np.int64] = scores.argmax(axis=1)
        return classes
    return region_bits(np.moveaxis(scores, 1, 0), region_threshold)


def _in(decided: NDArray[Any], k: int, region_threshold: float | None) -> NDArray[np.bool_]:
    """Where the pixels of channel k are."""
    inside: NDArray[np.bool_] = (
        decided == k if region_threshold is None else (decided >> np.uint8(k)) % 2 == 1
    )
    return inside


def _dice(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float | None:
    size = int(np.count_nonzero(one) + np.count_nonzero(other))
    return 2 * int(np.count_nonzero(one & other)) / size if size else None


def _judge(
    parity: Parity,
    gap: Float32,
    differ: NDArray[np.bool_],
    probes: Probes,
    classes: Sequence[str],
) -> None:
    """Raise ParityError for the first tolerance that is passed. `not x <= y` holds for NaN, too."""
    allowed, real = parity.tolerances, probes.real

    def refuse(figure: str, what: str, window: int, channel: int) -> ParityError:
        return ParityError(
            f"{parity.stage}: {what}; worst in '{probes.names[window]}', class {classes[channel]}",
            window=window,
            figure=figure,
            class_name=classes[channel],
        )

    by_window = gap.reshape(*gap.shape[:2], -1).max(axis=2)
    for figure, title, part in (
        ("max_abs", "largest |Δlogit|", slice(0, real)),
        ("mean_abs", "mean |Δlogit|", slice(0, real)),
        ("made_up_max_abs", "largest |Δlogit| on made-up windows", slice(real, probes.flat)),
    ):
        value, limit = getattr(parity, figure), getattr(allowed, figure)
        if not value <= limit:
            window, channel = divmod(int(by_window[part].argmax()), by_window.shape[1])
            what = f"{title} is {value:.3g} of the logits' spread, allowed {limit:g}"
            raise refuse(figure, what, window + (part.start or 0), channel)
    worst = int(differ.reshape(len(differ), -1).mean(axis=1).argmax())
    dice = {k: d for k, d in enumerate(parity.class_dice.values()) if d is not None}
    lowest = min(dice, key=lambda k: dice[k])
    if not parity.disagreement <= allowed.disagreement:
        what = f"{parity.disagreement:.2%} of pixels get another label"
        what += f", allowed {allowed.disagreement:.2%}"
        raise refuse("disagreement", what, worst, lowest)
    if not dice[lowest] >= allowed.dice:
        what = f"Dice of {classes[lowest]} between the two is {dice[lowest]:.4f}"
        raise refuse("dice", f"{what}, allowed {allowed.dice}", worst, lowest)
