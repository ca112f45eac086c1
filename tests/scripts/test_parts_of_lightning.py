"""Loggers, profilers, plugins and strategies of Lightning train as in a bare Trainer, or get one line."""

import csv
import logging
import re
from pathlib import Path

import pytest
import torch

from lit_training.callbacks.resume import ResumePoint
from tests.support.commands import run, run_well
from tests.support.fits import SHAPES, assert_same_end, assert_same_weights, fit, fit_run, last

RUN = Path("lightning_logs/version_0")
LINE = f"--model LitCNN --data ShapesDataModule {SHAPES} --data.batch_size 4 --max_epochs 3"
ROWS = "fit.py --data RandomDataModule --data.steps 2 --accelerator cpu --dashboard false"
SAVER = "--callbacks+ ModelCheckpoint --callbacks.filename {epoch} --callbacks.save_top_k=-1"


@pytest.fixture(autouse=True)
def saves_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ResumePoint, "TIME_SHARE", 1e9)


@pytest.mark.parametrize(
    "flags",
    [
        "--logger CSVLogger --logger.save_dir own --logger.name mine",
        "--logger TensorBoardLogger --logger.save_dir own --logger.version same",
        "--strategy DDPStrategy --strategy.start_method fork",
    ],
)
def test_a_killed_run_resumes_exactly(flags: str) -> None:
    uninterrupted = fit_run(f"{LINE} {flags} --default_root_dir uninterrupted")
    for step in (4, 11, None):
        fit(f"{LINE} {flags} --resume auto", kill_at=step)
    assert_same_end(uninterrupted, RUN)


def test_the_loggers_of_the_user_come_first_and_hold_each_step() -> None:
    flags = "--logger CSVLogger --logger.save_dir own --logger.name mine --log_every_n_steps 1"
    cli = fit(f"{LINE} {flags}", kill_at=8)
    assert [type(logger).__name__ for logger in cli.trainer.loggers] == ["CSVLogger", "MetricsCSV"]
    fit(f"{LINE} {flags} --resume auto")
    steps = set()
    for path in Path("own/mine").glob("version_*/metrics.csv"):
        with path.open(newline="") as file:
            steps |= {int(row["step"]) for row in csv.DictReader(file) if row["train_loss"]}
    assert steps == {5, 11, 17}


def test_weights_of_64_bits_stay_whole() -> None:
    fit(f"{LINE} --precision 64-true", kill_at=8)
    before = last(RUN)["state_dict"]
    assert all(weight.dtype == torch.float64 for weight in before.values())
    fit(f"{LINE} --precision 64-true --resume auto")
    assert_same_weights(fit_run(f"{LINE} --precision 64-true"), RUN)


@pytest.mark.parametrize("plugin", ["AsyncCheckpointIO", "TorchCheckpointIO"])
def test_a_checkpoint_plugin_writes_the_checkpoints_of_the_users_callbacks(plugin: str) -> None:
    flags = f"{SAVER} --plugins {plugin}"
    uninterrupted = fit_run(f"{LINE} {flags} --default_root_dir uninterrupted")
    for step in (11, None):
        fit(f"{LINE} {flags} --resume auto", kill_at=step)
    assert_same_end(uninterrupted, RUN)
    for epoch in range(3):
        saved = torch.load(RUN / "checkpoints" / f"epoch={epoch}.ckpt", weights_only=True)
        assert (saved["global_step"], "ResumePoint" in saved["callbacks"]) == (6 * (epoch + 1), False)


def test_the_report_of_a_profiler_is_shown_once(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    log = logging.getLogger("lightning.pytorch.profilers.profiler")
    monkeypatch.setattr(log, "handle", lambda record: shown.append(record.getMessage()))  # of a level that is shown
    run_well(f"{ROWS} --profiler simple")
    assert ["FIT" in text for text in shown if "Profiler Report" in text] == [True]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--logger MLFlowLogger", "MLFlowLogger: Requirement 'mlflow>=1.0.0' not met.*pip install -U 'mlflow"),
        ("--logger LitLogger", "there is no --logger LitLogger"),
        ("--profiler xla", "pip install -U 'torch_xla"),
        ("--plugins LSFEnvironment", "LSFEnvironment: Did not find the environment variable `LSB_DJOB_RANKFILE`"),
        ("--plugins BitsandbytesPrecision --plugins.mode nf4", "pip install -U 'bitsandbytes'"),
        ("--strategy deepspeed", "--strategy deepspeed: .*pip install -U deepspeed"),
        ("--strategy single_xla", "--strategy single_xla: .*; change or remove --strategy"),
        ("--strategy FSDPStrategy", "--strategy FSDPStrategy: The strategy `fsdp` requires a GPU"),
        ("--strategy dpp", "--strategy dpp: did you mean ddp"),
    ],
)
def test_a_part_that_cannot_be_used_gets_one_line(flags: str, message: str) -> None:
    ended = run(f"{ROWS} {flags}")
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1), ended.err
    assert re.search(message, ended.err), ended.err
    assert not list(Path().glob("lightning_logs"))
