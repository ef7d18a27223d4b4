"""int8 layers are exact integer arithmetic on every processor.

On x86 without VNNI, two products of an unsigned and a signed byte are added in 16 bits that
saturate. ONNX Runtime is asked not to; OpenVINO cannot be, so that there it depends on the weights:
those of 7 bits are exact everywhere. Where the processor has VNNI nothing saturates anyway: there
the bound of the weights is tested, and not what would happen beyond it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from support.makers import MakeCard, random_network

from leuda_deploy.engines.onnx_runtime import OnnxEngine
from leuda_deploy.engines.openvino import OpenVinoEngine
from leuda_deploy.export.to_int8 import LEVELS, PORTABLE_LEVELS, quantise
from leuda_deploy.model.export_folder import MODEL_FILE
from leuda_deploy.model.model_file import write_model

WIDTH = 16  # channels of the layer that is int8
STEP = 1 / 32  # of its input


def int8_network(weight_levels: int) -> onnx.ModelProto:
    """Three convolutions, of which the second is int8. The others copy whole numbers of steps.

    conv0 writes the pixel's value, or its negative, to every channel; conv2 reads three of them.
    """
    model = random_network(1, WIDTH, WIDTH, 3)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    first, last = np.zeros((WIDTH, 1, 3, 3), np.float32), np.zeros((3, WIDTH, 3, 3), np.float32)
    first[:, 0, 1, 1] = np.where(np.arange(WIDTH) % 3, 1, -1)
    for k in range(3):
        last[k, 5 * k, 1, 1] = 1
    for name, values in (("w0", first), ("w2", last)):
        weights[name].CopyFrom(numpy_helper.from_array(values, name))
    ranges = {"features1": LEVELS * STEP, "features2": 8.0}
    return quantise(model, ranges, ["conv1"], weight_levels=weight_levels)


def by_integers(
    model: onnx.ModelProto, whole: NDArray[np.int64]
) -> tuple[NDArray[np.float64], float]:
    """Pixels in steps (B, h, w) -> scores (B, 3, h, w) in steps of the output; and that step."""
    tensors = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    weights = tensors["w1_q"].astype(np.int64)[[0, 5, 10]]
    signs = np.where(np.arange(WIDTH) % 3, 1, -1)
    padded = np.pad(whole, ((0, 0), (1, 1), (1, 1)))
    around = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    sums = np.einsum("bhwij,c,kcij->bkhw", around, signs, weights)
    step = float(tensors["features2_scale"])
    scale = tensors["w1_scale"][[0, 5, 10], None, None].astype(np.float64) * STEP / step
    return np.clip(sums * scale, -LEVELS, LEVELS), step


def test_two_products_of_the_largest_portable_weights_fit_into_16_bits() -> None:
    weights = {t.name: t for t in int8_network(PORTABLE_LEVELS).graph.initializer}["w1_q"]
    largest = int(np.abs(numpy_helper.to_array(weights).astype(int)).max())
    assert weights.data_type == TensorProto.INT8
    assert largest >= 63
    assert 2 * 255 * largest <= np.iinfo(np.int16).max


@pytest.mark.parametrize(
    ("engine", "weight_levels"),
    [("ort-cpu", LEVELS), ("ort-cpu", PORTABLE_LEVELS), ("openvino", PORTABLE_LEVELS)],
)
def test_a_layer_is_exact_whatever_the_processor(
    engine: str, weight_levels: int, tmp_path: Path, make_card: MakeCard
) -> None:
    model = int8_network(weight_levels)
    file = write_model(model, make_card(precision="int8"), tmp_path / MODEL_FILE)
    if engine == "openvino":
        pytest.importorskip("openvino", reason="the openvino extra is not installed")
        score = OpenVinoEngine(file, precision="fp32", threads=1)
    else:
        score = OnnxEngine(file, threads=1)
    whole = np.random.default_rng(0).integers(-LEVELS, LEVELS + 1, (4, 16, 16))
    whole[0] = LEVELS  # the largest sums that there are
    expected, step = by_integers(model, whole)
    found = score((whole[:, None] * STEP).astype(np.float32)) / step
    assert np.abs(expected).max() > LEVELS / 2
    np.testing.assert_allclose(found, expected, atol=0.5 + 1e-3)  # rounded to a step, no more
