"""what went wrong -> one clear line: what it was, the value, and the fix.

LeudaError
├── InputError         a scan, label file, cohort, config or option that cannot be used as given
├── ModelError         a model file that is damaged, foreign, or of an unknown schema
├── ParityError        two engines that should agree do not; nothing was kept
├── TrainingError      a run that cannot go on (a loss that is not finite, a broken checkpoint)
└── MissingExtraError  an optional package is not installed; the line says how to install it
"""


class LeudaError(Exception):
    """Root of everything that is reported to the user as one line, without a traceback."""


class InputError(LeudaError, ValueError):
    """A scan, label file, cohort, config or option that cannot be used as given."""


class ModelError(LeudaError):
    """A model file that is damaged, foreign, or of an unknown schema."""


class ParityError(LeudaError):
    """Two engines that should agree do not; `window` is the probe on which they differ most."""

    def __init__(self, message: str, window: int | None = None) -> None:
        super().__init__(message)
        self.window = window


class TrainingError(LeudaError):
    """A training run that cannot go on."""


class MissingExtraError(LeudaError, ImportError):
    """An optional package is not installed."""

    def __init__(self, what: str, package: str, extra: str) -> None:
        super().__init__(
            f"{what} needs {package}, which is not installed: pip install 'leuda[{extra}]'"
        )
