"""An int8 graph is the same network where its card says so, and elsewhere only where it agrees."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.makers import MakeCard

from leuda_deploy.model.card import Int8, ModelCard
from leuda_deploy.proof.processor import int8_kind, kinds_below, proven_on_this_kind


@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        ("fpu avx2 avx512f avx512_vnni amx_int8", "x86 AMX"),
        ("fpu avx2 avx_vnni", "x86 VNNI"),
        ("fpu avx2 avx512f", "x86 AVX-512"),
        ("fpu avx2", "x86 AVX2"),
        ("fp asimd asimddp", "Arm dot product"),
    ],
)
def test_kinds_are_told_apart_by_how_they_multiply(tmp_path: Path, flags: str, kind: str) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(f"processor : 0\nflags\t\t: {flags}\n")
    assert int8_kind(path) == kind
    assert int8_kind(tmp_path / "none")  # the architecture


def test_a_processor_computes_like_those_that_can_less() -> None:
    assert kinds_below("x86 AMX") == kinds_below("x86 VNNI") == ("x86 AVX-512", "x86 AVX2")
    assert kinds_below("x86 AVX-512") == ("x86 AVX2",)
    assert kinds_below("x86 AVX2") == kinds_below("Arm dot product") == ()


def test_a_card_names_the_kinds_that_it_was_proven_on(make_card: MakeCard) -> None:
    def card(bits: int) -> ModelCard:
        int8 = Int8.model_validate({"weight_bits": bits, "proven_on": ["x86 VNNI"]})
        return make_card(precision="int8", int8=int8)

    assert proven_on_this_kind(card(7), "x86 AVX2")
    assert proven_on_this_kind(card(8), "x86 VNNI")
    assert not proven_on_this_kind(card(8), "x86 AVX2")
    assert not proven_on_this_kind(make_card(precision="int8"))  # from before it was kept
    assert proven_on_this_kind(make_card())
