"""Compute the features of a frozen backbone once per picture, not again in each epoch."""

import sys
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
from lit_training.errors import print_note
from lit_training.runs.devices import evaluation_mode
from lit_training.runs.foreign import data_of, why_not_cached
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

    def __getitem__(self, key: int) -> tuple[Tensor, Tensor]:
        return self.features[key % len(self)], self.labels[key % len(self)]

    def __getitems__(self, keys: list[int]) -> tuple[Tensor, Tensor]:
        key_tensor = torch.tensor(keys)
        rows = key_tensor % len(self)
        return self.features.index_select(0, rows), self.labels[rows].masked_fill(key_tensor == PADDING, PADDING)


class FeatureCache(Callback):
    """Replace the datasets of photos by datasets of their features, if the backbone is frozen.

    Metrics and weights change by less than 1e-5. Checkpoints contain the complete network. The callback does nothing
    if the photos are augmented, if the head is not the last layer of the network, or if code of the user may need the
    pictures (``why_not_cached``). The features are also kept in the
    user's cache folder for later starts, see ``feature_files.py``.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data: Any = data_of(trainer)
        if not isinstance(pl_module, LitBase) or not isinstance(data, SplitDataModule) or data.photos is None:
            return
        if not pl_module.fixed_features or data.augment:
            return
        if reason := why_not_cached(pl_module, data, trainer.callbacks):  # type: ignore[attr-defined]
            print_note(f"the features of the frozen backbone are computed in each epoch, because {reason}")
            return
        pl_module.on_fit_start()  # it loads the weights; Lightning would call it too late, after the callbacks
        threads: Any = getattr(trainer, "threads", None) or [torch.get_num_threads()]
        notes: dict[str, None] = {}  # a dict keeps each line once
        with evaluation_mode(pl_module), use_threads(threads[-1]):
            is_first = trainer.is_global_zero
            files = feature_files(trainer, pl_module, data, FEATURE_BATCH_SIZE) if is_first else {}
            for split in ("train", "val"):
                dataset: Any = data.dataset(split)
                if not isinstance(dataset, Features) and len(dataset):
                    features = _read_or_compute(trainer, pl_module, dataset, data, split, files.get(split), notes)
                    if features is None:
                        break
                    data.sets[split] = features
        for note in filter(None, notes):
            print(note, file=sys.stderr if note.startswith("note") else sys.stdout, flush=True)
        forget_loaders(trainer)  # schedules that need the number of steps create loaders with the old data


def _read_or_compute(
    trainer: Trainer,
    model: LitBase,
    dataset: Any,
    data: SplitDataModule,
    split: str,
    file: Path | None,
    notes: dict[str, None],
) -> Features | None:
    """Return the features that rank 0 finds in ``file``; otherwise compute them and write this file.

    Add a line to ``notes`` if they were found or cannot be kept.
    """
    found = trainer.strategy.broadcast(read_features(file, len(dataset)) if file else None)
    if found is not None:
        if file and trainer.progress_bar_callback is not None:
            notes[f"features of an earlier run are used again, from {file.parent}"] = None
        return Features(found, dataset)
    computed = _compute_features(trainer, model, dataset, data, split)
    if computed is not None and file:
        notes[write_features(file, computed.features)] = None
    return computed


def _compute_features(
    trainer: Trainer, model: LitBase, dataset: Any, data: SplitDataModule, split: str
) -> Features | None:
    """Return the features of all pictures on each rank, or None if the model cannot compute features."""
    workers = data.num_workers(dataset)
    loader: Any = make_loader(
        dataset, trainer, batch_size=FEATURE_BATCH_SIZE, seed=0, train=False, num_workers=workers, keep_workers=False
    )
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
    features = gather_in_input_order(trainer, torch.cat(batches), loader).cpu()
    return Features(features.clone(), dataset)
