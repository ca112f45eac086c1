"""Distribute samples to any number of devices, and gather the results in the order of the dataset.

The samplers yield *keys*: ``epoch * len(dataset) + index`` in training, the index in an evaluation.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DistributedSampler

from datamodules.loading.seeds import combine_seeds

PADDING = -1
"""Key of a dummy sample in an evaluation (see :class:`EvalSampler`). Its target is -1, or NaN for float targets."""


class TrainSampler(DistributedSampler):
    """Yield the training keys of one rank. Their order depends on the seed and the epoch.

    In each step all ranks together use the same samples as one process with the global batch size. If ``length`` (the
    number of samples) is not a multiple of ``ranks``, the first samples are repeated at the end.
    """

    def __init__(self, length: int, ranks: int, rank: int, seed: int, shuffle: bool = True) -> None:
        super().__init__(range(length), ranks, rank, shuffle=shuffle, seed=seed)  # type: ignore[arg-type]
        self.length = length
        self.start = 0  # keys to skip in the next epoch; a resumed run sets it

    def __iter__(self) -> Iterator[int]:
        for chunk in self.key_chunks():
            yield from chunk.tolist()

    def key_chunks(self) -> Iterator[Tensor]:
        """Yield the keys in order, in tensors (n,) int64."""
        start, self.start = self.start, 0
        if self.shuffle:
            generator = torch.Generator().manual_seed(combine_seeds(self.seed, self.epoch))
            order = torch.randperm(self.length, generator=generator)
        else:
            order = torch.arange(self.length)
        order = order.repeat(-(-self.total_size // self.length))[: self.total_size]
        keys = self.epoch * self.length + order[self.rank :: self.num_replicas]
        yield keys[start:]


class EvalSampler(DistributedSampler):
    """Yield the evaluation keys of one rank: the batches rank, rank + ranks, rank + 2 * ranks, ... of all batches.

    The batches are the same for any number of ranks, because the result of a sample can depend slightly on the other
    samples in its batch. If a rank has one batch less than rank 0, it gets a last batch of one :data:`PADDING` key.
    """

    def __init__(self, length: int, ranks: int, rank: int, batch_size: int) -> None:
        super().__init__(range(length), ranks, rank, shuffle=False)  # type: ignore[arg-type]
        self.length, self.batch_size = length, batch_size
        global_batch_size = ranks * batch_size
        self.batch_starts = range(rank * batch_size, length, global_batch_size)
        self.has_padding = len(self.batch_starts) < -(-length // global_batch_size)

    def __iter__(self) -> Iterator[int]:
        for chunk in self.key_chunks():
            yield from chunk.tolist()

    def key_chunks(self) -> Iterator[Tensor]:
        """Yield the keys in order, in tensors (n,) int64."""
        for start in self.batch_starts:
            yield torch.arange(start, min(start + self.batch_size, self.length))
        if self.has_padding:
            yield torch.tensor([PADDING])

    def __len__(self) -> int:
        return sum(min(self.batch_size, self.length - start) for start in self.batch_starts) + self.has_padding


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
