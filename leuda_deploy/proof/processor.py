"""this processor -> how it multiplies int8, and whether an int8 model was proven on such a one.

x86 without VNNI adds pairs of int8 products in 16 bits, which saturate where weights have 8 bits: a
graph that was proven on one kind of processor can be another network on the next (to_int8.py).
"""

from __future__ import annotations

import platform
from pathlib import Path

from leuda_deploy.model.card import ModelCard

# of what /proc/cpuinfo lists, the first that is there -> the kind
KINDS = {
    "amx_int8": "x86 AMX",
    "avx512_vnni": "x86 VNNI",
    "avx_vnni": "x86 VNNI",
    "avx512f": "x86 AVX-512",
    "avx2": "x86 AVX2",
    "asimddp": "Arm dot product",
}
# kind -> the instructions that OpenVINO's kernels are held to, to compute as such a processor does
HELD_TO = {"x86 AVX-512": "AVX512_CORE", "x86 AVX2": "AVX2"}
INSTRUCTIONS = "ONEDNN_MAX_CPU_ISA"  # the variable that holds them to it
CPUINFO = Path("/proc/cpuinfo")
PORTABLE_BITS = 7


def int8_kind(cpuinfo: Path = CPUINFO) -> str:
    """How this processor multiplies int8: a kind of KINDS, else the machine's architecture."""
    try:
        words = set(cpuinfo.read_text().split())
    except OSError:
        words = set()
    return next((kind for flag, kind in KINDS.items() if flag in words), platform.machine())


def kinds_below(kind: str) -> tuple[str, ...]:
    """The kinds of processor that one of this kind can compute like."""
    able = ("x86 AMX", "x86 VNNI", *HELD_TO)
    return tuple(HELD_TO)[max(0, able.index(kind) - 1) :] if kind in able else ()


def proven_on_this_kind(card: ModelCard, kind: str | None = None) -> bool:
    """Whether what the card says of an int8 graph holds on this kind of processor.

    It does for any other precision, and for weights of 7 bits, which cannot saturate.
    """
    if card.precision != "int8":
        return True
    if card.int8 is None:  # an earlier leuda wrote it
        return False
    return card.int8.weight_bits == PORTABLE_BITS or (kind or int8_kind()) in card.int8.proven_on
