"""Files are whole or not there, and texts survive in CSV files."""

import os
from pathlib import Path

import pytest

from datamodules.files import atomic_write, read_csv, write_csv


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
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
def test_a_failure_keeps_the_old_file(tmp_path: Path, mode: str) -> None:
    target = tmp_path / "x"
    target.write_text("old")
    with pytest.raises(ZeroDivisionError):
        fail_halfway(target, mode)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_any_name_survives_in_a_csv_file(tmp_path: Path) -> None:
    names = ["plain", 'comma, quote"', "new\nline", "größe", os.fsdecode(b"na\xefve")]
    write_csv(tmp_path / "x.csv", [("name", "number"), *((name, number) for number, name in enumerate(names))])
    assert read_csv(tmp_path / "x.csv") == [{"name": name, "number": str(number)} for number, name in enumerate(names)]
