"""metrics.csv contains each step once, even if the run was stopped and resumed."""

import errno
import itertools
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from datamodules.files import read_csv
from lit_training.callbacks.resume import ResumePoint
from lit_training.errors import CheckpointError
from lit_training.runs.folder import RunStart
from lit_training.runs.metrics_csv import MetricsCSV
from tests.support.fits import SHAPES, fit, rows


@pytest.mark.usefixtures("at_every_step")
def test_tensorboard_and_csv_show_each_step_once(
    copy_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = f"{SHAPES} --max_epochs 3 --dashboard true"
    run = copy_run(line, kill_at=4)
    with monkeypatch.context() as patch:
        patch.setattr(ResumePoint, "TIME_SHARE", 1e-9)  # no resume point: the end of the first epoch is repeated
        fit(f"{line} --resume auto", kill_at=9)
    for step in (12, None):  # 12 is the first step of an epoch
        fit(f"{line} --resume auto", kill_at=step)
    board = EventAccumulator(str(run)).Reload()
    assert [event.step for event in board.Scalars("train_loss_step")] == [1, 3, 5, 7, 9, 11, 13, 15, 17]
    assert [event.step for event in board.Scalars("val_loss")] == [5, 11, 17]
    at_starts = [0, 1, 3, 5, 6, 7, 9, 11, 12, 13, 15, 17]  # of epochs, and in logged steps
    assert [event.step for event in board.Scalars("lr-SGD")] == at_starts
    for part in ("train", "val"):
        by_epoch = EventAccumulator(str(run / part)).Reload().Scalars("by_epoch/loss")
        assert [event.step for event in by_epoch] == [1, 2, 3]
    assert board.Images("validation/confusion_matrix")[0].step == 5, "pictures have the step of val_loss"
    table = rows(run)
    assert [int(row["step"]) for row in table if "lr-SGD" in row] == at_starts
    assert [int(row["step"]) for row in table if "train_loss_step" in row] == [1, 3, 5, 7, 9, 11, 13, 15, 17]
    assert [int(row["step"]) for row in table if "val_loss" in row] == [5, 11, 17]


def table(start: RunStart) -> list[str]:
    return (start.folder / "metrics.csv").read_text().splitlines()


def test_columns_are_sorted_and_a_new_metric_gets_a_column(tmp_path: Path) -> None:
    start = RunStart(tmp_path)
    logger = MetricsCSV(start)
    logger.log_metrics({"b": 1.0, "a": torch.tensor(2.0)}, 0)  # type: ignore[dict-item]  # Lightning passes both
    logger.save()
    assert table(start) == ["a,b,step", "2.0,1.0,0"]
    logger.log_metrics({"Z": 3.0}, 1)
    assert logger.rows == 2
    logger.sync()
    assert table(start) == ["Z,a,b,step", ",2.0,1.0,0", "3.0,,,1"]


@pytest.mark.parametrize("kept", [0, 1, 2, 3])
def test_a_resumed_run_keeps_the_rows_before_the_resume_point(kept: int, tmp_path: Path) -> None:
    first = MetricsCSV(RunStart(tmp_path))
    for step in range(3):
        first.log_metrics({"a": float(step)}, step)
    first.finalize("success")
    again = MetricsCSV(RunStart(tmp_path, metrics_rows=kept))
    assert again.rows == kept
    again.log_metrics({"a": 9.0}, 9)
    assert again.rows == kept + 1
    again.save()
    assert [row["step"] for row in read_csv(tmp_path / "metrics.csv")] == [*map(str, range(kept)), "9"]


@pytest.mark.parametrize(
    ("damage", "left"),
    [
        (lambda text: text[:16], 1),  # cut in the second of the five rows
        (lambda text: "", 0),
        (lambda text: text.partition("\n")[2], 0),  # without the column names
        (lambda text: text.replace("1.0,1", "1.0"), 2),  # the rows after the resume point do not replace it
        (lambda text: text.replace("1.0,1", "1.0,1,1"), 2),
        (lambda text: f'"{"x" * 200_000}"', 0),  # csv refuses it
    ],
)
def test_a_damaged_table_is_refused_and_stays(damage: Callable[[str], str], left: int, tmp_path: Path) -> None:
    path, first = tmp_path / "metrics.csv", MetricsCSV(RunStart(tmp_path))
    for step in range(5):
        first.log_metrics({"a": float(step)}, step)
    first.save()
    path.write_text(text := damage(path.read_text()))
    again = MetricsCSV(RunStart(tmp_path, metrics_rows=3))
    again.log_metrics({"a": 9.0}, 3)
    with pytest.raises(CheckpointError, match=f"metrics.csv has {left} of the 3 rows .*: restore it, or delete it"):
        again.save()
    assert path.read_text() == text
    path.unlink()
    again.save()
    assert [row["step"] for row in read_csv(path)] == ["3"]


def test_a_logger_without_metrics_changes_no_file(tmp_path: Path) -> None:
    """This happens if a finished run is resumed."""
    first = MetricsCSV(RunStart(tmp_path))
    first.log_metrics({"a": 1.0}, 0)
    first.save()
    before = (tmp_path / "metrics.csv").stat()
    again = MetricsCSV(RunStart(tmp_path, metrics_rows=1, finished=True))
    again.save()
    again.finalize("failed")
    after = (tmp_path / "metrics.csv").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    Path("file").touch()
    MetricsCSV(RunStart(Path("file"))).finalize("failed")


def test_several_rows_are_written_together(tmp_path: Path) -> None:
    start = RunStart(tmp_path)
    logger = MetricsCSV(start)
    logger.log_metrics({"a": 0.0}, 0)
    assert not (tmp_path / "metrics.csv").exists()
    logger.log_metrics({"a": 1.0}, 1)
    logger.save()
    assert len(table(start)) == 3


def test_name_and_version_are_those_of_the_folder() -> None:
    logger = MetricsCSV(RunStart(Path("runs/lightning_logs/version_7")))
    assert (logger.name, logger.version) == ("lightning_logs", 7)


def test_a_new_metric_of_a_resumed_run_gets_a_column_and_the_kept_rows_stay(tmp_path: Path) -> None:
    first = MetricsCSV(RunStart(tmp_path))
    for step in range(3):
        first.log_metrics({"b": float(step)}, step)
    first.finalize("failed")
    again = MetricsCSV(RunStart(tmp_path, metrics_rows=2))
    again.log_metrics({"a": 7.0}, 2)
    again.save()
    assert table(RunStart(tmp_path)) == ["a,b,step", ",0.0,0", ",1.0,1", "7.0,,2"]


def test_a_new_column_that_cannot_be_written_leaves_the_old_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = MetricsCSV(RunStart(tmp_path))
    logger.log_metrics({"a": 1.0}, 0)
    logger.save()
    before = table(RunStart(tmp_path))

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    logger.log_metrics({"b": 1.0}, 1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left on device"):
            logger.save()
    assert table(RunStart(tmp_path)) == before
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kills_at_any_moment_leave_every_row_that_was_synced(tmp_path: Path) -> None:
    """Each step logs a new metric, so each step rewrites the table."""
    kept, kills = 0, 12
    for kill in range(kills):
        read_end, write_end = os.pipe()
        child = os.fork()
        if not child:
            try:
                logger = MetricsCSV(RunStart(tmp_path, metrics_rows=kept))
                for step in itertools.count(kept):
                    logger.log_metrics({f"metric{step:03}": float(step)}, step)
                    logger.sync()
                    os.write(write_end, b".")
            finally:
                os._exit(1)  # an error must not return to pytest in this process
        os.close(write_end)
        done = len(os.read(read_end, 1))
        time.sleep(0.003 * kill)
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        while part := os.read(read_end, 65536):
            done += len(part)
        os.close(read_end)
        kept += done
        again = MetricsCSV(RunStart(tmp_path, metrics_rows=kept))
        assert again.rows == kept
        rows = read_csv(again.path)
        assert [int(row["step"]) for row in rows] == list(range(kept))
        assert [float(row[f"metric{step:03}"]) for step, row in enumerate(rows)] == list(range(kept))
        assert list(rows[0]) == sorted(rows[0])
    assert kept >= kills
