"""what the user asked for: one frozen object, from the command line to the segmenter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from leuda_deploy.engines.engine import ON_THE_CPU, EngineChoice, EngineName, EngineSettings
from leuda_deploy.errors import InputError

SearchChoice = Literal["auto", "full"]
TilingChoice = Literal["auto", "windows"]


@dataclass(frozen=True, kw_only=True)
class Settings(EngineSettings):
    """How a `Segmenter` works. Plain values, so it can be sent to another process.

    Attributes:
        engine: A name is that engine or an error; "auto" takes a TensorRT engine of the model if
            one fits and is proven, else CUDA, else the fastest engine for the CPU; each only if it
            agrees with ONNX Runtime on this model.
        precision: "fp32", "bf16" (OpenVINO), or "auto": the fastest that the engine has.
        threads: CPU threads of the engine; None: one for each core that this process may use.
        batch: Windows at a time; None for what a short trial on this machine found.
        max_bytes: Peak memory that is never passed: a scan that needs more is refused first.
        max_gpu_bytes: The same for the GPU's memory.
        mirror: Average over mirrored windows, along the axes that the model's card allows.
        search: "auto" scores only slices that lie near something, where the model's card has the
            proof that this gives the same labels; "full" scores every slice.
        tiling: "auto" scores slices whole and leaves out air, each where the model's card has the
            proof that this gives the same labels; "windows" lays windows over all of each slice.
        clean_up: Take away islands, where the model's card says of which pieces structures consist.

    Raises:
        InputError: An engine that does not exist, or a limit on a GPU that the engine does not use.
    """

    engine: EngineChoice = "auto"
    batch: int | None = None
    max_bytes: int | None = None
    mirror: bool = False
    search: SearchChoice = "auto"
    tiling: TilingChoice = "auto"
    clean_up: bool = True

    def __post_init__(self) -> None:
        known = ("auto", *get_args(EngineName))
        if self.engine not in known:
            raise InputError(f"no engine is called {self.engine!r}; there are {', '.join(known)}")
        if self.search not in get_args(SearchChoice):
            raise InputError(f"search is auto or full, not {self.search!r}")
        if self.tiling not in get_args(TilingChoice):
            raise InputError(f"tiling is auto or windows, not {self.tiling!r}")
        if self.max_gpu_bytes is not None and self.engine in ON_THE_CPU:
            raise InputError(f"{self.engine} uses no GPU memory; leave out --max-gpu-memory")


DEFAULT_SETTINGS = Settings()
