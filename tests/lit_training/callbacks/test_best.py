"""best.ckpt contains the best epoch and is written rarely. Training stops early without a better epoch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from torch.utils.data import DataLoader, TensorDataset

from datamodules import RandomDataModule
from lit_models import LitMLP
from lit_training.callbacks.best import BestCheckpoint, StopEarly
from lit_training.errors import UsageError
from lit_training.runs import checkpoints
from lit_training.runs.checkpoints import FitCheckpointIO
from tests.support import fits


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the written files, in order."""
    names: list[str] = []
    write = checkpoints.atomic_write

    def note_name(path: Path, *arguments: Any) -> Any:
        names.append(path.name)
        return write(path, *arguments)

    monkeypatch.setattr(checkpoints, "atomic_write", note_name)
    return names


def fit(folder: Path, epochs: int, *callbacks: Callback) -> tuple[BestCheckpoint, LitMLP]:
    torch.manual_seed(0)
    best_checkpoint = BestCheckpoint("val_loss", "min")
    trainer = Trainer(
        max_epochs=epochs,
        logger=False,
        default_root_dir=folder,
        plugins=[FitCheckpointIO()],
        callbacks=[best_checkpoint, *callbacks],
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    model = LitMLP(20, (5,), 2)
    trainer.fit(model, RandomDataModule(20, 2, length=8, batch_size=8, steps=3))
    return best_checkpoint, model


def test_many_improvements_are_written_twice_and_the_last_one_is_on_disk(tmp_path: Path, written: list[str]) -> None:
    best_checkpoint, model = fit(tmp_path, 8)
    assert written == ["best.ckpt", "best.ckpt"]  # the first at once, the last at the end
    saved = torch.load(best_checkpoint.best_model_path, weights_only=True)
    assert saved["epoch"] == 7
    for name, tensor in model.state_dict().items():
        assert torch.equal(saved["state_dict"][name], tensor)


def test_a_waiting_checkpoint_does_not_change_with_the_model(tmp_path: Path) -> None:
    class Spoil(Callback):
        """Makes training diverge after the best epoch, which must not change the saved weights."""

        def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.current_epoch == 1:
                trainer.optimizers[0].param_groups[0]["lr"] = 1.0  # epoch 1 stays the best

    best_checkpoint, model = fit(tmp_path, 3, Spoil())
    saved = torch.load(best_checkpoint.best_model_path, weights_only=True)
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


def test_the_best_epoch_is_written_before_another_checkpoint(
    tmp_path: Path, written: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "SECONDS_BETWEEN_WRITES", 1e9)

    class Save(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.current_epoch == 3:
                trainer.save_checkpoint(tmp_path / "other.ckpt")
                assert torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)["epoch"] == 2

    fit(tmp_path, 4, Save())
    assert written == ["best.ckpt", "best.ckpt", "other.ckpt", "best.ckpt"]


class Losses(LightningModule):
    """Logs these validation losses, one per epoch, and learns nothing."""

    def __init__(self, losses: list[float], name: str = "val_loss") -> None:
        super().__init__()
        self.net, self.losses, self.metric = torch.nn.Linear(1, 1), losses, name

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.net(batch[0]).sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log(self.metric, torch.tensor(self.losses[self.current_epoch], dtype=torch.float64))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.0)


def epochs_of(
    trainer: Callable[..., Trainer], losses: list[float], patience: int, mode: str = "min", **arguments: Any
) -> int:
    """Return how many epochs are trained with these validation losses."""
    stop = StopEarly("val_loss", mode, patience)
    ends = trainer(max_epochs=len(losses), callbacks=[stop], **arguments)
    data = DataLoader(TensorDataset(torch.ones(2, 1)))
    ends.fit(Losses(losses), data, data)
    return ends.current_epoch


@pytest.mark.parametrize(("losses", "epoch"), [([float("nan")], 0), ([float("nan"), float("nan"), 2.0, 3.0], 2)])
def test_the_first_epoch_is_saved_although_its_loss_is_nan(
    losses: list[float], epoch: int, bare: Callable[..., Trainer]
) -> None:
    best, data = BestCheckpoint("val_loss", "min", folder=Path("kept")), DataLoader(TensorDataset(torch.ones(2, 1)))
    bare(max_epochs=len(losses), callbacks=[best], enable_checkpointing=True).fit(Losses(losses), data, data)
    assert torch.load("kept/best.ckpt", weights_only=True)["epoch"] == epoch


