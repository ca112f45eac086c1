"""Distribute samples to any number of devices, and gather the results in the order of the dataset.

The samplers yield *keys*: ``epoch * len(dataset) + index`` in training, the index in an evaluation.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DistributedSampler

from datamodules.loading.seeds import combine_seeds

PADDING = -1
"""Key of a dummy sample in an evaluation (see :class:`EvalSampler`). Its target is -1, or NaN for float targets."""
MAX_SHUFFLED = 10**7
"""Up to this length an epoch's order is one tensor. Longer orders are computed in chunks of CHUNK keys."""
CHUNK = 2**16
ROUNDS = 8


class KeySampler(DistributedSampler):
    """Yield the keys of one rank. A subclass computes the keys of any places in this rank's order."""

    def __init__(self, length: int, ranks: int, rank: int, **options: Any) -> None:
        super().__init__(range(length), ranks, rank, **options)  # type: ignore[arg-type]
        self.length = length
        self.start = 0  # keys to skip in the next epoch; a resumed run sets it

    def keys_of_epoch(self) -> Callable[[Tensor], Tensor]:
        """Return a function that gives the keys of places (n,) in this rank's order: (n,), int64."""
        raise NotImplementedError

    def key_chunks(self) -> Iterator[Tensor]:
        """Yield the keys of the epoch in order, int64: one chunk if the dataset is small, else chunks of CHUNK keys."""
        start, self.start = self.start, 0
        keys_of, count = self.keys_of_epoch(), len(self)
        size = max(1, count) if self.length <= MAX_SHUFFLED else CHUNK
        for first in range(start, count, size):
            yield keys_of(torch.arange(first, min(first + size, count)))

    def __iter__(self) -> Iterator[int]:
        for chunk in self.key_chunks():
            for part in chunk.split(CHUNK):  # a list of all keys would need 40 bytes for each
                yield from part.tolist()


class TrainSampler(KeySampler):
    """Yield the training keys of one rank. Their order depends on the seed and the epoch.

    In each step all ranks together use the same samples as one process with the global batch size. If ``length`` (the
    number of samples) is not a multiple of ``ranks``, the first samples are repeated at the end.
    """

    def __init__(self, length: int, ranks: int, rank: int, seed: int, shuffle: bool = True) -> None:
        super().__init__(length, ranks, rank, shuffle=shuffle, seed=seed)

    def keys_of_epoch(self) -> Callable[[Tensor], Tensor]:
        generator, order = torch.Generator().manual_seed(combine_seeds(self.seed, self.epoch)), None
        if self.shuffle and self.length > MAX_SHUFFLED:
            order = Permutation(self.length, generator)
        elif self.shuffle:
            order = torch.randperm(self.length, generator=generator).__getitem__

        def keys_of(places: Tensor) -> Tensor:
            indices = (places * self.num_replicas + self.rank) % self.length
            return self.epoch * self.length + (order(indices) if order else indices)

        return keys_of


class EvalSampler(KeySampler):
    """Yield the evaluation keys of one rank: the batches rank, rank + ranks, rank + 2 * ranks, ... of all batches.

    The batches are the same for any number of ranks, because the result of a sample can depend slightly on the other
    samples in its batch. If a rank has one batch less than rank 0, it gets a last batch of one :data:`PADDING` key.
    """

    def __init__(self, length: int, ranks: int, rank: int, batch_size: int) -> None:
        super().__init__(length, ranks, rank, shuffle=False)
        self.batch_size = batch_size
        global_batch_size = ranks * batch_size
        starts = range(rank * batch_size, length, global_batch_size)
        self.samples = len(starts) * batch_size - max(0, starts[-1] + batch_size - length) if starts else 0
        self.has_padding = len(starts) < -(-length // global_batch_size)

    def keys_of_epoch(self) -> Callable[[Tensor], Tensor]:
        return self._keys

    def _keys(self, places: Tensor) -> Tensor:
        batches = places // self.batch_size * self.num_replicas + self.rank
        keys = batches * self.batch_size + places % self.batch_size
        return keys.masked_fill(places >= self.samples, PADDING)

    def __len__(self) -> int:
        return self.samples + self.has_padding


class Permutation:
    """A pseudorandom permutation of 0 .. length - 1 that keeps only about ROUNDS * sqrt(length) numbers in memory.

    An index is a pair (row, column) of a square grid. Each round of the Feistel network (Black and Rogaway 2002) adds
    a number to the row that depends on the column, and swaps both. The grid can have a few cells more than ``length``:
    a result that is not an index goes through the network again (cycle walking).
    """

    def __init__(self, length: int, generator: torch.Generator) -> None:
        self.length, self.side = length, math.isqrt(length - 1) + 1
        self.shifts = torch.randint(self.side, (ROUNDS, self.side), generator=generator)

    def __call__(self, indices: Tensor) -> Tensor:
        row, column = indices // self.side, indices % self.side
        for shifts in self.shifts:
            row, column = column, (row + shifts[column]) % self.side
        result = row * self.side + column
        outside = result >= self.length
        if outside.any():
            result[outside] = self(result[outside])
        return result


def gather_in_input_order(trainer: Any, results: Tensor, loader: Any) -> Tensor:
    """Gather the results of all ranks on each rank: (N, ...), in the order of the dataset and without padding.

    ``results`` (n, ...) are those of this rank with padding. All ranks must have used the same number of batches.
    """
    if trainer.world_size > 1:
        batch_size = loader.batch_sampler.batch_size  # in predictions Lightning sets loader.batch_size to None
        batches = -(-len(results) // batch_size)
        missing = batches * batch_size - len(results)  # the last batch can have fewer samples
        filled = torch.cat([results, results.new_zeros(missing, *results.shape[1:])])
        gathered = trainer.strategy.all_gather(filled.to(trainer.strategy.root_device))  # (ranks, batches * size, ...)
        results = gathered.unflatten(1, (batches, batch_size)).transpose(0, 1).flatten(0, 2)
    return results[: len(loader.dataset)]
