"""A frozen backbone computes the features of a picture once, not once an epoch."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.image_folder import ImageFolderDataModule
from datamodules.loading import PADDING, make_loader
from lit_models import LitTransfer
from lit_training.prediction import in_input_order

BATCH = 32


class Features(Dataset):
    """(N, F) float features of the ``pictures`` and their (N,) int64 labels in memory; padding has label -1."""

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
    """Replaces the photos of a frozen, unaugmented run by the backbone's features before the first step.

    The numbers are those of the uncached run to 1e-5, and so is the checkpoint, which holds the whole network. Nothing
    happens where a picture looks different in each epoch, or where the head is not the network's last layer.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = getattr(trainer, "datamodule", None)
        if not (isinstance(pl_module, LitTransfer) and isinstance(data, ImageFolderDataModule)):
            return
        if not pl_module.hparams["freeze"] or data.augment:
            return
        pl_module.on_fit_start()  # callbacks come before the module, whose weights make the features
        mode = pl_module.training
        pl_module.eval()
        for split in ("train", "val"):
            dataset = data.dataset(split)
            if not isinstance(dataset, Features) and len(dataset):  # type: ignore[arg-type]
                features = _compute(trainer, pl_module, dataset, data, split)
                if features is None:
                    break
                data.sets[split] = features
        trainer.fit_loop._combined_loader = None  # a schedule that asks for the run's length has made loaders already
        pl_module.train(mode)


def _compute(
    trainer: Trainer, model: LitTransfer, dataset: Any, data: ImageFolderDataModule, split: str
) -> Features | None:
    """Each rank takes its share of the pictures; afterwards all ranks have all features, in the data's order."""
    loader = make_loader(
        dataset, trainer, batch_size=BATCH, seed=0, train=False, num_workers=data.num_workers(dataset), persistent=False
    )
    shares: list[Tensor] = []
    bar = Console(stderr=True)
    show = trainer.is_global_zero and bar.is_terminal and trainer.progress_bar_callback is not None
    for x, _ in track(loader, f"features of {split}", console=bar, disable=not show, transient=True):
        with trainer.precision_plugin.forward_context():
            part = model.features(trainer.precision_plugin.convert_input(x.to(model.device)))
        if part is None:
            return None
        shares.append(part.cpu())
    features = in_input_order(trainer, torch.cat(shares), loader).cpu()
    return Features(features.clone(), dataset)