@pytest.mark.parametrize(
    ("losses", "patience", "mode", "epochs"),
    [
        ([3.0, 2.0, 1.0, 0.0], 1, "min", 4),
        ([3.0, 2.0, 2.0, 1.0], 1, "min", 3),  # a tie is not better
        ([3.0, 2.0, 2.0, 1.0, 1.0, 1.0], 2, "min", 6),
        ([1.0, 2.0, 1.5, 1.7, 3.0], 2, "max", 4),
        ([3.0, float("nan"), 1.0, 0.0], 9, "min", 2),  # NaN stops the run at once
        ([3.0, float("inf"), 1.0, 0.0], 9, "min", 2),
        ([float("-inf"), 1.0], 9, "min", 1),
    ],
)
def test_training_stops_after_patience_checks_without_a_better_epoch(
    losses: list[float], patience: int, mode: str, epochs: int, bare: Callable[..., Trainer]
) -> None:
    assert epochs_of(bare, losses, patience, mode) == epochs


def test_early_stopping_checks_after_each_validation(bare: Callable[..., Trainer]) -> None:
    losses = [3.0, 2.0, 9.0, 2.0, 9.0, 2.0, 9.0, 2.0]
    assert epochs_of(bare, losses, 2, check_val_every_n_epoch=2) == 4
    assert epochs_of(bare, losses, 3, check_val_every_n_epoch=2) == 6
    assert epochs_of(bare, [2.0, 2.0, 2.0, 2.0], 2, val_check_interval=0.5) == 3  # the best is after half an epoch
    assert epochs_of(bare, [2.0, 2.0, 2.0], 1, fast_dev_run=True) == 1


def test_a_monitored_metric_that_is_not_logged_is_an_error(bare: Callable[..., Trainer]) -> None:
    data = DataLoader(TensorDataset(torch.ones(2, 1)))
    trainer = bare(max_epochs=2, callbacks=[StopEarly("val_acc", "max", 1)])
    with pytest.raises(UsageError, match="the model logs no val_acc, only val_loss: choose one with --monitor"):
        trainer.fit(Losses([1.0, 1.0]), data, data)


@pytest.mark.parametrize(("monitor", "mode"), [("val_loss", "min"), ("val_acc", "max")])
def test_stop_early_loads_the_state_of_lightnings_early_stopping(monitor: str, mode: str) -> None:
    early_stopping, stop_early = EarlyStopping(monitor, mode=mode), StopEarly(monitor, mode, 3)
    assert stop_early.state_key == early_stopping.state_key
    stop_early.load_state_dict(early_stopping.state_dict())  # before the first check the best score is infinite
    assert (stop_early.waited, stop_early.best.value) == (0, None)
    early_stopping.load_state_dict({**early_stopping.state_dict(), "wait_count": 2, "best_score": torch.tensor(0.5)})
    stop_early.load_state_dict(early_stopping.state_dict())
    assert (stop_early.waited, stop_early.best.value) == (2, 0.5)
    again = StopEarly(monitor, mode, 3)
    again.load_state_dict(stop_early.state_dict())
    assert (again.waited, again.best.value) == (2, 0.5)


CONSTANT = "--model LitMLP --model.lr 0 --data.in_features 6 --data.steps 5 --max_epochs 9"


@pytest.mark.parametrize(
    ("flags", "steps"),
    [
        ("", 15),  # the first epoch is the best
        ("--check_val_every_n_epoch 3", 30),  # epoch 3 is the best; epoch 6 is the first validation two epochs later
        ("--val_check_interval 0.2", 11),  # the first validation, after step 1, is the best
        ("--val_check_interval 2", 12),
        ("--val_check_interval 7 --check_val_every_n_epoch null", 21),  # after steps 7, 14 and 21
        ("--val_check_interval 9 --check_val_every_n_epoch null", 27),  # steps 9 and 18 are 1.8 epochs apart
        ("--limit_val_batches 0 --check_val_every_n_epoch 3", 15),  # the training loss is measured in each epoch
    ],
)
def test_the_patience_counts_epochs_and_survives_a_kill(flags: str, steps: int, at_every_step: None) -> None:
    command = f"{CONSTANT} --early_stopping 2 --dashboard false {flags}"
    assert fits.fit(f"{command} --default_root_dir whole").trainer.global_step == steps
    fits.fit(command, kill_at=steps - 2)
    assert fits.fit("--resume latest").trainer.global_step == steps


def test_a_state_that_counted_validations_goes_on(bare: Callable[..., Trainer]) -> None:
    """Versions before 2027 saved no ``best_time``. With one validation per epoch they counted the same."""
    stop = StopEarly("val_loss", "min", 3)
    stop.load_state_dict({"wait_count": 2, "best_score": 1.0, "best": 1.0, "val_loss": 1.0})
    trainer = bare(max_epochs=9, callbacks=[stop])
    data = DataLoader(TensorDataset(torch.ones(2, 1)))
    trainer.fit(Losses([2.0] * 9), data, data)
    assert trainer.current_epoch == 1
