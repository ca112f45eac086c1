"""In which order samples are loaded, on any number of devices, and back to the order of the data.

A training sampler hands out *keys*, ``epoch * len(dataset) + index``; order and augmentation are functions of them.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DistributedSampler

from datamodules.loading.seeds import mix

PADDING = -1
"""Key of a row that only fills up a device's last evaluation batch; its target becomes -1, or NaN for floats."""


class TrainSampler(DistributedSampler):
    """A new order each epoch, a function of (seed, epoch); this rank's share of it, as keys.

    The batches of all ranks at one step are together the batch that a single process with their summed batch size
    draws. The last few draws are repeated where the ranks do not divide the data (at most ranks - 1 of them).
    """

    def __init__(self, length: int, ranks: int, rank: int, seed: int, shuffle: bool = True) -> None:
        super().__init__(range(length), ranks, rank, shuffle=shuffle, seed=seed)  # type: ignore[arg-type]
        self.length = length
        self.start = 0
        """How many of the rank's draws the next pass leaves out: a resumed epoch goes on where it was."""

    def __iter__(self) -> Iterator[int]:
        start, self.start = self.start, 0
        if self.shuffle:
            generator = torch.Generator().manual_seed(mix(self.seed, self.epoch))
            order = torch.randperm(self.length, generator=generator)
        else:
            order = torch.arange(self.length)
        order = order.repeat(-(-self.total_size // self.length))[: self.total_size]
        keys = self.epoch * self.length + order[self.rank :: self.num_replicas]
        return iter(keys[start:].tolist())


class EvalSampler(DistributedSampler):
    """Every sample exactly once over all ranks, in batches that do not depend on the number of ranks.

    A sample's result may differ in its last bits by what stands beside it in its batch, so batches are dealt out
    whole: rank r has batch r, r + ranks, ... Where that is one batch less than other ranks have, a batch of a single
    :data:`PADDING` follows.
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
        short = max(0, self.starts[-1] + self.batch_size - self.length) if self.starts else 0  # of the last batch
        return len(self.starts) * self.batch_size - short + self.padded


def in_input_order(trainer: Any, rows: Tensor, loader: Any) -> Tensor:
    """Put together what the ranks made of the batches that an :class:`EvalSampler` dealt out.

    Args:
        rows: (n, ...), this rank's, of one batch after the other, padding included.
        loader: that gave the batches; all ranks have gone through as many of them.

    Returns:
        (N, ...) for the N inputs of those batches, the same on every rank.
    """
    if trainer.world_size > 1:
        size = loader.batch_sampler.batch_size  # Lightning takes batch_size off a loader for predictions
        batches = -(-len(rows) // size)
        whole = rows.new_zeros(batches * size, *rows.shape[1:])  # only the last batch may be short
        whole[: len(rows)] = rows
        shares = trainer.strategy.all_gather(whole.to(trainer.strategy.root_device))  # (ranks, batches * size, ...)
        rows = shares.unflatten(1, (batches, size)).transpose(0, 1).flatten(0, 2)
    return rows[: len(loader.dataset)]
