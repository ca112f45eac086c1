"""Make loaders whose batches contain only the keys (indices) of the samples."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.loading.loader import ResumableLoader, make_loader


class Keys(Dataset):
    """A dataset in which each sample is its key."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: int) -> Tensor:
        return torch.tensor(key)

    def __getitems__(self, keys: list[int]) -> Tensor:
        return torch.tensor(keys)


def rank_of(rank: int, ranks: int, overfit_batches: float = 0, device: str = "cpu") -> Any:
    """Return an object with some attributes of a Trainer, as in process ``rank`` of ``ranks``."""
    return SimpleNamespace(
        world_size=ranks,
        global_rank=rank,
        overfit_batches=overfit_batches,
        num_devices=ranks,
        strategy=SimpleNamespace(root_device=torch.device(device)),
    )


def loader_of(length: int, batch_size: int = 3, trainer: Any = None, **more: Any) -> ResumableLoader:
    """Return a training loader of ``length`` keys."""
    loader = make_loader(Keys(length), trainer, **{"batch_size": batch_size, "seed": 0, "train": True, **more})
    assert isinstance(loader, ResumableLoader)
    return loader


def epoch_of(loader: ResumableLoader, epoch: int) -> list[list[int]]:
    """Return the keys in each batch of an epoch."""
    loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
    return [batch.tolist() for batch in loader]
