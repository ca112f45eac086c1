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
    """The base class of both samplers. A subclass yields its keys in chunks, (n,) int64, in ``key_chunks()``."""

    length: int
    key_chunks: Callable[[], Iterator[Tensor]]

    def __iter__(self) -> Iterator[int]:
        for chunk in self.key_chunks():
            for part in chunk.split(CHUNK):  # a list of all keys would need 40 bytes for each
                yield from part.tolist()

    def _places(self, start: int = 0) -> Iterator[Tensor]:
        """Yield ``start`` to ``len(self) - 1``: one chunk for a small dataset, otherwise chunks of CHUNK numbers."""
        size = max(1, len(self)) if self.length <= MAX_SHUFFLED else CHUNK
        return (torch.arange(first, min(first + size, len(self))) for first in range(start, len(self), size))


class TrainSampler(KeySampler):
    """Yield the training keys of one rank. Their order depends on the seed and the epoch.

    In each step all ranks together use the same samples as one process with the global batch size. If ``length`` (the
    number of samples) is not a multiple of ``ranks``, the first samples are repeated at the end.
    """

    def __init__(self, length: int, ranks: int, rank: int, seed: int, shuffle: bool = True) -> None:
        super().__init__(range(length), ranks, rank, shuffle=shuffle, seed=seed)  # type: ignore[arg-type]
        self.length = length
        self.start = 0  # keys to skip in the next epoch; a resumed run sets it

    def key_chunks(self) -> Iterator[Tensor]:
        start, self.start = self.start, 0
        generator = torch.Generator().manual_seed(combine_seeds(self.seed, self.epoch))
        order: Callable[[Tensor], Tensor] | None = None
        if self.shuffle and self.length > MAX_SHUFFLED:
            order = Permutation(self.length, generator)
        elif self.shuffle:
            order = torch.randperm(self.length, generator=generator).__getitem__
        for places in self._places(start):
            indices = (places * self.num_replicas + self.rank) % self.length
            yield self.epoch * self.length + (order(indices) if order else indices)


class EvalSampler(KeySampler):
    """Yield the evaluation keys of one rank: the batches rank, rank + ranks, rank + 2 * ranks, ... of all batches.

    The batches are the same for any number of ranks, because the result of a sample can depend slightly on the other
    samples in its batch. If a rank has one batch less than rank 0, it gets a last batch of the one key ``padding``.
    """

    padding = PADDING

    def __init__(self, length: int, ranks: int, rank: int, batch_size: int) -> None:
        super().__init__(range(length), ranks, rank, shuffle=False)  # type: ignore[arg-type]
        self.length, self.batch_size = length, batch_size
        full, rest = divmod(length, batch_size)
        self.samples = len(range(rank, full, ranks)) * batch_size + rest * (full % ranks == rank)
        self.has_padding = -(-self.samples // batch_size) < -(-length // (ranks * batch_size))

    def key_chunks(self) -> Iterator[Tensor]:
        for places in self._places():
            batches = places // self.batch_size * self.num_replicas + self.rank
            keys = batches * self.batch_size + places % self.batch_size
            yield keys.masked_fill(places >= self.samples, self.padding)

    def __len__(self) -> int:
        return self.samples + self.has_padding


class Permutation:
    """A pseudorandom permutation of 0 .. length - 1 that keeps only about ROUNDS * sqrt(length) numbers in memory.

    An index is a pair (row, column) of a square grid. Each round of the Feistel network (Black and Rogaway 2002) adds
    a number to the row that depends on the column, and swaps both. A cell from ``length`` on goes through it again.
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
