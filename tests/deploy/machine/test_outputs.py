"""What must not be written is refused before anything is made."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from leuda_deploy.errors import InputError
from leuda_deploy.machine.outputs import Output, plan_outputs


def output(path: Path, **other: object) -> Output:
    return Output(path=path, what="labels", **other)  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ["itself", "link", "hard link", "other spelling"])
@pytest.mark.parametrize("force", [False, True])
def test_an_input_is_never_replaced_whatever_it_is_called(
    tmp_path: Path, how: str, force: bool
) -> None:
    scan = tmp_path / "a.nii"
    scan.write_text("scan")
    target = tmp_path / "b.nii"
    if how == "itself":
        target = scan
    elif how == "link":
        target.symlink_to(scan)
    elif how == "hard link":
        target.hardlink_to(scan)
    else:
        (tmp_path / "sub").mkdir()
        target = tmp_path / "sub" / ".." / "a.nii"
    with pytest.raises(InputError):
        plan_outputs([output(target, is_ours=lambda path: True)], inputs=[scan], force=force)
    assert scan.read_text() == "scan"


def test_an_input_that_is_missing_is_not_written_either(tmp_path: Path) -> None:
    plan_outputs([output(tmp_path / "b.nii")], inputs=[tmp_path / "a.nii"])
    (tmp_path / "a.nii").symlink_to(tmp_path / "gone.nii")
    with pytest.raises(InputError):
        plan_outputs([output(tmp_path / "a.nii")], inputs=[tmp_path / "a.nii"], force=True)


def test_a_file_of_a_folder_that_is_read_stays_even_with_force(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "1.dcm").write_text("slice")
    for force in (False, True):
        with pytest.raises(InputError):
            plan_outputs([output(tmp_path / "s" / "1.dcm")], inputs=[tmp_path / "s"], force=force)
    plan_outputs([output(tmp_path / "s" / "new.dcm")], inputs=[tmp_path / "s"])


def test_what_stands_there_is_replaced_if_it_is_ours_or_with_force(tmp_path: Path) -> None:
    target = tmp_path / "a.nii"
    target.write_text("by hand")
    with pytest.raises(InputError) as caught:
        plan_outputs([output(target)])
    assert str(target) in str(caught.value)
    plan_outputs([output(target, is_ours=lambda path: path == target)])
    plan_outputs([output(target)], force=True)
    assert target.read_text() == "by hand"


def test_two_outputs_at_one_place_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        plan_outputs([output(tmp_path / "a.nii"), output(tmp_path / "." / "a.nii")], force=True)


@pytest.mark.parametrize(
    ("name", "endings"),
    [
        ("a.txt", (".nii",)),
        ("a", (".nii",)),
        ("x" * 252 + ".nii", (".nii",)),
        ("ä" * 126 + ".nii", (".nii",)),
        ("file/a.nii", ()),
        ("nowhere/a.nii", ()),
        ("folder.nii", (".nii",)),
        ("..", ()),
        ("a\0.nii", ()),
    ],
)
def test_a_name_or_a_place_that_cannot_be_is_refused(
    tmp_path: Path, name: str, endings: tuple[str, ...]
) -> None:
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "folder.nii").mkdir()
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError):
        plan_outputs([output(tmp_path / name, endings=endings)], force=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_room_is_asked_for_and_nothing_is_made(tmp_path: Path) -> None:
    deep = tmp_path / "new" / "deeper" / "a.nii"
    plan_outputs([output(deep, room=1 << 20)])
    with pytest.raises(InputError):
        plan_outputs([output(deep, room=1 << 60)])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_pipe_is_nobodys_and_never_opened(tmp_path: Path) -> None:
    """Whoever opens it to see whether it is leuda's waits for a writer without end."""
    os.mkfifo(tmp_path / "pipe")

    def opened(path: Path) -> bool:
        raise AssertionError(f"{path} was opened")

    with pytest.raises(InputError, match="did not write"):
        plan_outputs([output(tmp_path / "pipe", is_ours=opened)])


def test_links_in_a_circle_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    with pytest.raises(InputError):
        plan_outputs([output(tmp_path / "one" / "a.nii")])
