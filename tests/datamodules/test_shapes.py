"""The generated pictures of shapes."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from datamodules import DataError, ShapesDataModule
from datamodules.shapes import CLASS_NAMES, draw_pictures
from lit_models import LitCNN


def ready(**arguments: Any) -> Any:
    data = ShapesDataModule(**{"train_size": 40, "val_size": 20, **arguments})
    data.setup("fit")
    data.setup("test")
    return data


def everything(data: ShapesDataModule) -> str:
    """Return a text that identifies two epochs of training batches and all evaluation batches."""
    loader: Any = data.train_dataloader()
    found = []
    for epoch in (0, 1):
        loader.sampler.set_epoch(epoch)
        found += [(x.shape, x.double().sum().item(), y.tolist()) for x, y in loader]
    for other in (data.val_dataloader(), data.test_dataloader()):
        found += [(x.shape, x.double().sum().item(), y.tolist()) for x, y in other]
    return str(found)


OTHERS = {"train_size": 50, "val_size": 30, "batch_size": 8, "channels": 1, "augment": True, "seed": 1}


@pytest.mark.parametrize(
    "argument", sorted({*inspect.signature(ShapesDataModule).parameters} - {"on_device"})
)  # test_device.py
def test_every_argument_has_an_effect(argument: str) -> None:
    assert everything(ready()) == everything(ready())
    assert everything(ready()) != everything(ready(**{argument: OTHERS[argument]}))


@pytest.mark.parametrize("channels", [1, 3])
def test_batches_have_the_format_of_cifar10(channels: int) -> None:
    data = ready(channels=channels)
    x, y = next(iter(data.train_dataloader()))
    assert (x.shape, x.dtype, y.dtype) == ((4, channels, 32, 32), torch.float32, torch.int64)
    assert -1 <= x.min() < -0.5
    assert 0.5 < x.max() <= 1
    assert data.sets["train"].images.dtype == torch.uint8
    assert (data.sample_shape, data.in_channels, data.num_classes) == ((channels, 32, 32), channels, 10)


def test_pictures_are_fixed_by_the_seed_balanced_and_different_in_each_split() -> None:
    images, labels = draw_pictures(1200, 3, 3)
    again, _ = draw_pictures(1200, 3, 3)
    assert torch.equal(images, again)
    assert labels.bincount().tolist() == [120] * len(CLASS_NAMES)
    assert len(set(labels[:20].tolist())) > 3
    data = ready(train_size=100, val_size=100)
    pictures = {
        split: {image.numpy().tobytes() for image in data.sets[split].images} for split in ("train", "val", "test")
    }
    assert len(set.union(*pictures.values())) == 300


def test_mean_color_does_not_reveal_the_class() -> None:
    images, labels = draw_pictures(4000, 0, 3)
    means = torch.stack([images[labels == k].float().mean() for k in range(10)])
    assert (means.max() - means.min()) / 255 < 0.05


def test_overfit_batches_repeats_the_same_batches(bare: Callable[..., Trainer]) -> None:
    seen: list[list[float]] = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            seen.append([*batch[1].tolist(), round(float(batch[0].sum()), 1)])

    data = ShapesDataModule(train_size=40, val_size=20)
    bare(max_epochs=3, overfit_batches=2, callbacks=[Watch()]).fit(LitCNN(), data)
    assert len(seen) == 6
    assert seen[:2] == seen[2:4] == seen[4:]


@pytest.mark.parametrize("arguments", [{"train_size": 0}, {"val_size": 0}, {"batch_size": 0}, {"channels": 2}])
def test_invalid_arguments_are_refused(arguments: dict) -> None:
    with pytest.raises(DataError, match=r"--data\."):
        ShapesDataModule(**arguments)
