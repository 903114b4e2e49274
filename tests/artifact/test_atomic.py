"""Files that appear whole, and on the disk."""

import errno
import os
from pathlib import Path

import pytest

from deploykit.artifact import atomic


def test_a_file_takes_the_place_of_an_older_one_and_nothing_is_left_beside_it(tmp_path):
    file = tmp_path / "notes.json"
    file.write_text("old")
    atomic.write_text(file, "größer\n")
    assert file.read_text(encoding="utf-8") == "größer\n"
    assert [path.name for path in tmp_path.iterdir()] == ["notes.json"]


def test_a_write_that_fails_keeps_the_older_file_and_leaves_nothing(tmp_path, monkeypatch):
    file = tmp_path / "notes.json"
    file.write_text("old")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")  # as a disk says that allocates late

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        atomic.write_text(file, "new")
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["notes.json"]


def test_all_of_a_directory_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    draft, target, synced = tmp_path / "draft", tmp_path / "target", []
    (draft / "inner").mkdir(parents=True)
    (draft / "inner" / "file").write_text("x")
    (draft / "link").symlink_to("inner")
    sync = os.fsync

    def record(descriptor):
        synced.append((str(Path(f"/proc/self/fd/{descriptor}").readlink()), target.exists()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    atomic.move(draft, target)
    before = {name for name, there in synced if not there}
    assert before == {str(draft), str(draft / "inner"), str(draft / "inner" / "file")}
    assert synced[-1] == (str(tmp_path), True)
    assert (target / "link" / "file").read_text() == "x"


def test_a_file_system_that_syncs_no_directories_is_no_error(tmp_path, monkeypatch):
    sync = os.fsync

    def refuse(descriptor):
        if Path(f"/proc/self/fd/{descriptor}").is_dir():
            raise OSError(errno.EINVAL, "Invalid argument")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    atomic.write_text(tmp_path / "file", "x")
    assert (tmp_path / "file").read_text() == "x"
