"""Training runs that several tests use: each is trained once and copied."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest

from lit_training.callbacks.resume import ResumePoint
from tests.support.fits import fit_run

CopyRun = Callable[..., Path]


@pytest.fixture
def at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a resume point before every step."""
    monkeypatch.setattr(ResumePoint, "TIME_SHARE", 1e9)


@pytest.fixture(scope="session")
def trained_runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int | None], Path]:
    """Return a function that trains a run once per session, by command line and step of the kill."""
    kept: dict[tuple[str, int | None], Path] = {}

    def train(line: str, kill_at: int | None) -> Path:
        if (line, kill_at) not in kept:
            folder = tmp_path_factory.mktemp("trained")
            with _inside(folder), mock.patch.object(ResumePoint, "TIME_SHARE", 1e9):
                fit_run(line, kill_at)
            kept[line, kill_at] = folder
        return kept[line, kill_at]

    return train


@pytest.fixture
def copy_run(trained_runs: Callable[[str, int | None], Path]) -> CopyRun:
    """``copy_run(line, kill_at, root)`` returns ROOT/lightning_logs/version_0 with a run of that command line."""

    def copy(line: str, kill_at: int | None = None, root: str = ".") -> Path:
        shutil.copytree(trained_runs(line, kill_at), root, dirs_exist_ok=True)
        return Path(root, "lightning_logs", "version_0")

    return copy


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
