"""Compute the features of a frozen backbone once per picture, not once per epoch."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.loading.loader import make_loader
from datamodules.loading.module import SplitDataModule
from datamodules.loading.order import PADDING, gather_in_input_order
from lit_models import LitBase
from lit_training.runs.devices import evaluation_mode
from lit_training.runs.foreign import data_of
from lit_training.runs.lightning_internals import forget_loaders
from lit_training.text import progress_bar

BATCH = 32


class Features(Dataset):
    """(N, F) float features of the dataset ``pictures`` and its (N,) int64 labels, in memory. Padding has label -1."""

    def __init__(self, features: Tensor, pictures: Any) -> None:
        self.features, self.pictures, self.labels = features, pictures, pictures.labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: int) -> tuple[Tensor, Tensor]:
        return self.features[key % len(self)], self.labels[key % len(self)]

    def __getitems__(self, keys: list[int]) -> tuple[Tensor, Tensor]:
        wanted = torch.tensor(keys)
        rows = wanted % len(self)
        return self.features.index_select(0, rows), self.labels[rows].masked_fill(wanted == PADDING, PADDING)


class FeatureCache(Callback):
    """Replace the photos of a run with a frozen backbone and no augmentation by their features, before the first step.

    Metrics and checkpoints equal those of the uncached run to 1e-5; checkpoints hold the whole network. Nothing happens
    with augmentation, or if the head is not the network's last layer.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data: Any = data_of(trainer)
        if not isinstance(pl_module, LitBase) or not isinstance(data, SplitDataModule) or data.photos is None:
            return
        if not pl_module.fixed_features or data.augment:
            return
        pl_module.on_fit_start()  # callbacks run before the module, which loads its weights here
        with evaluation_mode(pl_module):
            for split in ("train", "val"):
                dataset: Any = data.dataset(split)
                if not isinstance(dataset, Features) and len(dataset):
                    features = _compute(trainer, pl_module, dataset, data, split)
                    if features is None:
                        break
                    data.sets[split] = features
        forget_loaders(trainer)  # a schedule that needs the run's length has made some already


def _compute(trainer: Trainer, model: LitBase, dataset: Any, data: SplitDataModule, split: str) -> Features | None:
    """Return the features in the order of the dataset, or None. Each rank computes a share; all ranks get all."""
    loader: Any = make_loader(
        dataset,
        trainer,
        batch_size=BATCH,
        seed=0,
        train=False,
        num_workers=data.num_workers(dataset),
        keep_workers=False,
    )
    shares: list[Tensor] = []
    show = trainer.is_global_zero and trainer.progress_bar_callback is not None
    with progress_bar(f"features of {split}", show) as progress:
        for x, _ in loader:
            with trainer.precision_plugin.forward_context():
                part = model.features(trainer.precision_plugin.convert_input(x.to(model.device)))
            if part is None:
                return None
            shares.append(part.cpu())
            progress(len(shares), len(loader))
    features = gather_in_input_order(trainer, torch.cat(shares), loader).cpu()
    return Features(features.clone(), dataset)
