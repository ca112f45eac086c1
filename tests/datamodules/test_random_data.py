"""Random data: the fixed batch, shuffled rows, a picture with targets 1, 2, ..."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from datamodules import DataError, RandomDataModule
from datamodules.random_data import NOISE
from lit_models import LitMLP


def epoch(data: RandomDataModule, number: int = 0) -> list[Any]:
    data.setup("fit")
    loader: Any = data.train_dataloader()
    loader.sampler.set_epoch(number)
    return list(loader)


def test_default_is_one_batch_500_times() -> None:
    data: Any = RandomDataModule()
    batches = epoch(data)
    x, y = batches[0]
    assert (x.shape, y.shape, x.dtype, y.dtype) == ((64, 1000), (64, 10), torch.float32, torch.float32)
    assert len(batches) == 500
    assert all(torch.equal(x, one) and torch.equal(y, two) for one, two in batches)
    assert torch.equal(epoch(data, 3)[0][0], x)
    [(vx, vy)] = data.val_dataloader()  # validation uses the same batch, as in the tutorial
    assert torch.equal(vx, x)
    assert torch.equal(vy, y)
    assert float(x.mean()) == pytest.approx(0, abs=0.02)
    assert float(x.std()) == pytest.approx(1, abs=0.02)


def test_each_epoch_starts_with_the_first_row() -> None:
    data: Any = RandomDataModule(3, 2, length=10, batch_size=4, steps=3)
    first, second = epoch(data), epoch(data, 1)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, second, strict=True))
    rows = data.sets["train"].inputs
    assert torch.equal(torch.cat([x for x, _ in second]), rows[[*range(10), 0, 1]])
    assert torch.equal(data.sets["train"][12 + 3][0], rows[3])


OTHERS = {
    "in_features": 6,
    "out_features": 3,
    "length": 9,
    "batch_size": 3,
    "steps": 5,
    "target": "linear",
    "seed": 1,
}


@pytest.mark.parametrize(
    "argument", sorted({*inspect.signature(RandomDataModule).parameters} - {"on_device"})
)  # test_device.py
def test_every_argument_has_an_effect(argument: str) -> None:
    base = {"in_features": 5, "out_features": 2, "length": 8, "batch_size": 4, "steps": 0}

    def look(**more: Any) -> str:
        return str(
            [(x.shape, x.sum().item(), y.shape, y.sum().item()) for x, y in epoch(RandomDataModule(**{**base, **more}))]
        )

    assert look() == look()
    assert look() != look(**{argument: OTHERS[argument]})


def test_linear_net_learns_the_linear_map(bare: Callable[..., Trainer]) -> None:
    data: Any = RandomDataModule(5, 2, length=100, batch_size=30, steps=0, target="linear")
    assert [len(x) for x, _ in epoch(data)] == [30, 30, 30, 10]
    model = LitMLP(5, (), 2, lr=1e-2)
    [before] = bare().validate(model, data, verbose=False)
    bare(max_epochs=40).fit(model, data)
    [after] = bare().validate(model, data, verbose=False)
    # The remaining loss is the noise: 100 rows of 2 targets, each with variance NOISE**2.
    assert after["val_loss"] == pytest.approx(200 * NOISE**2, rel=0.5)
    assert after["val_loss"] < before["val_loss"] / 50
    assert not torch.equal(data.sets["val"].inputs, data.sets["train"].inputs)


def test_picture_with_targets_1_to_10() -> None:
    data: Any = RandomDataModule([1, 32, 32], 10, length=1, batch_size=1, steps=2, target="count")
    [(x, y), _] = epoch(data)
    assert x.shape == (1, 1, 32, 32)
    assert y.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]]
    assert (data.sample_shape, data.in_channels, data.in_features) == ((1, 32, 32), 1, 1024)
    assert not hasattr(RandomDataModule(), "in_channels")


def test_target_of_padding_is_nan() -> None:
    data: Any = RandomDataModule(3, 2, length=4)
    data.setup("fit")
    _, y = data.sets["val"].__getitems__([1, -1])
    assert y.isnan().tolist() == [[False, False], [True, True]]
    assert not data.sets["val"].targets.isnan().any()


@pytest.mark.parametrize("arguments", [{"in_features": 0}, {"length": 0}, {"steps": -1}, {"target": "sine"}])
def test_invalid_arguments_are_refused(arguments: dict) -> None:
    with pytest.raises(DataError, match=r"--data\."):
        RandomDataModule(**arguments)
