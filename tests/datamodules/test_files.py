"""Atomic writes and CSV files."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from datamodules.files import atomic_write, read_csv, write_csv


def test_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "new" / "x"
    with atomic_write(target) as file:
        file.write(b"whole")
        assert not target.exists()
    assert target.read_bytes() == b"whole"
    assert list(target.parent.iterdir()) == [target]


def fail_halfway(target: Path, mode: str) -> None:
    with atomic_write(target, mode) as file:
        file.write(b"new" if mode == "wb" else "new")
        raise ZeroDivisionError


@pytest.mark.parametrize("mode", ["wb", "w"])
def test_exception_keeps_the_old_file(tmp_path: Path, mode: str) -> None:
    target = tmp_path / "x"
    target.write_text("old")
    with pytest.raises(ZeroDivisionError):
        fail_halfway(target, mode)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("call", ["os.fsync", "pathlib.Path.replace"])
def test_disk_error_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    target = tmp_path / "x"
    write_csv(target, [["old"]])

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(call, full)
    with pytest.raises(OSError, match="No space left on device"):
        write_csv(target, [["new"]])
    assert target.read_text() == "old\n"
    assert list(tmp_path.iterdir()) == [target]


def test_file_is_synced_before_the_rename_and_its_folder_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace

    sizes: list[int] = []

    def noted_fsync(number: int) -> None:
        sizes.append(os.fstat(number).st_size)
        done.append(f"fsync {Path(f'/proc/self/fd/{number}').readlink().name}")
        fsync(number)

    def noted_replace(self: Path, target: Path) -> Path:
        done.append(f"rename {self.name} to {target.name}")
        assert self.parent == target.parent  # otherwise it could be a copy
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    with atomic_write(tmp_path / "x", "w") as file:
        file.write("whole")
    part = f".x.{os.getpid()}.part"
    assert done == [f"fsync {part}", f"rename {part} to x", f"fsync {tmp_path.name}"]
    assert sizes[0] == len("whole")  # the buffer was flushed
    assert (tmp_path / "x").read_text() == "whole"


def test_folder_that_cannot_be_created_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"), atomic_write(tmp_path / "file" / "x") as file:
        file.write(b"")


def test_text_is_utf_8_and_keeps_its_line_ends(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "x", "w") as file:
        file.write("ü\r\n\udcff\n")
    assert (tmp_path / "x").read_bytes() == b"\xc3\xbc\r\n\xff\n"


def test_csv_file_keeps_any_name(tmp_path: Path) -> None:
    names = ["plain", 'comma, quote"', "new\nline", "größe", os.fsdecode(b"na\xefve")]
    write_csv(tmp_path / "x.csv", [("name", "number"), *((name, number) for number, name in enumerate(names))])
    assert read_csv(tmp_path / "x.csv") == [{"name": name, "number": str(number)} for number, name in enumerate(names)]
    assert b"na\xefve,4" in (tmp_path / "x.csv").read_bytes()


def test_numbers_and_none_are_written_as_text(tmp_path: Path) -> None:
    write_csv(tmp_path / "x.csv", [["a", "b", "c"], [1, 0.5, None]])
    assert read_csv(tmp_path / "x.csv") == [{"a": "1", "b": "0.5", "c": ""}]


def test_csv_file_without_rows_and_missing_file(tmp_path: Path) -> None:
    write_csv(tmp_path / "x.csv", [["a", "b"]])
    assert read_csv(tmp_path / "x.csv") == []
    with pytest.raises(FileNotFoundError):
        read_csv(tmp_path / "y.csv")
