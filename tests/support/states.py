"""two nested states of training -> equal to the bit, or where not."""

from __future__ import annotations

import torch


def flat(state: object, path: str = "") -> dict[str, object]:
    """Every tensor and primitive of a nested state, by its place."""
    if isinstance(state, dict):
        items = state.items()
    elif isinstance(state, list | tuple):
        items = enumerate(state)
    else:
        return {path: state}
    return {k: v for key, value in items for k, v in flat(value, f"{path}/{key}").items()}


def assert_bit_equal(a: object, b: object) -> None:
    a, b = flat(a), flat(b)
    assert a.keys() == b.keys()
    assert sum(isinstance(value, torch.Tensor) for value in a.values()) > 20
    for place, value in a.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, b[place]), place
        else:
            assert value == b[place], place
