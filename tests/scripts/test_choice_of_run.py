"""Test which of several runs ``latest`` and ``--resume`` choose.

The runs are 2, 9 and 10; sorted as text, 9 would be the last. Higher numbers are newer runs. Each check is repeated
after the newest run is removed, so that a lucky order of the folder listing cannot pass.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_models import LitMLP
from tests.support import by_hand, printed, scripted
from tests.support.commands import run, run_well

LOGS = Path("lightning_logs")
NUMBERS = (2, 9, 10)
ROWS = "--data.in_features 6 --data.out_features 2 --data.length 8 --data.batch_size 2 --data.steps 0"
FIT = f"fit.py --model LitMLP {ROWS} --accelerator cpu --devices 1 --dashboard false"
INPUTS = torch.linspace(-1, 1, 18).view(3, 6)


def in_folders(numbers: tuple[int, ...], train: Callable[[int], Any]) -> None:
    """Train one run for each number. Each run gets a time one minute after the run before."""
    for number in numbers:
        (LOGS / f"version_{number - 1}").mkdir(parents=True, exist_ok=True)  # fit.py uses the next number
        train(number)
        if not (LOGS / f"version_{number - 1}" / "config.yaml").exists():
            (LOGS / f"version_{number - 1}").rmdir()
    assert sorted(path.name for path in LOGS.iterdir()) == sorted(f"version_{number}" for number in numbers)
    for minute, number in enumerate(numbers):
        for path in [LOGS / f"version_{number}", *(LOGS / f"version_{number}").rglob("*")]:
            os.utime(path, (1.7e9 + 60 * minute, 1.7e9 + 60 * minute))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Runs of 2 epochs of networks with 2, 9 and 10 hidden units, each with another seed."""
    folder = tmp_path_factory.mktemp("several")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        in_folders(
            NUMBERS, lambda number: run_well(f"{FIT} --model.hidden [{number}] --seed {number} --max_epochs 2 --quiet")
        )
        yield folder


@pytest.fixture
def several(workspace: Path, tmp_path: Path) -> None:
    shutil.copytree(workspace, tmp_path, dirs_exist_ok=True)
    with Path("rows.csv").open("w") as file:
        file.writelines(",".join(f"{value:.6f}" for value in row) + "\n" for row in INPUTS.tolist())


def newest_first() -> Iterator[int]:
    """Yield the number of the newest run, then remove the run."""
    for number in sorted(NUMBERS, reverse=True):
        yield number
        shutil.rmtree(LOGS / f"version_{number}")


def check_evaluate(number: int) -> None:
    out = run_well("evaluate.py latest")
    assert printed.result(out)["checkpoint"] == f"lightning_logs/version_{number}/checkpoints/best.ckpt"
    alone = run_well(f"evaluate.py lightning_logs/version_{number}")
    assert printed.result(out)["test_loss"] == printed.result(alone)["test_loss"]


def check_predict(number: int) -> None:
    rows = printed.table(run_well("predict.py latest rows.csv"), "path", "row", "output_1", "output_2")
    model = by_hand.opened(LOGS / f"version_{number}" / "checkpoints/best.ckpt", LitMLP)
    with torch.no_grad():
        expected = model(INPUTS)
    assert [row[:2] for row in rows] == [["rows.csv", str(line)] for line in (1, 2, 3)]
    found = torch.tensor([[float(cell) for cell in row[2:]] for row in rows])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def check_describe(number: int) -> None:
    parameters = number * (6 + 1) + 2 * (number + 1)
    assert f"LitMLP: {parameters} trainable of {parameters} parameters" in run_well("describe.py latest")


def check_compare(number: int) -> None:
    other = next(path for path in LOGS.iterdir() if path.name != f"version_{number}") if number > 2 else Path("other")
    if number == 2:
        shutil.copytree(LOGS / "version_2", other)
    rows = printed.table(run_well(f"compare.py latest {other} --png x.png"), f"version_{number}", other.name)
    losses = printed.column(printed.read_csv(LOGS / f"version_{number}" / "metrics.csv"), "val_loss")
    assert {row[0]: row[1] for row in rows}["val_loss"] == f"{min(losses):.4g}"


