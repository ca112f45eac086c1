"""Fixtures for all tests. No test uses the network, the user's caches or another test's files."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from lightning.pytorch import Trainer

from tests.support.ants_and_bees import write_photos
from tests.support.drawing import draw_figures
from tests.support.training import bare_trainer, own_caches

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a number that the user set is kept
torch.set_num_threads(1)  # one thread is fast enough, and adds numbers in the same order on all machines
GPUS = torch.cuda.device_count()
REAL_CUDA = {name: getattr(torch.cuda, name) for name in ("is_available", "device_count")}
torch.cuda.is_available, torch.cuda.device_count = lambda: False, lambda: 0  # tests give the same on all machines
settings.register_profile("suite", max_examples=50, deadline=None, derandomize=True)
settings.load_profile("suite")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print a clear message if the browser tests were skipped."""
    left_out = [report for report in terminalreporter.stats.get("skipped", []) if "test_browser.py" in report.nodeid]
    if left_out:
        terminalreporter.write_line(
            f"NO BROWSER: {len(left_out)} tests of tests/test_browser.py were skipped; "
            "apt-get install chromium chromium-driver, or set REQUIRE_BROWSER=1 to let them fail",
            red=True,
            bold=True,
        )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without a GPU, skip the tests that need one."""
    for item in items if not GPUS else ():
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a GPU with CUDA"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Draw figures if the test has the marker ``figures``. The fixtures of its module are made after this."""
    draw_figures(item.get_closest_marker("figures") is not None)


@pytest.fixture(autouse=True)
def visible_gpus(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Show the GPUs to a test with the marker ``gpu``."""
    for name, function in REAL_CUDA.items() if request.node.get_closest_marker("gpu") else ():
        monkeypatch.setattr(torch.cuda, name, function)


@pytest.fixture(autouse=True)
def own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test its own current folder and caches, one thread, and the seed 0."""
    monkeypatch.chdir(tmp_path)
    own_caches(tmp_path, monkeypatch)
    torch.manual_seed(0)
    torch.set_num_threads(1)  # an earlier fit can have chosen another number


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    """Kill the processes that a test has started and not waited for, because it failed."""
    yield
    if "tests.support.forks" in sys.modules:
        sys.modules["tests.support.forks"].Fork.end_all()


@pytest.fixture(autouse=True)
def show_bugs_in_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a report that fails with another error than one of the disk fail the test, although no command fails."""
    if "lit_training.trained.report" in sys.modules:
        monkeypatch.setattr("lit_training.trained.report.CAUGHT", (OSError,))


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the name lookup of other machines fail, as without a network."""
    look_up = socket.getaddrinfo

    def local_alone(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host in (None, "", "localhost", "127.0.0.1", "::1", socket.gethostname()):
            return look_up(host, *args, **kwargs)
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", local_alone)


@pytest.fixture
def bare() -> Callable[..., Trainer]:
    """A function: ``bare(max_epochs=1, ...)`` returns a Trainer of Lightning that writes and prints nothing."""
    return bare_trainer


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 40 MB in memory; skips the test if this user cannot mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=40m", "none", str(place)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"cannot run mount: {error}")
    if mounted.returncode:
        pytest.skip(f"cannot mount a file system: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.fixture
def photo_folder(tmp_path: Path) -> Path:
    """See :func:`tests.support.ants_and_bees.write_photos`."""
    return write_photos(tmp_path / "photos")
