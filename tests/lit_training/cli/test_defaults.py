"""The defaults of a run, and how flags change them."""

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.profilers import SimpleProfiler
from lightning.pytorch.strategies import DDPStrategy

from lit_training.cli.defaults import LIGHTNING_STRATEGIES, register_strategies
from lit_training.errors import UsageError
from lit_training.runs.checkpoints import FitCheckpointIO
from lit_training.runs.lightning_internals import NullProfiler
from lit_training.runs.metrics_csv import MetricsCSV
from lit_training.runs.tensorboard import BufferedTensorBoard
from tests.support.fits import parse

ALL = [
    "ResumePoint",
    "StepSeed",
    "FiniteGuard",
    "Throughput",
    "EpochLines",
    "FeatureCache",
    "RunRecords",
    "LearningRateMonitor",
    "Dashboard",
    "BestCheckpoint",
    "PlainSteps",
]


def callbacks(line: str) -> list[str]:
    """Return the names of the callbacks of a run, in the order in which Lightning calls them; checkpoints come last."""
    return [type(callback).__name__ for callback in parse(line).trainer.callbacks]  # type: ignore[attr-defined]


def test_the_resume_point_comes_first() -> None:
    names = callbacks("")
    assert names[0] == "ResumePoint"
    assert sorted(names) == sorted(ALL)


@pytest.mark.parametrize(
    ("line", "gone", "more"),
    [
        ("--quiet", {"EpochLines"}, set()),
        ("--enable_progress_bar false", {"EpochLines"}, set()),
        ("--dashboard false", {"Dashboard"}, set()),
        ("--early_stopping 3", set(), {"StopEarly"}),
        ("--callbacks DeviceStatsMonitor", set(), {"DeviceStatsMonitor"}),
        ("--enable_checkpointing false", {"ResumePoint", "BestCheckpoint"}, set()),
        ("--logger false", {"ResumePoint", "RunRecords", "LearningRateMonitor", "Dashboard"}, set()),
        ("--barebones --model LitMLP", set(ALL), set()),
    ],
)
def test_flags_remove_or_add_callbacks(line: str, gone: set[str], more: set[str]) -> None:
    assert set(callbacks(line)) == (set(ALL) - gone) | more


def test_choices_of_the_user_are_kept() -> None:
    trainer: Any = parse("--logger CSVLogger --logger.save_dir . --profiler simple --num_sanity_val_steps 2").trainer
    assert [type(logger) for logger in trainer.loggers] == [CSVLogger, MetricsCSV]
    assert isinstance(trainer.profiler, SimpleProfiler)
    assert trainer.num_sanity_val_steps == 2
    trainer = parse("").trainer
    assert [type(logger) for logger in trainer.loggers] == [BufferedTensorBoard, MetricsCSV]
    assert isinstance(trainer.profiler, NullProfiler)
    assert isinstance(trainer.strategy.checkpoint_io, FitCheckpointIO)
    assert trainer.num_sanity_val_steps == 0


@pytest.mark.parametrize(
    ("line", "finds"),
    [
        ("--model LitDynamic --strategy ddp --devices 2", True),
        ("--model LitDynamic --devices 2", True),
        ("--model LitMLP --strategy ddp --devices 2", None),
        ("--model LitDynamic --strategy ddp_find_unused_parameters_false --devices 2", False),
    ],
)
def test_ddp_finds_unused_parameters_of_models_that_skip_layers(line: str, finds: bool | None) -> None:
    strategy = parse(f"--accelerator cpu {line}").trainer.strategy
    assert isinstance(strategy, DDPStrategy)
    assert strategy._ddp_kwargs.get("find_unused_parameters") == finds


@pytest.mark.parametrize("name", [name for name in LIGHTNING_STRATEGIES if name.startswith("ddp")])
def test_the_process_group_timeout_is_longer_than_the_watch(name: str) -> None:
    """``--timeout`` ends a hang; the default of torch ends a slow job after 30 minutes."""
    register_strategies(skips_layers=False)
    strategy = parse(f"--accelerator cpu --devices 2 --strategy {name}").trainer.strategy
    assert isinstance(strategy, DDPStrategy)
    assert strategy._timeout is not None
    assert strategy._timeout.days == 1


def test_a_failure_in_the_defaults_leaves_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no disk")

    monkeypatch.setattr("lit_training.cli.defaults.BufferedTensorBoard", fail)
    with pytest.raises(UsageError, match="no disk"):
        parse("")
    assert not Path("lightning_logs").exists()
