"""All parts of the project agree which epoch is the best."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_training.callbacks.best import BestCheckpoint, StopEarly
from lit_training.callbacks.console import EpochLines
from lit_training.callbacks.dashboard import Dashboard
from lit_training.cli.parser import FitCLI
from lit_training.runs.best_epoch import MODES, BestSoFar, best_epoch
from lit_training.trained.compare import read_run
from tests.support.fits import fit
from tests.support.told_accuracy import ToldAccuracy

NAN = float("nan")
INF = float("inf")


@pytest.mark.parametrize(
    ("value", "best", "mode", "better"),
    [
        (0.6, 0.5, "max", True),
        (0.4, 0.5, "max", False),
        (0.6, 0.5, "min", False),
        (0.4, 0.5, "min", True),
        (0.5, 0.5, "max", False),  # a tie: the earlier epoch stays the best
        (0.5, 0.5, "min", False),
        (NAN, 0.5, "max", False),
        (NAN, 0.5, "min", False),
        (0.5, None, "max", True),
        (NAN, None, "max", False),
        (NAN, None, "min", False),
        (INF, 0.5, "max", True),
        (INF, 0.5, "min", False),
        (INF, None, "min", True),
        (1.0, INF, "min", True),
    ],
)
def test_an_epoch_is_compared_with_the_best_before_it(
    value: float, best: float | None, mode: str, better: bool
) -> None:
    for metrics in ({"m": value}, {"m": torch.tensor(value), "other": 1.0}):
        so_far = BestSoFar("m", mode)
        so_far.value = best
        assert so_far.improved(metrics) == better


@pytest.mark.parametrize("mode", ["max", "min"])
def test_an_epoch_without_the_metric_is_not_better(mode: str) -> None:
    best = BestSoFar("m", mode)
    assert not best.improved({"other": 1.0})
    best.value = 0.5
    assert not best.improved({})


@given(st.lists(st.floats(allow_infinity=False), max_size=20), st.sampled_from(["max", "min"]))
def test_each_improvement_is_found(values: list[float], mode: str) -> None:
    best = BestSoFar("m", mode)
    earlier_values: list[float] = []
    for value in values:
        better = value == value and all(value > old if mode == "max" else value < old for old in earlier_values)
        assert best.improved({"m": torch.tensor(value, dtype=torch.float64)}) == better
        earlier_values += [value] if value == value else []
    assert not best.improved({})
    assert not BestSoFar(None, mode).improved({"m": torch.tensor(1.0)})


def test_the_value_is_kept_as_a_python_float() -> None:
    best = BestSoFar("val_acc", "max")
    assert best.value is None
    best.improved({"val_acc": torch.tensor(0.5), "val_loss": torch.tensor(1.25), "lr": 0.1})
    assert type(best.value) is float
    assert best.value == 0.5
    restored = BestSoFar("val_acc", "max")
    restored.load_state_dict(best.state_dict())
    assert not restored.improved({"val_acc": 0.5, "val_loss": 1.25})
    assert restored.improved({"val_acc": 0.5, "val_loss": 1.0})
    restored.load_state_dict({"best": 0.5})  # of an older checkpoint: its loss is not known
    assert not restored.improved({"val_acc": 0.5, "val_loss": 0.0})
    restored.load_state_dict({"best": 0.9, "monitor": "f1"})  # of another metric
    assert restored.improved({"val_acc": 0.75})


VALUES = [0.25, 0.5, 0.75, NAN, None]


@given(
    st.lists(st.tuples(st.sampled_from(VALUES), st.sampled_from(VALUES)), max_size=9), st.sampled_from(["max", "min"])
)
def test_the_best_epoch_has_the_best_value_then_the_lowest_loss_then_the_lowest_number(
    values: list[tuple[float | None, float | None]], mode: str
) -> None:
    rows = {
        epoch: {name: value for name, value in zip(("m", "val_loss"), row, strict=True) if value is not None}
        for epoch, row in enumerate(values, 1)
    }
    ranked = [
        (value if mode == "min" else -value, INF if loss is None or loss != loss else loss, epoch)
        for epoch, (value, loss) in enumerate(values, 1)
        if value is not None and value == value
    ]
    assert best_epoch(rows, "m", mode) == (min(ranked)[2] if ranked else None)


def test_val_acc_decides_before_val_loss_before_train_loss() -> None:
    assert list(MODES.items()) == [("val_acc", "max"), ("val_loss", "min"), ("train_loss", "min")]


SMALL = "--data.train_size 8 --data.val_size 4 --accelerator cpu --max_epochs 5"
TOLD = f"--model {ToldAccuracy.__module__}.ToldAccuracy --model.accuracy"
FALLING, EQUAL = "[7,6,5,4,3,2,1]", "[1,1,1,1,1,1,1]"


def of_type(cli: FitCLI, kind: Any) -> Any:
    [found] = [callback for callback in cli.trainer.callbacks if type(callback) is kind]  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize(
    ("accuracy", "loss", "flags"),
    [
        ("[0.25,0.5,0.75,0.625,0.5]", FALLING, "--early_stopping 3"),
        ("[0.25,0.5,0.75,0.75,0.75]", EQUAL, "--early_stopping 3"),
        ("[0.75,0.75,0.75,0.75,0.75]", "[4,3,1,1,2]", "--early_stopping 3"),
        ("[0.75,0.75,0.75,0.75,0.5]", "[.nan,3,1,.nan,0]", "--early_stopping 3"),
        ("[0.25,.nan,0.75,.nan,0.5]", FALLING, ""),
    ],
    ids=["alone", "equal losses", "the lowest loss", "NaN losses", "among NaN"],
)
def test_star_checkpoint_early_stopping_dashboard_and_comparison_agree(
    accuracy: str, loss: str, flags: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The third of five epochs is the best one."""
    cli = fit(f"{TOLD} {accuracy} --model.loss {loss} {SMALL} --enable_progress_bar true --dashboard true {flags}")
    run = tmp_path / "lightning_logs" / "version_0"

    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert len(lines) == 5
    assert [line.split("  ")[0] for line in lines if line.endswith("*")][-1] == "epoch 3/5"
    assert torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["epoch"] == 2
    assert of_type(cli, BestCheckpoint).best_model_score == 0.75
    assert of_type(cli, EpochLines).best.value == 0.75
    assert of_type(cli, Dashboard).best.value == 0.75
    compared = read_run(str(run))
    assert compared.best["val_acc"] == 0.75
    assert compared.best["val_loss"] == compared.curves["val_loss"][3]
    if flags:
        stopping = of_type(cli, StopEarly)
        assert (stopping.best.value, stopping.waited) == (0.75, 2)


