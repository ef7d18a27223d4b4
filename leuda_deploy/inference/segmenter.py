"""model + machine -> a Segmenter: the engine chosen once, then any number of scans."""

from __future__ import annotations

import shutil
import sys
import threading
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leuda_deploy.engines.engine import (
    TENSORRT,
    Engine,
    EngineChoice,
    EngineName,
    Float32,
    PrecisionChoice,
)
from leuda_deploy.engines.engine_fit import fitting_engine
from leuda_deploy.engines.open_engine import open_engine
from leuda_deploy.errors import InputError, LeudaError
from leuda_deploy.inference.memory_plan import Plan, make_plan
from leuda_deploy.inference.segment import Segmentation, segment_stack
from leuda_deploy.inference.settings import DEFAULT_SETTINGS, Settings
from leuda_deploy.machine.files import file_sha256
from leuda_deploy.machine.memory import resident_bytes
from leuda_deploy.model.card import ModelCard
from leuda_deploy.model.model_file import ModelFile
from leuda_deploy.proof.trial import Trial, kept_trial, try_engine
from leuda_deploy.scans.stack import Stack
from leuda_deploy.scans.volume import Volume, read_volume, volume_of

TRIED_WINDOWS = 8
DEFAULT_BATCH = 8


class Segmenter:
    """A model ready to label scans; one engine, loaded once, shared by threads.

        labels = Segmenter("exports/phantom-heart")("scan.nii.gz").labels

    model     export folder, *.onnx file or a `ModelFile`; None for the shipped phantom model
    settings  engine, precision, threads, batch and limits of memory
    say       is told, in one line each, which engine runs and why
    """

    def __init__(
        self,
        model: ModelFile | Path | str | None = None,
        settings: Settings = DEFAULT_SETTINGS,
        *,
        say: Callable[[str], None] | None = None,
    ) -> None:
        if model is None:
            from leuda_deploy.model.default_model import default_model

            model = default_model()
        self.model = model if isinstance(model, ModelFile) else ModelFile.open(model)
        self.settings = settings
        if settings.mirror and not self.card.tiling.mirror:
            raise InputError(
                f"{self.path} does not say that a mirrored window means the same; without --mirror"
            )
        self._say = say or (lambda line: None)
        self._lock = threading.Lock()
        self._engine: Engine | None = None
        self._trial: Trial | None = None
        self._loaded_bytes = resident_bytes() or 0
        self._name: EngineChoice = settings.engine
        if settings.engine != "auto":  # what cannot run is said at once, not at the first scan
            self._open(settings.engine)

    @property
    def path(self) -> Path:
        """Of the model file."""
        return self.model.path

    @property
    def card(self) -> ModelCard:
        """The model's card."""
        return self.model.card

    @property
    def sha256(self) -> str:
        """Of the model file."""
        return self.model.sha256

    def __call__(
        self,
        scan: Path | str | NDArray[Any] | Any,
        *,
        affine: NDArray[np.float64] | None = None,
        frame: int | None = None,
        uncertainty: bool = False,
    ) -> Segmentation:
        """Label a scan: a file, a nibabel image, a `Volume`, or an array (X, Y, Z) with its affine.

        affine  (4, 4) voxel index -> RAS+ world in mm; needed with an array, refused otherwise
        frame   which one of a 4D scan

        Raises InputError for a scan that cannot be used, ModelError for scores that are not finite.
        """
        stack = self.stack(self.read(scan, affine=affine, frame=frame))
        plan = self.plan(stack, uncertainty=uncertainty)
        return segment_stack(
            stack,
            self.engine_for(stack),
            slab=plan.slab,
            batch=plan.batch,
            tiling=self.card.tiling,
            mirror=self.settings.mirror,
            uncertainty=uncertainty,
            probabilities=self.card.probabilities,
        )

    def read(
        self,
        scan: Path | str | NDArray[Any] | Any,
        *,
        affine: NDArray[np.float64] | None = None,
        frame: int | None = None,
    ) -> Volume:
        """Whatever `__call__` takes -> Volume."""
        if isinstance(scan, np.ndarray):
            if affine is None:
                raise InputError("an array does not say where it lies; give its affine")
            return volume_of(scan, affine, frame=frame)
        if affine is not None:
            raise InputError("an affine is given for arrays alone; this scan has its own")
        if isinstance(scan, Volume):
            return scan
        if isinstance(scan, str | Path):
            return read_volume(scan, frame=frame)
        return volume_of(scan, None, frame=frame)

    def stack(self, volume: Volume) -> Stack:
        """The scan as this model's recipe has it."""
        return Stack(volume, self.card.recipe, window_depth=self.card.depth)

    @property
    def asked(self) -> dict[str, object]:
        """What was asked for that decides the labels, besides model and scan.

        Not what it came to here: another machine's choice for "auto" is as good an answer.
        """
        return {
            "engine": self._name,
            "precision": self.settings.precision,
            "mirror": self.settings.mirror,
        }

    @property
    def settled(self) -> bool:
        """Whether all trials that are needed have been made on this machine before."""
        with self._lock:
            if self._trial is not None:
                return True
        names = [self._name] if self._name != "auto" else self._installed()
        return all(self._kept(name) is not None for name in names)

    def plan(
        self, stack: Stack, *, uncertainty: bool = False, scans: int = 1, results: int = 1
    ) -> Plan:
        """Slices and windows at a time for this scan, and the memory it will take.

        Raises InputError, naming the least that would do, if that is more than the budget.
        """
        engine = self.engine_for(stack)
        trial = self._trial
        return make_plan(
            stack,
            classes=1 + len(engine.card.structures),
            loaded_bytes=self._loaded_bytes,
            growth_bytes=trial.growth_bytes if trial else {},
            batch=self.settings.batch or (trial.batch if trial else DEFAULT_BATCH),
            scans=scans,
            results=results,
            uncertainty=uncertainty,
            tiling=self.card.tiling,
            mirror=self.settings.mirror,
            max_bytes=self.settings.max_bytes,
        )

    def engine_for(self, stack: Stack) -> Engine:
        """The engine; the first scan decides which where that is left to trials."""
        with self._lock:
            if self._engine is None:
                self._choose(stack)
            elif self._trial is None:  # a plan needs the memory it measures
                assert self._name != "auto"
                trial = self._try(self._name, stack)
                if not trial.window_ms:
                    raise LeudaError(f"{self._name} cannot run {self.path}: {trial.failure}")
                if trial.failure is not None:  # asked for by name, so it runs; but not in silence
                    self._say(f"warning: {self._name} would not be chosen: {trial.failure}")
                self._trial = trial
        assert self._engine is not None
        return self._engine

    def _choose(self, stack: Stack) -> None:
        before = resident_bytes() or 0
        names = self._installed()  # may load TensorRT, to ask its version
        self._loaded_bytes += (resident_bytes() or 0) - before
        trials = [self._try(name, stack) for name in names]
        for trial in trials:
            if trial.failure is not None:
                self._say(f"passed over {trial.engine}: {trial.failure}")
        passed = [trial for trial in trials if trial.failure is None]
        if not passed:
            raise LeudaError(f"no engine here runs {self.path}; name one to see what it lacks")
        best = min(passed, key=lambda trial: min(trial.window_ms.values()))
        self._trial = best
        self._open(best.engine)
        others = ", ".join(
            f"{trial.engine} {min(trial.window_ms.values()):.2f} ms" for trial in passed
        )
        self._say(f"chose {best.engine}, the fastest a window of: {others}; {best.agreement}")

    def _open(self, name: EngineName) -> None:
        before = resident_bytes() or 0
        self._engine = open_engine(self.model, name, self.settings)
        # the growth alone: a scan that was read before is none of the program's own
        self._loaded_bytes += (resident_bytes() or 0) - before

    def _try(self, name: EngineName, stack: Stack) -> Trial:
        kept = self._kept(name)
        if kept is not None:
            return kept
        windows = sample_windows(stack)
        self._say(f"trying {name} on this machine, once")
        return try_engine(name, self.model, self._code(name), windows, self.settings)

    def _kept(self, name: EngineName) -> Trial | None:
        return kept_trial(name, self._code(name), self.settings)

    def _code(self, name: EngineName) -> str:
        """The hash of what runs: of the model file, or of the engine that was built from it."""
        if name not in TENSORRT:
            return self.sha256
        engine = fitting_engine(self.model, TENSORRT[name])
        return file_sha256(self.path.parent / engine) if engine else self.sha256

    def _installed(self) -> list[EngineName]:
        return installed_engines(self.model, self.settings.precision)


def installed_engines(model: ModelFile, precision: PrecisionChoice = "auto") -> list[EngineName]:
    """Engines that can be tried on this machine with this model file at this precision."""
    names: list[EngineName] = []
    if find_spec("openvino") is not None and sys.platform != "darwin":
        names.append("openvino")
    if precision != "bf16":
        names.append("ort-cpu")
        if shutil.which("nvidia-smi") or Path("/proc/driver/nvidia").exists():
            names.append("ort-cuda")
        names += [name for name, family in TENSORRT.items() if fitting_engine(model, family)]
    return names


def sample_windows(stack: Stack, count: int = TRIED_WINDOWS) -> Float32:
    """Windows from the middle of evenly spread slices of a scan: (count, 1, *window) float32."""
    starts = ((np.arange(count) + 0.5) / count * (stack.depth - stack.window_slices + 1)).astype(
        int
    )
    return np.stack([stack.window_at(start)[None] for start in starts.tolist()])
