"""The DataLoader of all data modules. It can resume in the middle of an epoch, and its workers ignore signals."""

import atexit
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from functools import wraps
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, get_worker_info

from datamodules.errors import DataError
from datamodules.loading.order import EvalSampler, TrainSampler
from datamodules.loading.seeds import combine_seeds, combine_with_run_seed
from datamodules.machine import STOP_SIGNALS, available_cores


class ResumableLoader(DataLoader):
    """A DataLoader whose position in the epoch is part of Lightning's checkpoints."""

    _skip = _done = 0

    def state_dict(self) -> dict[str, int]:
        return {"batches": self._done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._skip = state["batches"]

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # a generator, because Lightning calls iter() before set_epoch()
        self._done, self._skip = self._skip, 0
        if self._done and isinstance(self.sampler, TrainSampler) and self.batch_size is not None:
            self.sampler.start = self._done * self.batch_size
        at_once = None if self.num_workers else getattr(self.dataset, "samples_per_fetch", None)
        batches = super().__iter__() if at_once is None else self._from_memory(at_once)
        if self.num_workers:
            atexit.unregister(_end_workers)
            atexit.register(_end_workers)  # atexit runs the newest handler first
        for batch in batches:
            if isinstance(batch, DataError):
                raise batch
            yield batch
            self._done += 1  # the next batch is requested, so this one was used

    def _from_memory(self, at_once: int) -> Iterator[tuple[Tensor, ...]]:
        """Yield the same batches as DataLoader's iterator, but fetch about ``at_once`` samples in one call.

        A batch of four takes 15 us instead of 150 us.
        """
        batches = iter(self.batch_sampler)  # type: ignore[arg-type]
        while group := list(islice(batches, max(1, at_once // (self.batch_size or 1)))):
            fetched = self.dataset.__getitems__([key for keys in group for key in keys])  # type: ignore[attr-defined]
            yield from zip(*(tensor.split([len(keys) for keys in group]) for tensor in fetched), strict=True)


def keep_batch(batch: Any) -> Any:
    """Collate function for datasets whose ``__getitems__`` returns a whole batch."""
    return batch


def return_data_errors(fetch: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a dataset's ``__getitems__``: a worker returns a DataError, and :class:`ResumableLoader` raises it.

    If a worker raised it, torch would put a traceback into its message.
    """

    @wraps(fetch)
    def wrapper(self: Dataset, keys: list[int]) -> Any:
        try:
            return fetch(self, keys)
        except DataError as error:
            if get_worker_info() is None:
                raise
            return error

    return wrapper


def _end_workers() -> None:
    """Kill the workers at exit: they ignore SIGTERM, so the program would wait until they finish their epoch."""
    if hasattr(signal, "SIGCHLD"):  # otherwise torch reports the killed workers as an error
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def ignore_signals(worker: int) -> None:
    """Ignore signals in a worker. The training process handles them and ends its workers."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def make_loader(
    dataset: Dataset,
    trainer: Any,
    *,
    batch_size: int,
    seed: int,
    train: bool,
    shuffle: bool = True,
    num_workers: int = 0,
    keep_workers: bool = True,
) -> DataLoader:
    """Make the data loader of this rank.

    Args:
        dataset: has a length, and its ``__getitems__(keys)`` returns a batch.
        trainer: the Trainer, or None without one.
        train: use :class:`TrainSampler`; false uses :class:`EvalSampler`.
        shuffle: False keeps the order of the training data.
        num_workers: number of loader processes; 0 for data in memory.
        keep_workers: keep the loader processes between epochs.
    """
    ranks, rank = (trainer.world_size, trainer.global_rank) if trainer is not None else (1, 0)
    length = len(dataset)  # type: ignore[arg-type]
    sampler: DistributedSampler
    if train:  # --overfit_batches needs the same batches in each epoch
        shuffle = shuffle and not (trainer is not None and trainer.overfit_batches)
        sampler = TrainSampler(length, ranks, rank, combine_with_run_seed(seed), shuffle)
    else:
        sampler = EvalSampler(length, ranks, rank, batch_size)
    return ResumableLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        collate_fn=keep_batch,
        num_workers=num_workers,
        persistent_workers=keep_workers and num_workers > 0,
        worker_init_fn=ignore_signals,
        generator=torch.Generator().manual_seed(
            combine_seeds(seed)
        ),  # otherwise each epoch draws from the global generator
    )


def count_decoding_workers(trainer: Any) -> int:
    """Return the number of loader processes that decode pictures for this rank, at most 8.

    One per core if the network runs on another device. On a CPU only one per four cores: the network uses all cores
    too, and each of its operations waits for the slowest thread.
    """
    ranks, on_cpu = (1, False) if trainer is None else (trainer.num_devices, trainer.strategy.root_device.type == "cpu")
    cores = available_cores() // ranks
    if on_cpu:
        return min(8, cores // 4)
    return min(8, cores) if cores > 1 else 0
