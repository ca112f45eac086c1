"""What fit.py does before and after training; tests/scripts/test_fit.py tests its output."""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import lit_models
from lit_models import LitCNN
from lit_training.cli.fit import RESULT_FILE_VARIABLE, prepare, print_result, undo_failed_start
from lit_training.errors import UsageError
from tests.support.commands import run, run_well
from tests.support.fits import SHAPES, fit, parse, rows, run_of


def test_the_evaluation_after_training_reports_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each batch reports progress, so the evaluation may take longer than --timeout."""
    cli = fit(f"{SHAPES} --max_epochs 1 --num_sanity_val_steps 1")
    signs: list[int] = []
    monkeypatch.setattr(cli.run.watch, "note_progress", lambda: signs.append(1))
    print_result(cli.run)
    assert len(signs) == 4  # 8 images in a batch of 100; test images, and features of train and val for the calibration


def test_a_successful_run_writes_its_folder_to_the_result_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(RESULT_FILE_VARIABLE, str(tmp_path / "told"))
    cli = fit(f"{SHAPES} --max_epochs 1")
    assert not (tmp_path / "told").exists()
    print_result(cli.run)
    told = Path(os.fsdecode((tmp_path / "told").read_bytes()))
    assert told.resolve() == run_of(cli).resolve()


def test_the_final_evaluation_logs_nothing() -> None:
    cli = fit(f"{SHAPES} --max_epochs 1")
    table = run_of(cli) / "metrics.csv"
    before = table.read_bytes()
    loggers = cli.trainer.loggers
    print_result(cli.run)
    assert cli.trainer.loggers == loggers
    assert table.read_bytes() == before


@pytest.mark.parametrize(("batches", "kept"), [(0, False), (1, True)])
def test_a_run_that_fails_in_its_first_batch_leaves_no_folder(batches: int, kept: bool) -> None:
    run = parse(f"{SHAPES} --max_epochs 1").run
    progress: Any = SimpleNamespace(total=SimpleNamespace(completed=batches))
    run.trainer = SimpleNamespace(fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress)))
    with pytest.raises(UsageError), undo_failed_start(run):
        raise UsageError("too late")
    assert Path("lightning_logs").exists() == kept


def test_weights_are_loaded_unless_the_run_is_resumed(
    monkeypatch: pytest.MonkeyPatch, copy_run: Callable[..., Path]
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(lit_models.LitCNN, "load_pretrained", lambda self: asked.append(1))
    copy_run(f"{SHAPES} --max_epochs 1", kill_at=3)
    prepare(parse("--resume latest").run)
    assert asked == []
    prepare(parse(SHAPES).run)
    assert asked == [1]


def test_the_weights_of_the_best_epoch_are_evaluated(capsys: pytest.CaptureFixture[str]) -> None:
    cli: Any = fit(f"{SHAPES} --max_epochs 2 --model.lr 0.02")
    best = torch.load(run_of(cli) / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    for parameter in cli.model.parameters():
        torch.nn.init.zeros_(parameter)
    print_result(cli.run)
    for name, weight in cli.model.state_dict().items():
        assert torch.equal(weight, best[name])
    accuracy = cli.trainer.callback_metrics["val_acc"]
    assert f"val_acc     {float(accuracy):.4f}  (95 % interval " in capsys.readouterr().out


class SeldomSteps(LitCNN):
    """Steps its optimizer by hand, in every third batch only. So ``global_step`` is less than the number of batches."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        if Path("fail").exists() and self.trainer.current_epoch == 2:
            raise UsageError("a failure")
        self.manual_backward(super().training_step(batch, batch_idx))
        if batch_idx % 3 == 2:
            optimizer: Any = self.optimizers()
            optimizer.step()
            optimizer.zero_grad()


def test_a_failure_after_a_resume_keeps_the_rows_since_then_if_steps_are_seldom() -> None:
    model = "--model tests.lit_training.cli.test_fit.SeldomSteps"
    line = f"fit.py {model} {SHAPES} --accelerator cpu --max_epochs"
    run_well(f"{line} 1")
    Path("fail").touch()
    failed = run("fit.py --resume latest --max_epochs 4")
    assert (failed.code, failed.err) == (2, "fit.py: error: a failure\n")
    assert [row["epoch"] for row in rows(Path("lightning_logs/version_0")) if "val_loss" in row] == ["0", "1"]
