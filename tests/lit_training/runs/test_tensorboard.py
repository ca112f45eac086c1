"""TensorBoard's file gets the logged values when they are saved: all of them, with their own times."""

from pathlib import Path

import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_training.runs.tensorboard import BufferedTensorBoard


def scalars(logger: TensorBoardLogger) -> dict[str, list[tuple[int, float, float]]]:
    """Return the name, and the step, the value and the time of each scalar in the files of a logger."""
    board = EventAccumulator(logger.log_dir).Reload()
    return {
        name: [(one.step, one.value, one.wall_time) for one in board.Scalars(name)] for name in board.Tags()["scalars"]
    }


def test_numbers_are_in_the_file_after_save_with_the_times_when_they_were_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = BufferedTensorBoard(tmp_path, version=0, default_hp_metric=False)
    for step in range(30):  # more than torch's queue holds
        monkeypatch.setattr("time.time", lambda step=step: 1e9 + step)
        logger.log_metrics({"loss": step / 2, "epoch": 3}, step)
        logger.log_metrics({"second": 7.0}, step) if step == 4 else None
    assert not Path(logger.log_dir).exists(), "written before save()"
    monkeypatch.undo()
    logger.save()
    assert scalars(logger) == {
        "loss": [(step, step / 2, 1e9 + step) for step in range(30)],
        "epoch": [(step, 3.0, 1e9 + step) for step in range(30)],
        "second": [(4, 7.0, 1e9 + 4)],
    }
    logger.save()
    logger.log_metrics({"loss": 8.0}, 30)
    logger.finalize("failed")
    assert [step for step, *_ in scalars(logger)["loss"]] == list(range(31))


def test_other_values_are_those_of_a_tensorboard_logger(tmp_path: Path) -> None:
    logger = BufferedTensorBoard(tmp_path, version=0, default_hp_metric=False)
    with pytest.raises(ValueError, match="you tried to log text"):
        logger.log_metrics({"name": "text"}, 1)
    logger.log_metrics({"both": {"a": 1.0, "b": 2.0}}, 1)
    logger.save()
    files = {path.parent.name for path in Path(logger.log_dir).rglob("events*")}
    assert files == {"version_0", "both_a", "both_b"}
