"""a run folder with something in it -> may this run go on there, and with what it began with.

A run goes on under its own config and cohort. What only says where and how fast it runs may be
another; precision and learning rates, too, while it is not finished. Stage 2 goes on with the
translation with which it began, and in its precision, unless fp32 is asked for: that is more exact.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from filelock import FileLock, Timeout

from leuda_deploy.errors import InputError, TrainingError
from leuda_deploy.machine.outputs import plan_folder
from leuda_deploy.machine.outside import read_toml
from leuda_train.config.load import parse_config
from leuda_train.config.schema import TrainConfig
from leuda_train.data.cohort import Cohort
from leuda_train.loop import checkpoint
from leuda_train.loop.hardware import Hardware, Precision
from leuda_train.loop.run_folder import RunFolder

# what may be another whenever a run is started again: it changes nothing but rounding
WHENEVER = {"name", "device", "compile", "max_memory"} | {
    "schedule.checkpoint_seconds",
    "schedule.shares_every",
}
# what may be another while the run is not finished
UNFINISHED = {
    "precision",
    "translation.learning_rate",
    "schedule.learning_rate",
    "adversarial.learning_rate",
    "distil.learning_rate",
}
log = logging.getLogger(__name__)


def check_free(folder: RunFolder) -> None:
    """Raises InputError if no run began in the folder, and others' files stand where it would."""
    if not folder.config.is_file():
        plan_folder(folder.path, folder.names, what="run")


def check_same_run(folder: RunFolder, config: TrainConfig, cohort: Cohort) -> None:
    """Raises InputError if the folder holds a run of another config or cohort."""
    path = folder.config
    if not path.is_file():
        return
    content = read_toml(path)
    refused = f"{folder.path} holds a run of another config or cohort"
    elsewhere = f"see {path}; choose another --out"
    if content.pop("cohort_sha256", None) != cohort.sha256:
        raise InputError(f"{refused}: the cohort's files or labels are others ({elsewhere})")
    try:  # a key that it lacks, being older, has its default
        before = _flat(parse_config(content, str(path)).model_dump(mode="json"))
    except InputError as error:
        raise InputError(f"{refused} ({elsewhere})") from error
    now = _flat(config.model_dump(mode="json"))
    changed = {key: (before.get(key), now.get(key)) for key in before | now}
    changed = {key: (old, new) for key, (old, new) in changed.items() if old != new}
    allowed = WHENEVER if folder.evaluation.is_file() else WHENEVER | UNFINISHED
    for key, (old, new) in changed.items():
        if key not in allowed:
            raise InputError(f"{refused}: {key} is {old} there and {new} here ({elsewhere})")
    for key, (old, new) in changed.items():
        if key in UNFINISHED:
            log.warning("%s: goes on with %s = %s; it was %s", folder.path, key, new, old)


def _flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables -> dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """What stage 2 began with.

    precision              of stage 2
    translation            the translator's fingerprint
    translation_precision  in which it was trained
    """

    precision: Precision
    translation: str
    translation_precision: Precision

    def as_dict(self) -> dict[str, str]:
        """For a checkpoint."""
        return asdict(self)


def read_beginning(folder: RunFolder) -> Beginning | None:
    """What the newest checkpoint of stage 2 says; None if there is none or it is too old to say."""
    saved = checkpoint.load_latest(folder.checkpoints, warn=False)
    if saved is None:
        return None
    if not saved.get("began_with"):
        log.warning(
            "%s does not say with which translation and precision it began; it goes on",
            folder.checkpoints,
        )
        return None
    return Beginning(**saved["began_with"])


def check_precision(began: Beginning | None, config: TrainConfig, hardware: Hardware) -> None:
    """Raises InputError if stage 2 would go on in another precision than the one it began with."""
    if began is None or hardware.precision == began.precision or config.precision == "fp32":
        return
    raise InputError(
        f"this run began in {began.precision}, and would go on in {hardware.precision} on "
        f"{hardware.device.type}: set precision = {began.precision}, or precision = fp32, which is "
        "more exact; or choose another --out"
    )


def check_translation(began: Beginning | None, fingerprint: str, folder: RunFolder) -> None:
    """Raises TrainingError if stage 2 would go on with another translation."""
    if began is not None and began.translation != fingerprint:
        raise TrainingError(
            f"{folder.path} began stage 2 with translation {began.translation}, but here is "
            f"{fingerprint}: bring back the cache that holds the former, or delete "
            f"{folder.checkpoints} to begin stage 2 anew"
        )


@contextmanager
def claimed(folder: RunFolder) -> Iterator[None]:
    """Within, no other process trains into the folder. Raises InputError if one does already.

    The claim dies with its process. A run that ended well leaves no trace of it.
    """
    folder.path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.lock)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(
            f"another `leuda train` is at work in {folder.path}: wait for it, or choose another "
            "--out"
        ) from None
    try:
        yield
        folder.lock.unlink(missing_ok=True)
    finally:
        lock.release()
