"""TensorRT builder -> its progress, for a bar, and its errors, for the text of ours."""

from __future__ import annotations

import warnings
from typing import Any

from leuda_deploy.machine.progress import Progress


def make_log(trt: Any) -> Any:
    """A TensorRT logger that keeps error messages and prints nothing."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self.errors.append(message)

        def reason(self) -> str:
            return "; ".join(self.errors)[-300:] or "no reason given"

    return Log()


def make_monitor(trt: Any, progress: Progress) -> Any:
    """A TensorRT progress monitor: counts the steps of the outermost phase, names the innermost."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.total = 0
            self.done = 0
            self.outermost = ""

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            if parent is None:
                self.outermost, self.total, self.done = name, steps, 0
            progress(self.done, max(self.total, 1), name)

        def step_complete(self, name: str, step: int) -> bool:
            if name == self.outermost:
                self.done = step + 1
                progress(self.done, max(self.total, 1), name)
            return True

        def phase_finish(self, name: str) -> None:
            if name == self.outermost:
                progress(self.total, max(self.total, 1), name)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return Monitor()
