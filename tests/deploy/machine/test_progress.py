"""What long work shows on stderr, without a terminal: a line now and then, and one at the end."""

from __future__ import annotations

import pytest

from leuda_deploy.machine import progress
from leuda_deploy.machine.progress import no_progress, show_progress


def test_lines_come_now_and_then_and_one_at_the_end(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with show_progress("slices [of] a scan") as show:
        for done in range(1, 11):
            now += 7.0
            show(done, 10, f"patient {done}")
    lines = capfd.readouterr().err.splitlines()
    assert [line.split(": ")[1].split(",")[0] for line in lines[:-1]] == ["3/10", "6/10", "9/10"]
    assert all(line.startswith("  slices [of] a scan: ") for line in lines)
    assert "patient 3" in lines[0]
    assert "49 s" in lines[0]  # 21 s for 3 of 10: 7 more
    assert "70.0 s" in lines[-1]


def test_what_nobody_looks_at_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    no_progress(1, 2, "note")
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_a_failure_says_no_time(capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        with show_progress("work"):
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    assert capfd.readouterr().err == ""


def test_a_title_obeys_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress("\x1b]0;title\x07a\nerror: fine.nii") as progress:
        progress(1, 2, "\x1b[2J")
    assert "\x1b" not in capsys.readouterr().err
