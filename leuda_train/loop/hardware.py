"""what was asked for -> device, precision and memory format, chosen here and nowhere else."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor
from torch._functorch import config as functorch

from leuda_deploy.errors import InputError
from leuda_train.loop.ranks import ALONE, Ranks

DeviceName = Literal["auto", "cpu", "cuda"]
Precision = Literal["bf16", "fp16", "fp32"]
PrecisionName = Literal["auto", "bf16", "fp16", "fp32"]
Network = TypeVar("Network", bound=torch.nn.Module)
# what ONEDNN_MAX_CPU_ISA may say that has no bf16
ISAS_WITHOUT_BF16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Hardware:
    """Where and in which precision networks run; weights, losses and averages stay in float32.

    ranks  which process of how many this is
    """

    device: torch.device
    precision: Precision
    ranks: Ranks = ALONE

    def autocast(self) -> torch.autocast:
        """Context in which networks are called."""
        dtype = DTYPES[self.precision]
        return torch.autocast(self.device.type, dtype=dtype, enabled=self.precision != "fp32")

    def place(self, module: Network) -> Network:
        """Move a network to the device, channels last."""
        # torch's stubs know `memory_format` with tensors alone
        return module.to(self.device, memory_format=torch.channels_last)  # type: ignore[no-any-return,call-overload]

    def put(self, images: Tensor) -> Tensor:
        """Move images (B, C, H, W) to the device, channels last."""
        images = images.to(self.device, non_blocking=True)
        return images.contiguous(memory_format=torch.channels_last)

    def adam(
        self, weights: Iterable[Tensor], rate: float, betas: tuple[float, float] = (0.9, 0.999)
    ) -> torch.optim.Adam:
        """The optimiser of weights that are here."""
        return torch.optim.Adam(weights, lr=rate, betas=betas, fused=True)

    @property
    def needs_scaler(self) -> bool:
        """Whether gradients are scaled against fp16 underflow."""
        return self.precision == "fp16"

    def __str__(self) -> str:
        name = (
            torch.cuda.get_device_name(self.device)
            if self.device.type == "cuda"
            else f"CPU, {torch.get_num_threads()} threads"
        )
        count = f"{self.ranks.size} x " if self.ranks.size > 1 else ""
        return f"{count}{name}, {self.precision}, channels last, torch {torch.__version__}"


def choose_hardware(device: DeviceName, precision: PrecisionName, ranks: Ranks = ALONE) -> Hardware:
    """Resolve "auto"; refuse what this machine does not have. Raises InputError."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device = cuda, but torch sees no CUDA GPU; use device = cpu")
    if precision == "auto":
        if device == "cuda":
            precision = (
                "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
            )
        else:
            precision = "bf16" if _cpu_has_bf16() else "fp32"
    if device == "cpu" and precision == "fp16":
        raise InputError("precision = fp16 is for GPUs; on a CPU use bf16 or fp32")
    if device == "cpu":
        _keep_freed_memory()
    return Hardware(torch.device(device), precision, ranks)


def compile_networks(nets: Iterable[torch.nn.Module]) -> None:
    """torch.compile, in place; the first passes then take minutes. See `check_compiler`.

    Dropout draws other masks than in networks that are not compiled, as reproducibly.
    """
    # a graph is walked back several times where the terms' gradients are looked at one by one
    functorch.donated_buffer = False
    for net in nets:
        net.compile()


def check_compiler(hardware: Hardware) -> None:
    """Raises InputError if networks cannot be compiled here: before any long work."""
    if hardware.ranks.size > 1:
        raise InputError("compile = true is for one process; set it to false")
    if hardware.device.type == "cpu":
        compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
        if shutil.which(compiler) is None:
            raise InputError(
                f"compile = true needs a C++ compiler, but there is no {compiler}: install one, "
                "name it in $CXX, or set compile = false"
            )


def _cpu_has_bf16() -> bool:
    """Whether the processor multiplies bf16 itself (AVX512-BF16 or AMX), not by emulation."""
    if os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in ISAS_WITHOUT_BF16:
        return False  # oneDNN, which multiplies, is held to less than the processor has
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in checks)


def _keep_freed_memory() -> None:
    """Tell glibc not to give large blocks back at every step: up to 1.5 times faster."""
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4  # malloc.h
    libc.mallopt(m_mmap_max, 0)
    libc.mallopt(m_trim_threshold, 2**31 - 1)
    libc.mallopt(m_top_pad, 256 << 20)


def give_back_freed_memory() -> None:
    """Tell glibc to give back what it keeps: between stages, not between steps."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
