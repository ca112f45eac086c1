"""Cached features give the same metrics and the same checkpoint as a run without the cache."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim.lr_scheduler import OneCycleLR

from datamodules import ImageFolderDataModule, Preprocessing
from datamodules.loading.memory import Pictures
from lit_models import LitTransfer
from lit_training.callbacks.features import FeatureCache, Features
from lit_training.cli.optimizers import build_schedule


def fit(
    bare: Callable[..., Trainer], folder: Path, *callbacks: Callback, backbone: str = "resnet18", **data: Any
) -> tuple[LitTransfer, Any, Trainer]:
    torch.manual_seed(0)
    model = LitTransfer(backbone, num_classes=2, weights=None)
    module = ImageFolderDataModule(str(folder), image_size=96, num_workers=0, **data)
    trainer = bare(max_epochs=2, callbacks=list(callbacks))
    trainer.fit(model, module)
    return model, module, trainer


def test_cached_and_uncached_runs_agree(bare: Callable[..., Trainer], photo_folder: Path) -> None:
    cached, module, trainer = fit(bare, photo_folder, FeatureCache())
    plain, plain_module, plain_trainer = fit(bare, photo_folder)
    assert isinstance(module.sets["train"], Features)
    assert not isinstance(plain_module.sets["train"], Features)
    assert plain.state_dict().keys() == cached.state_dict().keys()
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(cached.state_dict()[name], tensor, rtol=0, atol=1e-5)
    assert float(trainer.callback_metrics["val_loss"]) == pytest.approx(
        float(plain_trainer.callback_metrics["val_loss"]), abs=1e-5
    )
    pictures, _ = plain_module.sets["val"].__getitems__([0, 3])
    features, _ = module.sets["val"].__getitems__([0, 3])
    with torch.no_grad():
        torch.testing.assert_close(cached(features), cached.eval()(pictures), rtol=0, atol=1e-5)


def test_features_have_the_precision_of_the_run(bare: Callable[..., Trainer], photo_folder: Path) -> None:
    weights = []
    for callbacks in ([FeatureCache()], []):
        torch.manual_seed(0)
        model = LitTransfer("shufflenet_v2_x0_5", num_classes=2, weights=None)
        module = ImageFolderDataModule(str(photo_folder), image_size=72, num_workers=0)
        bare(max_epochs=1, callbacks=list(callbacks), precision="64-true").fit(model, module)
        weights.append(model.head.weight)
        assert isinstance(module.sets["train"], Features) == bool(callbacks)
    assert weights[0].dtype == torch.float64
    torch.testing.assert_close(*weights, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("backbone", "data"), [("resnet18", {"augment": True}), ("squeezenet1_1", {})])
def test_nothing_is_cached_if_it_would_change_the_run(
    bare: Callable[..., Trainer], photo_folder: Path, backbone: str, data: dict[str, Any]
) -> None:
    _, module, _ = fit(bare, photo_folder, FeatureCache(), backbone=backbone, **data)
    assert not isinstance(module.sets["train"], Features)


def test_padding_gets_the_label_minus_one() -> None:
    pictures = Pictures(torch.zeros(3, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 1, 1]), Preprocessing())
    rows = Features(torch.arange(6.0).view(3, 2), pictures)
    features, labels = rows.__getitems__([4, -1])
    assert features[0].tolist() == [2.0, 3.0]
    assert labels.tolist() == [1, -1]


def test_loaders_built_early_for_a_schedule_are_replaced(bare: Callable[..., Trainer], photo_folder: Path) -> None:
    class Loaders(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            self.dataset = trainer.train_dataloader.dataset  # type: ignore[union-attr]

    model = LitTransfer(num_classes=2, weights=None)
    run: Any = SimpleNamespace(model=model)
    model.chosen_schedule = partial(build_schedule, schedule=OneCycleLR, arguments={}, run=run)
    seen = Loaders()
    bare(max_epochs=1, callbacks=[FeatureCache(), seen]).fit(
        model, ImageFolderDataModule(str(photo_folder), image_size=96, num_workers=0)
    )
    assert isinstance(seen.dataset, Features)
