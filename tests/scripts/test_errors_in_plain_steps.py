"""An error in a plain step: the Trainer keeps its loggers, no earlier row is lost, and the run resumes exactly."""

import errno
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_models import LitMLP
from lit_training.runs.lightning_internals import PlainSteps
from lit_training.runs.metrics_csv import MetricsCSV
from tests.support.fits import assert_same_end, fit_run, last, parse, rows, run_of

LINE = (
    "--accelerator cpu --enable_progress_bar false --max_epochs 2 "
    "--model tests.scripts.test_errors_in_plain_steps.Breaks "
    "--data.in_features 8 --data.length 60 --data.batch_size 2 --data.steps 0 --log_every_n_steps 10"
)
FULL = OSError(errno.ENOSPC, "No space left on device")


class Breaks(LitMLP):
    """Raises ``error`` once, in step ``step``, counted from 0, at ``place``."""

    place, step, error = "", -1, Exception()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.log("each", loss, on_step=True, on_epoch=True)
        self.fail("model")
        return loss

    def fail(self, place: str) -> None:
        if (Breaks.place, self.trainer.fit_loop.total_batch_idx) == (place, Breaks.step):
            Breaks.place = ""
            raise Breaks.error

    def configure_optimizers(self) -> Any:
        model = self

        class Optimizer(torch.optim.SGD):
            def step(self, closure: Any = None) -> Any:
                loss = super().step(closure)
                model.fail("optimizer")
                return loss

        class Schedule(torch.optim.lr_scheduler.LRScheduler):
            def get_lr(self) -> Any:
                if self.last_epoch:  # 0: it is being created
                    model.fail("schedule")
                return [0.99 * group["lr"] for group in self.optimizer.param_groups]

        optimizer = Optimizer(self.parameters(), lr=1e-4)
        return [optimizer], [{"scheduler": Schedule(optimizer), "interval": "step"}]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit_run(f"{LINE} --default_root_dir {tmp_path_factory.mktemp('uninterrupted')}")


@pytest.mark.parametrize(
    ("place", "step", "error"),
    [
        ("model", 43, RuntimeError("broken")),
        ("model", 49, KeyboardInterrupt()),  # a logged step
        ("optimizer", 49, RuntimeError("broken")),
        ("schedule", 43, RuntimeError("broken")),
        ("log_metrics", 49, FULL),
        ("save", 58, FULL),  # after the last plain step
    ],
)
def test_an_error_in_a_plain_step_loses_no_row_and_the_run_resumes_exactly(
    place: str, step: int, error: BaseException, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lit_training.callbacks.resume.ResumePoint.TIME_SHARE", 1e9)  # save when it is possible
    monkeypatch.setattr(PlainSteps, "SECONDS", 60.0)
    cli = parse(f"{LINE} --default_root_dir broken --resume auto")
    loggers, run = cli.trainer.loggers, run_of(cli)
    with monkeypatch.context() as patch:
        for name, value in (("place", place), ("step", step), ("error", error)):
            patch.setattr(Breaks, name, value)
        log_metrics, save = MetricsCSV.log_metrics, MetricsCSV.save

        def log_or_fail(self: Any, metrics: Any, step: Any = None) -> None:
            if "each_step" in metrics:
                cli.model.fail("log_metrics")
            log_metrics(self, metrics, step)

        def save_or_fail(self: Any) -> None:
            cli.model.fail("save")
            save(self)

        patch.setattr(MetricsCSV, "log_metrics", log_or_fail)
        patch.setattr(MetricsCSV, "save", save_or_fail)
        with pytest.raises((RuntimeError, OSError, SystemExit)):
            cli.trainer.fit(cli.model, cli.datamodule, weights_only=True)
    assert cli.trainer.loggers == loggers
    assert last(run)["global_step"] == (39 if step == 43 else 49), "not the point before the logged step"
    before = [row for row in rows(uninterrupted) if int(row["step"]) <= 39]
    assert rows(run)[: len(before)] == before
    assert_same_end(uninterrupted, fit_run(f"{LINE} --default_root_dir broken --resume auto"))
