"""Test scripts/compare.py on two trained runs."""

from pathlib import Path

import pytest

from tests.support.commands import run, run_well
from tests.support.forks import Fork


@pytest.mark.parametrize("line", ["one", "", "one two --pgn x", "one two"])
def test_wrong_input_gets_one_line(line: str) -> None:
    code, out, err = run(f"compare.py {line}")
    assert (code, out) == (2, "")
    assert err.startswith("compare.py: error: ")
    assert err.count("\n") == 1


@pytest.mark.slow
def test_seeds_evaluate_and_compare_in_sequence() -> None:
    line = "fit.py --seeds 2 --max_epochs=1 --data.train_size=80 --data.val_size=50 --dashboard=false --seed 3"
    series = Fork(line)
    out, err = series.communicate()
    assert (series.returncode, err) == (0, "")
    lines = out.splitlines()
    assert [line.split("  ")[0] for line in lines[:2]] == ["seed 3", "seed 4"]
    assert lines[0].endswith("lightning_logs/version_0")
    values = [float(line.split("val_acc ")[1].split()[0]) for line in lines[:2]]
    mean, deviation = sum(values) / 2, abs(values[0] - values[1]) / 2**0.5
    assert lines[3] == f"val_acc     {mean:.4f} +- {deviation:.4f}  (n = 2 seeds)"

    for number in (0, 1):
        run_well(f"evaluate.py lightning_logs/version_{number}")
    shown = run_well("compare.py lightning_logs/version_0 lightning_logs/version_1")
    assert "seed_everything" in shown
    assert "the same 50 samples" in shown
    assert Path("lightning_logs/comparison.png").is_file()
