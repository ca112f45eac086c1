"""What the folds print about the time that is left."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lit_training.cli import folds


def test_the_time_that_is_left_is_that_of_the_other_epochs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs, now = folds.FoldOutputs("val_loss", "min", left=10), iter([100.0, 106.0])
    monkeypatch.setattr(folds, "time", SimpleNamespace(monotonic=lambda: next(now)))
    trainer: Any = SimpleNamespace(callback_metrics={"val_loss": torch.tensor(1.0)}, current_epoch=0)
    model: Any = None
    outputs.on_train_epoch_start(trainer, model)
    outputs.on_validation_batch_end(trainer, model, {"output": torch.zeros(2, 3)})
    outputs.on_validation_end(trainer, model)
    assert "the first one took 6.0 s: about 0:00:54 left for all folds" in capsys.readouterr().out
