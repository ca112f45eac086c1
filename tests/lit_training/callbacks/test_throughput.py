"""The speed counts training samples, without the time of validation."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from datamodules import RandomDataModule
from lit_models import LitMLP
from lit_training.callbacks import throughput
from lit_training.callbacks.throughput import Throughput, count_samples


@pytest.mark.parametrize(
    ("batch", "count"),
    [
        ((torch.zeros(5, 3), torch.zeros(7)), 5),
        ([torch.zeros(5, 3)], 5),
        (torch.zeros(4, 2), 4),
        ({"x": torch.zeros(6, 2)}, 6),
        ((), 0),
        (None, 0),
        ("no tensor", 0),
    ],
    ids=["pair", "list", "tensor", "dictionary", "empty", "nothing", "text"],
)
def test_samples_in_a_batch(batch: Any, count: int) -> None:
    assert count_samples(batch) == count


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


class Pass(Callback):
    """Moves the clock by 2 s in each training batch and by 50 s in each validation batch."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_batch_start(self, *_: Any) -> None:
        self.clock.now += 2

    def on_validation_batch_start(self, *_: Any) -> None:
        self.clock.now += 50


class Read(Callback):
    """Keeps the logged speed of each epoch."""

    def __init__(self) -> None:
        self.speeds: list[float] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch:
            self.speeds.append(float(trainer.callback_metrics["samples_per_second"]))


@pytest.mark.parametrize("sanity_steps", [0, 1])
def test_the_time_of_validation_is_left_out(
    sanity_steps: int, bare: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, read = Clock(), Read()
    monkeypatch.setattr(throughput, "time", clock)
    trainer = bare(max_epochs=3, callbacks=[Throughput(), Pass(clock), read], num_sanity_val_steps=sanity_steps)
    trainer.fit(LitMLP(8, (4,), 2), RandomDataModule(in_features=8, out_features=2, length=8, batch_size=4, steps=3))
    assert read.speeds == [2.0, 2.0]  # 3 batches of 4 in 6 s


def test_the_samples_of_all_processes_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, logged, speed = Clock(), {}, Throughput()
    monkeypatch.setattr(throughput, "time", clock)
    trainer: Any = SimpleNamespace(world_size=3)
    model: Any = SimpleNamespace(log=lambda name, value, **_: logged.update({name: value}))
    speed.on_train_epoch_start(trainer, model)
    speed.on_train_batch_end(trainer, model, None, torch.zeros(8, 2), 0)
    clock.now += 4
    speed.on_train_epoch_end(trainer, model)
    assert logged == {"samples_per_second": 3 * 8 / 4}
