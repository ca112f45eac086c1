"""A run validates if it has validation data, has a metric that decides, and may be resumed."""

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import LightningDataModule, LightningModule

from datamodules import ImageFolderDataModule, RandomDataModule, ShapesDataModule
from lit_models import LitCNN, LitMLP
from lit_training.runs.processes import Watch
from lit_training.runs.run import Run
from tests.support.fits import parse

CLASSIFIER, REGRESSION = LitCNN(), LitMLP(3, (), 2)
SHAPES, ROWS = ShapesDataModule(4, 4), RandomDataModule(3, 2)


def run_of(model: Any = CLASSIFIER, data: Any = SHAPES, limit: float | None = None, **settings: Any) -> Run:
    return Run({"trainer": {"limit_val_batches": limit}}, model, data, Watch(5.0), **settings)


@pytest.mark.parametrize(
    ("data", "limit", "validates"),
    [
        (SHAPES, None, True),
        (SHAPES, 3, True),
        (SHAPES, 0, False),
        (SHAPES, 0.0, False),
        (ImageFolderDataModule("photos", val_size=0.2), None, True),
        (ImageFolderDataModule("photos", val_size=0), None, False),
        (LightningDataModule(), None, True),  # may have validation data
    ],
)
def test_a_run_validates_if_it_has_validation_data(data: Any, limit: float | None, validates: bool) -> None:
    assert run_of(data=data, limit=limit).validates == validates


@pytest.mark.parametrize(
    ("model", "data", "limit", "monitor"),
    [
        (CLASSIFIER, SHAPES, None, ("val_acc", "max")),
        (REGRESSION, ROWS, None, ("val_loss", "min")),
        (CLASSIFIER, SHAPES, 0, ("train_loss", "min")),
        (REGRESSION, ROWS, 0, ("train_loss", "min")),
        (LightningModule(), SHAPES, None, (None, "min")),  # it may log any metric
        (LightningModule(), SHAPES, 0, ("train_loss", "min")),
    ],
)
def test_the_metric_that_decides_which_epoch_is_best(
    model: Any, data: Any, limit: float | None, monitor: tuple[str | None, str]
) -> None:
    assert run_of(model, data, limit).monitor == monitor


def test_a_command_line_becomes_a_run() -> None:
    cli = parse("--max_epochs 1 --quiet --timeout 2.5 --accelerator cpu")
    run = cli.run
    assert (run.quiet, run.resume) == (True, "never")
    assert run.trainer is cli.trainer
    assert run.watch.trainer is cli.trainer
    assert run.watch.timeout == 2.5
    assert run.start is not None
    assert run.start.folder == Path("lightning_logs/version_0")
