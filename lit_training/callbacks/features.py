"""Compute the features of a frozen backbone once per picture, not again in each epoch."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.loading.loader import make_loader
from datamodules.loading.module import SplitDataModule
from datamodules.loading.order import PADDING, gather_in_input_order
from lit_models import LitBase
from lit_training.callbacks.feature_files import feature_files, read_features, write_features
from lit_training.runs.devices import evaluation_mode
from lit_training.runs.foreign import data_of
from lit_training.runs.lightning_internals import forget_loaders
from lit_training.runs.threads import FEATURE_BATCH_SIZE, use_threads
from lit_training.text import progress_bar


class Features(Dataset):
    """A dataset with the features (N, F) and labels of the N samples in the dataset ``pictures``, in memory.

    A key is an index that may be larger than N-1: it selects the sample ``key % N``. The key PADDING has the label -1.
    """

    def __init__(self, features: Tensor, pictures: Any) -> None:
        self.features, self.pictures, self.labels = features, pictures, pictures.labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, keys: list[int]) -> tuple[Tensor, Tensor]:
        key_tensor = torch.tensor(keys)
        rows = key_tensor % len(self)
        return self.features.index_select(0, rows), self.labels[rows].masked_fill(key_tensor == PADDING, PADDING)


class FeatureCache(Callback):
    """Replace the datasets of photos by datasets of their features, if the backbone is frozen.

    Metrics and weights change by less than 1e-5. Checkpoints contain the complete network. The callback does nothing
    if the photos are augmented, or if the head is not the last layer of the network. The features are also kept in the
    user's cache folder for later starts, see ``feature_files.py``.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data: Any = data_of(trainer)
        if not isinstance(pl_module, LitBase) or not isinstance(data, SplitDataModule) or data.photos is None:
            return
        if not pl_module.fixed_features or data.augment or isinstance(data.dataset("train"), Features):
            return
        pl_module.on_fit_start()  # it loads the weights; Lightning would call it too late, after the callbacks
        threads: Any = getattr(trainer, "threads", None) or [torch.get_num_threads()]
        used_folder: Path | None = None
        with evaluation_mode(pl_module), use_threads(threads[-1]):
            files = feature_files(trainer, pl_module, data) if trainer.is_global_zero else {}
            for split in ("train", "val"):
                pictures, file = data.dataset(split), files.get(split)
                if not len(pictures):
                    continue
                features = trainer.strategy.broadcast(file and read_features(file))
                if features is not None:
                    used_folder = file and file.parent
                else:
                    features = _compute_features(trainer, pl_module, data, split)
                    if features is None:
                        return
                    if file and not write_features(file, features):
                        files = {}  # print the note only once
                data.sets[split] = Features(features, pictures)
        if used_folder and trainer.progress_bar_callback is not None:
            print(f"features of an earlier run are used again, from {used_folder}", flush=True)
        forget_loaders(trainer)  # schedules that need the number of steps create loaders with the old data


def _compute_features(trainer: Trainer, model: LitBase, data: SplitDataModule, split: str) -> Tensor | None:
    """Return the features (N, F) of all pictures on each rank, or None if the model cannot compute features."""
    dataset: Any = data.dataset(split)
    options: Any = {"seed": 0, "train": False, "num_workers": data.num_workers(dataset), "keep_workers": False}
    loader: Any = make_loader(dataset, trainer, batch_size=FEATURE_BATCH_SIZE, **options)
    batches: list[Tensor] = []
    show_bar = trainer.is_global_zero and trainer.progress_bar_callback is not None
    with progress_bar(f"features of {split}", show_bar) as progress:
        for x, _ in loader:
            with trainer.precision_plugin.forward_context():
                batch_features = model.features(trainer.precision_plugin.convert_input(x.to(model.device)))
            if batch_features is None:
                return None
            batches.append(batch_features.cpu())
            progress(min(len(batches) * trainer.world_size * FEATURE_BATCH_SIZE, len(dataset)), len(dataset))
    return gather_in_input_order(trainer, torch.cat(batches), loader).cpu().clone()
