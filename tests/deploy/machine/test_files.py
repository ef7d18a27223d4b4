"""Files and folders are whole or not there; equal content, equal bytes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from leuda_deploy.errors import InputError
from leuda_deploy.machine.files import (
    atomic_folder,
    atomic_path,
    check_writable,
    file_sha256,
    write_json,
)


def test_written_file_is_as_readable_as_any_other(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "new" / "file.txt") as temporary:
        temporary.write_text("x")
    (tmp_path / "plain.txt").write_text("x")
    made, plain = tmp_path / "new" / "file.txt", tmp_path / "plain.txt"
    assert made.stat().st_mode == plain.stat().st_mode
    assert list(made.parent.iterdir()) == [made]


def test_failed_folder_leaves_the_old_one(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("old")

    def fail() -> None:
        with atomic_folder(tmp_path / "out") as folder:
            (folder / "a").write_text("new")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    assert (tmp_path / "out" / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with atomic_folder(tmp_path / "out") as folder:
        (folder / "b").write_text("newer")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b"]


def test_a_file_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    write_json(target, {"old": 1})

    def fail() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    assert json.loads(target.read_text()) == {"old": 1}
    assert list(tmp_path.iterdir()) == [target]


def test_json_is_whole_or_not_there(tmp_path: Path) -> None:
    content = {"b": [1.5, None], "a": {"x": "é"}}
    write_json(tmp_path / "deep" / "one.json", content)
    write_json(tmp_path / "two.json", content)
    one = (tmp_path / "deep" / "one.json").read_bytes()
    assert json.loads(one) == content
    assert one == (tmp_path / "two.json").read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "two.json", {"loss": float("nan")})
    assert (tmp_path / "two.json").read_bytes() == one


def test_the_hash_is_that_of_the_bytes(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    (tmp_path / "a").write_bytes(content)
    assert file_sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_a_target_that_cannot_be_written_is_found_before_the_work(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "labels.nii.gz")
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(InputError) as caught:
        check_writable(tmp_path / "file" / "labels.nii.gz")
    assert str(tmp_path / "file" / "labels.nii.gz") in str(caught.value)
