"""CPU cores, their load, and the cache folder."""

import os
from pathlib import Path

import pytest

from datamodules import DataError
from datamodules.machine import available_cores, cache_folder, other_programs_are_idle


def test_cache_folder_is_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "lit-classics"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "lit-classics"


def test_missing_home_folder_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(DataError, match=r"no home folder.*XDG_CACHE_HOME"):
        cache_folder()


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("max 100000", 8), ("300000 100000", 3), ("50000 100000", 1), ("350000 100000", 3), ("900000 100000", 8), ("", 8)],
)
def test_quota_of_a_container_limits_the_cores(quota: str, cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setattr(Path, "read_text", lambda self: quota)
    assert available_cores() == cores


@pytest.mark.parametrize(("running", "idle"), [("1/345", True), ("2/345", False), ("12/345", False)])
def test_other_programs_are_idle_if_one_thread_runs(running: str, idle: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda self: f"0.10 0.10 1.10 {running} 1234\n")
    assert other_programs_are_idle() is idle


def test_other_programs_may_compute_where_there_is_no_proc_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datamodules.machine.Path", lambda name: Path("/no/such/folder") / name.lstrip("/"))
    assert not other_programs_are_idle()
