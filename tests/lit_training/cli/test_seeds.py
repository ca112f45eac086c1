"""``--seeds``: a series of runs, its signals, and wrong values."""

import os
import signal
import time
from pathlib import Path

import pytest

from lit_training.cli.parser import FitCLI
from lit_training.errors import UsageError
from tests.support.commands import run, series_in_this_process
from tests.support.forks import Fork


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["the series", "its group"])
def test_a_signal_ends_a_series_with_a_resume_point(whom: str) -> None:
    line = "fit.py --seeds 2 --max_epochs=100000 --data.train_size=80 --data.val_size=50 --dashboard=false"
    series = Fork(f"{line} --accelerator cpu")
    folder, end = Path("lightning_logs/version_0"), time.monotonic() + 300
    while not (folder / "run.json").exists() and time.monotonic() < end:  # training has started when it exists
        time.sleep(0.1)
    [trained] = children(series.pid)
    number = signal.SIGTERM if whom == "the series" else signal.SIGINT
    (os.kill if whom == "the series" else os.killpg)(series.pid, number)
    out, err = series.communicate(timeout=300)
    assert (series.returncode, err) == (128 + number, "")
    assert f"stopped by {number.name} after step" in out
    assert (folder / "checkpoints" / "resume" / "last.ckpt").exists()
    assert not Path(f"/proc/{trained}").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["version_0"]


def test_seeds_in_python_are_refused() -> None:
    with pytest.raises(UsageError, match=r"scripts/fit\.py --seeds 3"):
        FitCLI(["--seeds", "3"])


def test_seeds_must_be_an_integer() -> None:
    code, out, err = run("fit.py --seeds many")
    assert (code, out) == (2, "")
    assert err == "fit.py: error: argument --seeds: many must be an integer of at least 1\n"


def test_seeds_need_run_folders() -> None:
    small = "--data.train_size 8 --data.val_size 8 --max_epochs 1 --accelerator cpu --devices 1"
    with series_in_this_process() as seeds:
        code, _, err = run(f"fit.py --seeds 2 {small} --logger false")
    assert (code, seeds) == (2, ["0"])
    assert err == "fit.py: error: --seeds needs the folder of each run: leave --logger and --fast_dev_run out\n"