def check_resume(number: int) -> None:
    for further in ("", "--max_epochs 1", "--max_epochs 2 --log_every_n_steps 7"):  # it has trained two
        out = run_well(f"fit.py --resume latest {further}")
        assert f"lightning_logs/version_{number} has finished: nothing to do" in out
    out = run_well("fit.py --resume latest --max_epochs 3")
    assert f"resume  lightning_logs/version_{number}/checkpoints/resume/last.ckpt, after step 8" in out
    starts = json.loads((LOGS / f"version_{number}" / "run.json").read_text())
    assert [start["from_step"] for start in starts] == [0, 8]
    assert [start["seed"] for start in starts] == [number, number]


@pytest.mark.parametrize("script", [check_evaluate, check_predict, check_describe, check_compare, check_resume])
def test_latest_is_the_newest_run(script: Callable[[int], None], several: None) -> None:
    for number in newest_first():
        script(number)


def test_a_named_run_is_used_instead_of_the_latest(several: None) -> None:
    for number in NUMBERS:
        out = run_well(f"evaluate.py lightning_logs/version_{number}")
        assert printed.result(out)["checkpoint"] == f"lightning_logs/version_{number}/checkpoints/best.ckpt"
        predicts_of = run_well(f"predict.py lightning_logs/version_{number}/checkpoints/last.ckpt rows.csv")
        model = by_hand.opened(LOGS / f"version_{number}" / "checkpoints/last.ckpt", LitMLP)
        first = float(printed.table(predicts_of, "path", "row", "output_1", "output_2")[0][2])
        assert first == pytest.approx(float(model(INPUTS)[0, 0]), rel=1e-4, abs=1e-5)
        run_well(f"fit.py --resume lightning_logs/version_{number} --max_epochs {3 + number}")
        rows = printed.read_csv(LOGS / f"version_{number}" / "metrics.csv")
        assert len(printed.column(rows, "val_loss")) == 3 + number


def test_a_new_run_gets_the_number_after_the_highest(several: None) -> None:
    run_well(f"{FIT} --max_epochs 1 --quiet")
    assert (LOGS / "version_11" / "checkpoints/best.ckpt").is_file()


# --- --resume auto ----------------------------------------------------------------------------------------------------

SAME = f"{FIT} --data.length 4 --max_epochs 2 --callbacks+ {scripted.NAME}.Kill --callbacks+ {scripted.NAME}.Slow"
"""Four steps, with a resume point after each."""
WHOLE = Path("whole/lightning_logs/version_0")
KILLED = {2: 1, 9: 2, 10: 3}
"""The step in which each run is killed."""


def killed(line: str, step: int) -> None:
    Path("kill").write_text(str(step))
    with pytest.raises(scripted.Killed):
        run(line)
    Path("kill").unlink()


def test_auto_resumes_the_newest_run_of_the_same_command(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted.put_clock_back(monkeypatch)
    run_well(f"{SAME} --default_root_dir whole")
    whole = torch.load(WHOLE / "checkpoints/last.ckpt", weights_only=True)
    in_folders(NUMBERS, lambda number: killed(SAME, KILLED[number]))
    killed(f"{SAME} --seed 1", 2)  # version_11: another command
    (LOGS / "version_12").mkdir()
    assert (LOGS / "version_11/checkpoints/resume/last.ckpt").is_file()
    for number in newest_first():
        out = run_well(f"{SAME} --resume auto")
        assert (
            f"resume  lightning_logs/version_{number}/checkpoints/resume/last.ckpt, after step {KILLED[number]}" in out
        )
        end = torch.load(LOGS / f"version_{number}/checkpoints/last.ckpt", weights_only=True)
        assert end["global_step"] == whole["global_step"] == 4
        assert all(torch.equal(tensor, end["state_dict"][name]) for name, tensor in whole["state_dict"].items())
        for name in ("train_loss", "val_loss"):
            tables = [printed.read_csv(Path(run, "metrics.csv")) for run in (f"{LOGS}/version_{number}", WHOLE)]
            assert printed.column(tables[0], name) == printed.column(tables[1], name)
        again = run_well(f"{SAME} --resume auto")
        assert f"lightning_logs/version_{number} has finished" in again
    out = run_well(f"{SAME} --resume auto")
    assert "resume" not in out
    assert (LOGS / "version_13").is_dir()
    assert "resume" not in run_well(SAME)  # without --resume a new run starts
    assert (LOGS / "version_14").is_dir()
    out = run_well("fit.py --resume lightning_logs/version_11")
    assert "resume  lightning_logs/version_11/checkpoints/resume/last.ckpt, after step 2" in out
