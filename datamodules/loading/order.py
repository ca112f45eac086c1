"""Samplers for any number of devices; gathering results in the order of the data.

TrainSampler yields *keys*, ``epoch * len(dataset) + index``. The augmentation of a sample depends on its key.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DistributedSampler

from datamodules.loading.seeds import combine_seeds

PADDING = -1
"""Key of a padding row in evaluation; its target is -1, or NaN for float targets."""


class TrainSampler(DistributedSampler):
    """This rank's training keys, shuffled in each epoch by (seed, epoch).

    The batches of all ranks in one step make up the batch of a single process with the global batch size. If the number
    of samples is not a multiple of the number of ranks, the first samples (at most ranks - 1) are repeated at the end.
    """

    def __init__(self, length: int, ranks: int, rank: int, seed: int, shuffle: bool = True) -> None:
        super().__init__(range(length), ranks, rank, shuffle=shuffle, seed=seed)  # type: ignore[arg-type]
        self.length = length
        self.start = 0
        """Number of keys to skip in the next epoch, to resume in its middle."""

    def __iter__(self) -> Iterator[int]:
        start, self.start = self.start, 0
        if self.shuffle:
            generator = torch.Generator().manual_seed(combine_seeds(self.seed, self.epoch))
            order = torch.randperm(self.length, generator=generator)
        else:
            order = torch.arange(self.length)
        order = order.repeat(-(-self.total_size // self.length))[: self.total_size]
        keys = self.epoch * self.length + order[self.rank :: self.num_replicas]
        return iter(keys[start:].tolist())


class EvalSampler(DistributedSampler):
    """Each sample exactly once over all ranks, in batches that do not depend on the number of ranks.

    The last bits of a sample's result can depend on the other samples in its batch. So each rank gets whole batches:
    rank r gets the batches r, r + ranks, and so on. A rank with one batch less than the others gets a last batch of one
    :data:`PADDING` key.
    """

    def __init__(self, length: int, ranks: int, rank: int, batch_size: int) -> None:
        super().__init__(range(length), ranks, rank, shuffle=False)  # type: ignore[arg-type]
        self.length, self.batch_size = length, batch_size
        step = ranks * batch_size
        self.starts = range(rank * batch_size, length, step)
        self.padded = len(self.starts) < -(-length // step)

    def __iter__(self) -> Iterator[int]:
        for start in self.starts:
            yield from range(start, min(start + self.batch_size, self.length))
        if self.padded:
            yield PADDING

    def __len__(self) -> int:
        return sum(min(self.batch_size, self.length - start) for start in self.starts) + self.padded


def gather_in_input_order(trainer: Any, rows: Tensor, loader: Any) -> Tensor:
    """Gather the results of all ranks in the order of the dataset.

    Args:
        rows: (n, ...), the results of this rank's batches, with padding.
        loader: the loader of these batches, with an :class:`EvalSampler`. All ranks must have used the same number.

    Returns:
        (N, ...), the results of all ranks without padding, the same on every rank.
    """
    if trainer.world_size > 1:
        size = loader.batch_sampler.batch_size  # for predictions Lightning removes loader.batch_size
        batches = -(-len(rows) // size)
        fill = rows.new_zeros(batches * size - len(rows), *rows.shape[1:])  # the last batch can be shorter
        rows = torch.cat([rows, fill]).to(trainer.strategy.root_device)
        gathered = trainer.strategy.all_gather(rows)  # (ranks, batches * size, ...)
        rows = gathered.unflatten(1, (batches, size)).transpose(0, 1).flatten(0, 2)
    return rows[: len(loader.dataset)]
