"""what parts of a config are made of: frozen, unknown keys refused, numbers within their bounds."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from leuda_deploy.machine.memory import parse_bytes

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]


def _a_size(text: str) -> str:
    parse_bytes(text)
    return text


MemorySize = Annotated[str, AfterValidator(_a_size)]


class Part(BaseModel):
    """A table of the config."""

    model_config = ConfigDict(frozen=True, extra="forbid")
