"""Which GPU CUDA would use, asked of NVML. Without a GPU, its library is stood in for."""

from __future__ import annotations

from collections.abc import Callable

import pynvml
import pytest

from leuda_deploy.machine.gpu import Gpu, driver_version, find_gpu

CARDS = (("RTX A2000", (8, 6), "GPU-1a2b"), ("H100", (9, 0), "GPU-9f8e"))
FIRST = Gpu(name="RTX A2000", capability="8.6")
SECOND = Gpu(name="H100", capability="9.0")


@pytest.fixture
def two_cards(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """NVML of a machine with two GPUs; gives how often it was opened and not closed."""
    opened = 0

    def count(step: int) -> None:
        nonlocal opened
        opened += step

    def handle(index: int) -> int:
        if not 0 <= index < len(CARDS):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return index

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name, stand_in in {
        "nvmlInit": lambda: count(1),
        "nvmlShutdown": lambda: count(-1),
        "nvmlDeviceGetCount": lambda: len(CARDS),
        "nvmlDeviceGetHandleByIndex": handle,
        "nvmlDeviceGetName": lambda index: CARDS[index][0],
        "nvmlDeviceGetCudaComputeCapability": lambda index: CARDS[index][1],
        "nvmlDeviceGetUUID": lambda index: CARDS[index][2],
        "nvmlSystemGetCudaDriverVersion_v2": lambda: 12080,
    }.items():
        monkeypatch.setattr(pynvml, name, stand_in)
    return lambda: opened


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, FIRST),
        ("0", FIRST),
        ("1,0", SECOND),
        (" 1", SECOND),
        ("GPU-9f8e", SECOND),
        ("GPU-9", SECOND),
        ("2", None),
        ("GPU-77", None),
        ("-1", None),
        ("", None),
    ],
)
def test_device_0_is_the_first_that_cuda_sees(
    two_cards: Callable[[], int],
    monkeypatch: pytest.MonkeyPatch,
    visible: str | None,
    expected: Gpu | None,
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert find_gpu() == expected
    assert two_cards() == 0


def test_the_version_is_that_of_cuda(two_cards: Callable[[], int]) -> None:
    assert driver_version() == "12.8"
    assert two_cards() == 0


def test_without_a_driver_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", absent)
    assert find_gpu() is None
    assert driver_version() is None


@pytest.mark.gpu
def test_nvml_and_cuda_speak_of_one_gpu() -> None:
    found, version = find_gpu(), driver_version()
    if found is None:
        assert version is None or float(version) >= 11
        pytest.skip("no NVIDIA GPU here")
    driver = pytest.importorskip("cuda.bindings.driver", reason="needs cuda-python")
    driver.cuInit(0)
    _, device = driver.cuDeviceGet(0)
    _, name = driver.cuDeviceGetName(256, device)
    attribute = driver.CUdevice_attribute
    capability = [
        driver.cuDeviceGetAttribute(wanted, device)[1]
        for wanted in (
            attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
            attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
        )
    ]
    assert found == Gpu(name=name.split(b"\0")[0].decode(), capability="{}.{}".format(*capability))
    assert version is not None
    assert float(version) >= 11
