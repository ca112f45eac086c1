"""Cached features give the same metrics and the same checkpoint as a run without the cache."""

import errno
import os
import re
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
from datamodules.machine import cache_folder
from lit_models import LitTransfer
from lit_training.callbacks import features as features_module
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


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_features_that_do_not_fit_in_memory_are_in_a_file(
    bare: Callable[..., Trainer],
    photo_folder: Path,
    precision: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    seen = []
    for memory in (1 << 40, 4):
        monkeypatch.setattr(features_module, "MAX_BYTES_IN_MEMORY", memory)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / str(memory)))  # else the second run reads the kept file
        module = fit(partial(bare, precision=precision), photo_folder, FeatureCache(), backbone="shufflenet_v2_x0_5")[1]
        seen.append(module.sets["train"].features)
    in_memory, in_file = seen
    assert in_memory.untyped_storage().filename is None
    assert in_file.untyped_storage().filename is not None
    assert in_file.dtype == in_memory.dtype
    assert torch.equal(in_file, in_memory)
    assert not list(tmp_path.glob("4/**/features*"))  # the file has no name, so a killed run leaves nothing


def test_a_full_disk_means_that_features_are_computed_in_each_epoch(
    bare: Callable[..., Trainer],
    photo_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(features_module, "MAX_BYTES_IN_MEMORY", 4)
    monkeypatch.setattr(os, "posix_fallocate", fail)
    cached, module, _ = fit(bare, photo_folder, FeatureCache(), backbone="shufflenet_v2_x0_5")
    plain, _, _ = fit(bare, photo_folder, backbone="shufflenet_v2_x0_5")
    [note] = [line for line in capsys.readouterr().err.splitlines() if "features" in line]
    assert re.search(r"computed in each epoch: their file of [\d.e-]+ GB .*No space left on device\)$", note)
    assert not isinstance(module.sets["train"], Features)
    assert torch.equal(cached.state_dict()["net.fc.weight"], plain.state_dict()["net.fc.weight"])
    assert not list(cache_folder().glob("features.*"))


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