@pytest.mark.parametrize(
    ("accuracy", "loss", "ran"),
    [
        ("[0.25,0.5,0.75,0.75,0.75,0.75,0.75]", EQUAL, 5),  # epochs 4 and 5 are not better than epoch 3
        ("[0.25,0.5,0.75,0.75,0.75,0.75,0.75]", "[7,6,5,4,5,4,1]", 6),
        ("[0.25,0.5,.nan,0.75,0.75,0.75,0.75]", FALLING, 3),
        ("[0.25,0.5,0.25,0.75,0.75,0.5,0.75]", EQUAL, 6),
    ],
    ids=["tied", "a lower loss", "NaN", "better again"],
)
def test_early_stopping_waits_for_a_better_epoch(accuracy: str, loss: str, ran: int) -> None:
    cli = fit(f"{TOLD} {accuracy} --model.loss {loss} {SMALL} --max_epochs 7 --early_stopping 2 --dashboard false")
    assert cli.trainer.current_epoch == ran


def test_a_resumed_run_goes_on_with_the_loss_of_its_best_epoch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = f"{TOLD} [0.75,0.75,0.75,0.75] --model.loss [3,1,2,0.5] {SMALL} --early_stopping 2"
    told += " --enable_progress_bar true --dashboard true"
    fit(f"{told} --max_epochs 2")
    capsys.readouterr()
    cli = fit(f"{told} --max_epochs 4 --resume latest")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert [line.endswith("*") for line in lines] == [False, True]
    run = tmp_path / "lightning_logs" / "version_0"
    assert torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["epoch"] == 3
    for kind in (BestCheckpoint, EpochLines, Dashboard, StopEarly):
        best = of_type(cli, kind).best
        assert (best.value, best.val_loss) == (0.75, 0.5)
    assert read_run(str(run)).best == {name: read_run(str(run)).curves[name][4] for name in MODES}


def test_each_of_several_validations_in_an_epoch_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli = fit(
        "--model.lr 0.1 --data.train_size 64 --data.val_size 16 --accelerator cpu --max_epochs 4 "
        "--val_check_interval 0.25 "
        "--enable_progress_bar true --seed 4"
    )
    saved, compared = of_type(cli, BestCheckpoint).best, read_run(str(tmp_path / "lightning_logs" / "version_0"))
    assert saved.val_loss not in compared.curves["val_loss"].values()  # it is not the last of its epoch
    assert (compared.best["val_acc"], compared.best["val_loss"]) == (saved.value, saved.val_loss)
    assert of_type(cli, EpochLines).best.state_dict() == saved.state_dict()
    [epoch] = [
        row["epoch"] for row in compared.rows if row.get("val_loss") and float(row["val_loss"]) == saved.val_loss
    ]
    stars = [line.endswith("*") for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert max(number for number, star in enumerate(stars) if star) == int(epoch)
