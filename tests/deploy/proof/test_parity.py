"""The gate passes what agrees, and says of what does not: stage, window and class."""

from __future__ import annotations

import json

import numpy as np
import pytest
from support.makers import make_card

from leuda_deploy.errors import ModelError, ParityError
from leuda_deploy.proof import probes as probes_module
from leuda_deploy.proof.parity import TOLERANCES, check_parity, class_names, run_windows
from leuda_deploy.proof.probes import FEWEST_WINDOWS, Probes, make_probes

CARD = make_card()


def engine(windows: np.ndarray) -> np.ndarray:
    """Logits 0, x and 2x - 1 of the pixel's value x."""
    return np.concatenate([np.zeros_like(windows), windows, 2 * windows - 1], axis=1)


@pytest.fixture
def probes() -> Probes:
    images = np.random.default_rng(0).normal(size=(10, 12, 16)).astype(np.float32)
    return make_probes({"target": images[:6], "target_cycled": images[6:]})


def judge(probes: Probes, candidate, precision="fp32"):
    expected = run_windows(engine, probes.windows)
    return check_parity(
        expected,
        candidate,
        probes,
        stage="A -> B",
        card=CARD,
        tolerances=TOLERANCES[precision],
    )


def test_probes_are_real_slices_borders_noise_and_extremes(probes: Probes) -> None:
    assert probes.real == 64
    assert probes.windows.dtype == np.float32
    assert probes.windows.shape == (len(probes.names), 1, 12, 16)
    assert len(set(probes.names)) == len(probes.names)
    assert sum("at the border" in name for name in probes.names) == 54
    assert {name.split(" ")[0] for name in probes.names[:10]} == {"target", "target_cycled"}
    assert np.ptp(probes.windows[probes.flat :], axis=(1, 2, 3)).max() == 0
    floor = probes.windows[: probes.real].min()
    border = probes.names.index("target slice 0 at the border, moved to the top left")
    np.testing.assert_array_equal(probes.windows[border, 0, :6, :8], probes.windows[0, 0, 6:, 8:])
    assert (probes.windows[border, 0, 6:] == floor).all()


def test_probes_need_a_real_slice() -> None:
    with pytest.raises(ModelError):
        make_probes({"target": np.zeros((0, 8, 8), np.float32)})


def test_the_same_engine_agrees(probes: Probes) -> None:
    parity = judge(probes, engine)
    assert parity.max_abs == parity.mean_abs == parity.disagreement == 0
    assert parity.class_dice == dict.fromkeys(class_names(CARD), 1.0)
    json.dumps(parity.as_dict(), allow_nan=False)
    json.dumps(judge(probes, engine, "int8").as_dict(), allow_nan=False)


def test_one_wrong_value_names_its_window_and_class(probes: Probes) -> None:
    where = probes.windows[7].copy()

    def candidate(windows: np.ndarray) -> np.ndarray:
        found = engine(windows)
        for i, window in enumerate(windows):
            if np.array_equal(window, where):
                found[i, 2, 3, 4] += 0.1
        return found

    with pytest.raises(ParityError) as refused:
        judge(probes, candidate)
    error = refused.value
    assert (error.figure, error.window, error.class_name) == ("max_abs", 7, "bright")
    assert str(error).startswith("A -> B: ")
    assert probes.names[7] in str(error)
    assert judge(probes, candidate, "int8").worst_window == probes.names[7]


@pytest.mark.parametrize(
    ("change", "figure"),
    [
        (lambda x: x[:, [0, 2, 1]], "max_abs"),
        (lambda x: x + np.float32(1e-4), "mean_abs"),
        (lambda x: x[:, :2], "shape"),
        (lambda x: np.where(x == x.max(), np.nan, x), "finite"),
        (lambda x: np.where(x == x.max(), np.inf, x), "finite"),
    ],
)
def test_what_differs_is_refused(probes: Probes, change, figure: str) -> None:
    with pytest.raises(ParityError) as refused:
        judge(probes, lambda windows: change(engine(windows)))
    assert refused.value.figure == figure


def test_int8_is_judged_by_its_labels(probes: Probes) -> None:
    def tilt(by: float):
        return lambda windows: engine(windows) + np.float32([0, by, 0])[None, :, None, None]

    assert judge(probes, tilt(0.001), "int8").disagreement < 5e-3
    with pytest.raises(ParityError) as refused:
        judge(probes, tilt(0.05), "int8")
    assert refused.value.figure == "disagreement"


def test_flat_windows_need_only_be_finite(probes: Probes) -> None:
    def offset(by: float):
        def candidate(windows: np.ndarray) -> np.ndarray:
            flat = (np.ptp(windows, axis=(1, 2, 3)) == 0)[:, None, None, None]
            return np.where(flat, np.float32(by), engine(windows))

        return candidate

    judge(probes, offset(100.0))
    with pytest.raises(ParityError) as refused:
        judge(probes, offset(np.nan))
    assert refused.value.figure == "finite"
    assert refused.value.window is not None
    assert refused.value.window >= probes.flat


def test_a_slice_of_air_counts_as_flat() -> None:
    images = np.random.default_rng(0).normal(size=(6, 12, 16)).astype(np.float32)
    images[3] = -1 + 1e-7
    probes = make_probes({"target": images})
    assert "target slice 3" in probes.names[probes.flat :]
    assert probes.windows[: probes.real].std(axis=(1, 2, 3)).min() > 0.1
    with pytest.raises(ModelError):
        make_probes({"target": np.zeros((4, 8, 8), np.float32)})


@pytest.mark.parametrize(("slices", "room"), [(4, 64), (16, 16), (64, 8)])
def test_large_windows_are_few_spread_and_of_each_kind(
    monkeypatch: pytest.MonkeyPatch, slices: int, room: int
) -> None:
    monkeypatch.setattr(probes_module, "MOST_VOXELS", 16 * 16 * 12 * 16)
    blocks = np.random.default_rng(0).normal(size=(80, slices, 12, 16)).astype(np.float32)
    probes = make_probes({"scan": blocks})
    borders = sum("at the border" in name for name in probes.names)
    assert probes.real == room
    assert borders == min(8, room // 2)
    assert {"scan slice 0", "scan slice 79"} <= set(probes.names)
    assert len(set(probes.names)) == len(probes.names) <= room + 11
    few = make_probes({"scan": blocks[:2]})  # then the border makes up for them
    assert few.real == min(room, 2 + 8 * 2)


def test_large_blocks_are_as_few_as_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes_module, "MOST_VOXELS", 16 * 12 * 16)  # not even one block's
    blocks = np.random.default_rng(0).normal(size=(30, 32, 12, 16)).astype(np.float32)
    assert make_probes({"scan": blocks}).real == FEWEST_WINDOWS
