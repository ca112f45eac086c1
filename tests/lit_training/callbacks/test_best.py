"""The best epoch, kept in memory and written seldom."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from datamodules import RandomDataModule
from lit_models import LitMLP
from lit_training.callbacks import best
from lit_training.callbacks.best import BestCheckpoint
from lit_training.runs.checkpoints import AtomicCheckpointIO


class Writes(AtomicCheckpointIO):
    def __init__(self) -> None:
        self.paths: list[str] = []

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        self.paths.append(Path(path).name)
        super().save_checkpoint(checkpoint, path, storage_options)


def fit(folder: Path, epochs: int, *callbacks: Callback) -> tuple[Writes, BestCheckpoint, LitMLP]:
    torch.manual_seed(0)
    writes, kept = Writes(), BestCheckpoint("val_loss", "min")
    trainer = Trainer(
        max_epochs=epochs,
        logger=False,
        default_root_dir=folder,
        plugins=[writes],
        callbacks=[kept, *callbacks],
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    model = LitMLP(20, (5,), 2)
    trainer.fit(model, RandomDataModule(20, 2, length=8, batch_size=8, steps=3))
    return writes, kept, model


def test_many_improvements_are_few_writes_and_the_last_one_is_on_disk(tmp_path: Path) -> None:
    writes, kept, model = fit(tmp_path, 8)
    assert writes.paths == ["best.ckpt", "best.ckpt"]  # the first at once, the last at the end
    saved = torch.load(kept.best_model_path, weights_only=True)
    assert saved["epoch"] == 7
    for name, tensor in model.state_dict().items():
        assert torch.equal(saved["state_dict"][name], tensor)


def test_what_is_pending_is_a_copy(tmp_path: Path) -> None:
    class Spoil(Callback):
        """Training goes on after the best epoch: its weights must not move with the network's."""

        def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.current_epoch == 1:
                trainer.optimizers[0].param_groups[0]["lr"] = 1.0  # diverges: epoch 1 stays the best

    _, kept, model = fit(tmp_path, 3, Spoil())
    saved = torch.load(kept.best_model_path, weights_only=True)
    assert saved["epoch"] == 1
    assert not torch.equal(saved["state_dict"]["net.0.weight"], model.state_dict()["net.0.weight"])
    assert saved["state_dict"]["net.0.weight"].isfinite().all()


def test_an_exception_does_not_lose_the_best_epoch(tmp_path: Path) -> None:
    class Stop(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.current_epoch == 3:
                raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fit(tmp_path, 5, Stop())
    assert torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)["epoch"] == 2


def test_another_checkpoint_finds_the_best_one_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(best, "SECONDS_BETWEEN_WRITES", 1e9)

    class Save(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.current_epoch == 3:
                trainer.save_checkpoint(tmp_path / "other.ckpt")
                assert torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)["epoch"] == 2

    writes, _, _ = fit(tmp_path, 4, Save())
    assert writes.paths == ["best.ckpt", "best.ckpt", "other.ckpt", "best.ckpt"]
