"""model + settings -> a Segmenter: any number of scans in, labels on their own grids out.

Long because it is one public class, with all that its methods take and raise.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leuda_deploy.engines.engine import TENSORRT, Engine, EngineName, EngineSettings
from leuda_deploy.engines.open_engine import open_engine
from leuda_deploy.errors import InputError
from leuda_deploy.inference.find_first import HowToFind, find_in
from leuda_deploy.inference.memory_plan import MemoryPlan, Workload, make_plan
from leuda_deploy.inference.refine.clean_up import clean_up
from leuda_deploy.inference.segment import Segmentation, segment
from leuda_deploy.inference.settings import DEFAULT_SETTINGS, Settings
from leuda_deploy.inference.slabs import (
    Scoring,
    as_many_usual,
    part_of,
    sample_windows,
    scoring_of,
    windows_of,
)
from leuda_deploy.machine.clock import Clock
from leuda_deploy.machine.memory import resident_bytes
from leuda_deploy.machine.progress import Progress, no_progress
from leuda_deploy.model.card import ModelCard
from leuda_deploy.model.export_folder import default_model
from leuda_deploy.model.model_file import ModelFile
from leuda_deploy.proof.choose_engine import (
    Choice,
    check_named,
    choose_engine,
    installed_engines,
    is_settled,
)
from leuda_deploy.scans.channels import channels_of, together
from leuda_deploy.scans.intensity.likeness import likeness
from leuda_deploy.scans.stack import Stack, stack_of
from leuda_deploy.scans.volume import Volume, read_volume, volume_of


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """An engine that was opened, and what the process holds with it and no scan."""

    engine: Engine
    resident_bytes: int


class Segmenter:
    """A model ready to label scans. Its engine is loaded once and shared by threads.

    Examples:
        >>> segmenter = Segmenter("exports/phantom-heart", Settings(engine="openvino"))
        >>> labels = segmenter("scan.nii.gz").labels  # (X, Y, Z) uint8, on the scan's grid

    Attributes:
        model: The opened model file.
        settings: What was asked for.
        card: The model's card: structures, recipe, provenance.
    """

    def __init__(
        self, model: ModelFile | Path | str | None = None, settings: Settings = DEFAULT_SETTINGS
    ) -> None:
        """Open a model, and the engine if the settings name one.

        Args:
            model: Export folder, `*.onnx` file or `ModelFile`; None: the phantom model.
            settings: Engine, precision, threads, batch and memory limits.

        Raises:
            ModelError: The model cannot be used.
            InputError: The settings ask for what this model, or the engine, cannot do.
            LeudaError: The engine is not installed (MissingExtraError), or does not run here.
        """
        model = model or default_model()
        self.model = model if isinstance(model, ModelFile) else ModelFile.open(model)
        self.settings = settings
        if settings.mirror and not self.card.tiling.mirror:
            raise InputError(
                f"{self.model.path} does not say that a mirrored window means the same; "
                "without --mirror"
            )
        self._lock = threading.Lock()
        self._resident_bytes = resident_bytes() or 0
        # what cannot run is said at once, not at the first scan
        self._named = None if settings.engine == "auto" else self._load(settings.engine, settings)
        self._ready: tuple[Loaded, Choice] | None = None

    @property
    def card(self) -> ModelCard:
        """Of the model."""
        return self.model.card

    @property
    def sha256(self) -> str:
        """SHA-256 of the model file."""
        return self.model.sha256

    def __call__(
        self,
        scan: Path | str | NDArray[Any] | Any,
        *,
        affine: NDArray[np.float64] | None = None,
        frame: int | None = None,
        uncertainty: bool = False,
    ) -> Segmentation:
        """Label a scan.

        Args:
            scan: A file, a nibabel image, a `Volume`, or an array (X, Y, Z) with its affine. Of a
                model with channels: a 4D one of these, or a list, in the order of the card.
            affine: (4, 4) voxel index -> RAS+ world in mm; needed with an array, refused otherwise.
            frame: Which one of a 4D scan, from 0.
            uncertainty: Also make the entropy map.

        Returns:
            Labels (X, Y, Z) uint8 on the scan's own grid, and what was found on the way.

        Raises:
            InputError: The scan cannot be used, or needs more memory than it may take.
            ModelError: The model gives scores that are not finite.
        """
        stack = self.stack(self.read(scan, affine=affine, frame=frame))
        plan = self.plan(stack, uncertainty=uncertainty)
        return self.segment(stack, plan, uncertainty=uncertainty)

    def read(
        self,
        scan: Path | str | NDArray[Any] | Any,
        *,
        affine: NDArray[np.float64] | None = None,
        frame: int | None = None,
    ) -> Volume:
        """Whatever `__call__` takes -> Volume. Raises InputError."""
        if self.card.scan_count > 1 and not isinstance(scan, Volume):
            if frame is not None:
                raise InputError("the frames of a 4D scan are this model's channels: no frame")
            return channels_of(scan, affine, self.card.channels)
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
        """As this model's recipe has it."""
        if 1 + len(volume.more) != self.card.scan_count:
            volume = together([volume, *volume.more], self.card.channels or ("one scan",))
        return stack_of(volume, self.card.recipe, self.card.depth)

    def plan(
        self,
        stack: Stack,
        *,
        uncertainty: bool = False,
        scans: int = 1,
        results: int = 1,
        writing: int = 0,
    ) -> MemoryPlan:
        """Slices and windows at a time for this scan, and the memory it will take.

        Args:
            stack: The scan, or its header alone.
            uncertainty: Whether an entropy map is made.
            scans: How many scans are held at once.
            results: How many label volumes are.
            writing: Bytes that writing the results takes besides.

        Raises:
            InputError: It is more than `max_bytes`; names the least that would do.
        """
        loaded, choice = self._ready_for(stack)
        scoring = self._scoring(choice.engine)
        workload = Workload(
            classes=self.card.score_count,
            loaded_bytes=loaded.resident_bytes,
            growth_bytes=choice.trial.growth_bytes,
            tiling=scoring.tiling,
            multiple=scoring.multiple,
            mirror=self.settings.mirror,
            uncertainty=uncertainty,
            regions=self.card.options.regions,
            refine=scoring.refine,
            scans=scans,
            results=results,
            writing=writing,
        )
        part = part_of(stack, scoring.tiling, scoring.multiple)
        usual = choice.trial.batch // as_many_usual(part, stack, 1)  # pixels as in the trial
        batch = self.settings.batch or max(loaded.engine.streams, usual)
        return make_plan(stack, workload, batch=batch, max_bytes=self.settings.max_bytes)

    def segment(
        self,
        stack: Stack,
        plan: MemoryPlan,
        *,
        uncertainty: bool = False,
        progress: Progress = no_progress,
    ) -> Segmentation:
        """Label a scan as planned."""
        loaded, choice = self._ready_for(stack)
        scoring = replace(self._scoring(choice.engine), batch=plan.batch, slab=plan.slab)
        find, full_because = self.find_for(stack, uncertainty=uncertainty)
        if full_because:
            scoring = replace(scoring, tiling=scoring.tiling.in_full)
        found = segment(
            stack, loaded.engine, scoring, find=find, uncertainty=uncertainty, progress=progress
        )
        found = replace(found, full_because=full_because)
        rules = {s.value: s.anatomy.pieces for s in self.card.structures if s.anatomy}
        if not (rules and self.settings.clean_up):
            return found
        clock = Clock()
        with clock("clean up"):
            taken = clean_up(found.labels, stack.voxel_spacing_mm, rules)
        return replace(found, cleaned_ml=taken, seconds=found.seconds | clock.seconds)

    def _scoring(self, engine: EngineName) -> Scoring:
        """As it was proven, which was without mirroring. TensorRT takes few sizes."""
        return scoring_of(
            self.card,
            in_windows=self.settings.tiling == "windows" or self.settings.mirror,
            other_sizes=engine not in TENSORRT,
            mirror=self.settings.mirror,
        )

    def find_for(self, stack: Stack, *, uncertainty: bool = False) -> HowToFind:
        """Which slices of this scan are searched; or None, and why all of it is scored."""
        search, domain = self.card.search, self.card.domain
        if self.settings.search == "full":
            return None, "asked"
        if search is None and not self.card.tiling.find_first:
            return None, "not proven"
        if uncertainty:
            return None, "entropy map"
        if self.settings.mirror:
            return None, "mirrored"
        if domain is not None and not likeness(stack.intensity, domain).fits:
            return None, "unlike"
        if search is None:  # of a 3D model: its tiling says it
            return None, None
        find = find_in(search.step_mm, search.margin_mm, stack.slice_spacing_mm)
        return find, None if find else "thick slices"

    def engine_for(self, stack: Stack) -> Engine:
        """The engine that runs; where it is left to trials, the first scan decides."""
        return self._ready_for(stack)[0].engine

    @property
    def asked(self) -> dict[str, object]:
        """What was asked for that decides the labels, besides model and scan.

        Not what it came to here: another machine's choice for "auto" is as good an answer.
        """
        names = ["engine", "precision", "mirror", "clean_up"]
        names += [name for name in ("search", "tiling") if getattr(self.settings, name) != "auto"]
        return {name: getattr(self.settings, name) for name in names}

    @property
    def settled(self) -> bool:
        """Whether all trials that are needed have been made on this machine before."""
        return is_settled(self.model, self.settings.engine, self.settings)

    def _ready_for(self, stack: Stack) -> tuple[Loaded, Choice]:
        """The engine and its trial: a plan needs the memory that a trial measures."""
        with self._lock:
            if self._ready is None:
                self._ready = self._make_ready(stack)
            return self._ready

    def _make_ready(self, stack: Stack) -> tuple[Loaded, Choice]:
        windows, work = partial(sample_windows, stack), windows_of(stack, self.card.tiling)
        if self.card.search is not None and self.settings.search == "auto":
            work = ceil(work * self.card.search.share)
        named = self.settings.engine
        if self._named is not None and named != "auto":
            return self._named, check_named(self.model, named, self.settings, windows, work)
        before, asked = resident_bytes() or 0, self.settings
        candidates = installed_engines(self.model, asked.precision, asked.on_the_cpu)
        self._resident_bytes += (resident_bytes() or 0) - before  # TensorRT, to ask its version
        choice = choose_engine(self.model, candidates, asked, windows, work)
        return self._load(choice.engine, choice.settings), choice

    def _load(self, name: EngineName, settings: EngineSettings) -> Loaded:
        before = resident_bytes() or 0
        engine = open_engine(self.model, name, settings)
        # the growth alone: a scan that was read before is none of the program's own
        growth = (resident_bytes() or 0) - before
        return Loaded(engine=engine, resident_bytes=self._resident_bytes + growth)
