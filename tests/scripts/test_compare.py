"""From two trainings with several seeds to the sentence about them."""

import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lit_training.cli.parser import FitCLI
from lit_training.errors import UsageError

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def run(name: str, *arguments: str) -> None:
    runpy.run_path(str(SCRIPTS / name), run_name="by_path")["main"](list(arguments))


@pytest.mark.parametrize("line", ["one", "", "one two --pgn x"])
def test_wrong_input_gets_one_line(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run("compare.py", *line.split())
    err = capsys.readouterr().err
    assert stopped.value.code == 2
    assert err.startswith("compare.py: error: ")
    assert err.count("\n") == 1


@pytest.mark.slow
def test_seeds_then_evaluation_then_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, str(SCRIPTS / "fit.py"), "--seeds", "2", "--max_epochs=1", "--data.train_size=80"]
    command += ["--data.val_size=50", "--dashboard=false", "--seed", "3"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line.split("  ")[0] for line in lines[:2]] == ["seed 3", "seed 4"]
    assert lines[0].endswith("lightning_logs/version_0")
    values = [float(line.split("val_acc ")[1].split()[0]) for line in lines[:2]]
    mean, deviation = sum(values) / 2, abs(values[0] - values[1]) / 2**0.5
    assert lines[3] == f"val_acc     {mean:.4f} +- {deviation:.4f}  (n = 2 seeds)"

    folders = [str(tmp_path / "lightning_logs" / f"version_{number}") for number in (0, 1)]
    for folder in folders:
        run("evaluate.py", folder)
    capsys.readouterr()
    run("compare.py", *folders)
    shown = capsys.readouterr().out
    assert "seed_everything" in shown
    assert "the same 50 samples" in shown
    assert (tmp_path / "lightning_logs" / "comparison.png").is_file()


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["the series", "its group"])
def test_a_signal_ends_a_series_of_seeds_with_a_resume_point(whom: str, tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPTS / "fit.py"), "--seeds", "2", "--max_epochs=100000", "--data.train_size=80"]
    command += ["--data.val_size=50", "--dashboard=false", "--accelerator", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    series = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=-1, stderr=-1, text=True, start_new_session=True
    )
    run, end = tmp_path / "lightning_logs" / "version_0", time.monotonic() + 120
    while not (run / "run.json").exists() and time.monotonic() < end:  # then it takes steps
        time.sleep(0.1)
    [trained] = children(series.pid)
    number = signal.SIGTERM if whom == "the series" else signal.SIGINT
    (os.kill if whom == "the series" else os.killpg)(series.pid, number)
    out, err = series.communicate(timeout=60)
    assert (series.returncode, err) == (128 + number, "")
    assert f"stopped by {number.name} after step" in out
    assert (run / "checkpoints" / "last.ckpt").exists()
    assert not Path(f"/proc/{trained}").exists()
    assert [path.name for path in run.parent.iterdir()] == ["version_0"]


def test_seeds_are_not_silently_left_out() -> None:
    with pytest.raises(UsageError, match=r"python scripts/fit\.py --seeds 3"):
        FitCLI(["--seeds", "3"])


def test_seeds_have_to_be_a_number(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPTS / "fit.py"), "--seeds", "many"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "many is no whole number" in done.stderr
