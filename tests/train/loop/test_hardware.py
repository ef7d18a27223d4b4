"""The precision that `auto` takes is one that the processor multiplies itself."""

import pytest
import torch

from leuda_train.loop.hardware import choose_hardware


@pytest.mark.parametrize(
    ("has_bf16", "held_to", "precision"),
    [
        (True, None, "bf16"),
        (True, "AVX512_CORE_BF16", "bf16"),
        (True, "avx2", "fp32"),  # oneDNN would emulate bf16, ten times as slow
        (False, None, "fp32"),
    ],
)
def test_auto_takes_bf16_only_where_it_is_not_emulated(monkeypatch, has_bf16, held_to, precision):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if held_to:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", held_to)
    assert choose_hardware("cpu", "auto").precision == precision
