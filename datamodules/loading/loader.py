"""The DataLoader of every data module: it resumes inside an epoch; its workers leave signals to the main process."""

import atexit
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from functools import wraps
from itertools import islice
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, get_worker_info

from datamodules.errors import DataError
from datamodules.loading.order import EvalSampler, TrainSampler
from datamodules.loading.seeds import mix, run_seed
from datamodules.machine import SIGNALS, available_cores

P = ParamSpec("P")
R = TypeVar("R")


class ResumableLoader(DataLoader):
    """A DataLoader whose position in the epoch is saved with a Lightning checkpoint and restored from it."""

    _skip = _done = 0

    def state_dict(self) -> dict[str, int]:
        return {"batches": self._done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._skip = state["batches"]

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # a generator on purpose: Lightning calls iter() before set_epoch()
        self._done, self._skip = self._skip, 0
        if self._done and isinstance(self.sampler, TrainSampler) and self.batch_size is not None:
            self.sampler.start = self._done * self.batch_size
        at_once = None if self.num_workers else getattr(self.dataset, "samples_at_once", None)
        batches = super().__iter__() if at_once is None else self._from_memory(at_once)
        if self.num_workers:
            atexit.unregister(_end_workers)
            atexit.register(_end_workers)  # the newest runs first
        for batch in batches:
            if isinstance(batch, DataError):
                raise batch
            yield batch
            self._done += 1  # the next one is asked for, so this one has been used

    def _from_memory(self, at_once: int) -> Iterator[tuple[Tensor, ...]]:
        """What DataLoader's own iterator gives, for ``at_once`` samples (or one batch) at once: 15 us a batch of four
        where that takes 150."""
        numbers = iter(self.batch_sampler)  # type: ignore[arg-type]
        while several := list(islice(numbers, max(1, at_once // (self.batch_size or 1)))):
            fetched = self.dataset.__getitems__([key for keys in several for key in keys])  # type: ignore[attr-defined]
            yield from zip(*(part.split([len(keys) for keys in several]) for part in fetched), strict=True)


def keep_batch(batch: Any) -> Any:
    """Collate function of a dataset whose ``__getitems__`` returns the batch itself."""
    return batch


def return_data_errors(fetch: Callable[P, R]) -> Callable[P, R]:
    """Decorates a dataset's ``__getitems__``: in a worker a DataError is returned, for :class:`ResumableLoader` to
    raise. Torch would make a traceback in a RuntimeError of it."""

    @wraps(fetch)
    def returning(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return fetch(*args, **kwargs)
        except DataError as error:
            if get_worker_info() is None:
                raise
            return error  # type: ignore[return-value]

    return returning


def _end_workers() -> None:
    """Before the program waits for workers that are in the middle of an epoch and do not hear SIGTERM."""
    if hasattr(signal, "SIGCHLD"):  # torch would report their death as an error
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def ignore_signals(worker: int) -> None:
    """A signal for the whole process group is for the training process, which then ends its workers itself."""
    for number in SIGNALS:
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
    persistent: bool = True,
) -> DataLoader:
    """The loader of one rank.

    Args:
        dataset: sized; its ``__getitems__(keys)`` returns a batch.
        trainer: the Trainer, or None outside of one.
        train: hand out keys, shuffled by (seed, epoch) unless ``shuffle`` is false; else everything exactly once.
        num_workers: processes that load; 0 for data in memory.
        persistent: keep them from one epoch to the next.
    """
    ranks, rank = (trainer.world_size, trainer.global_rank) if trainer is not None else (1, 0)
    length = len(dataset)  # type: ignore[arg-type]
    sampler: DistributedSampler
    if train:  # --overfit_batches repeats the same batches, so it must not shuffle
        shuffle = shuffle and not (trainer is not None and trainer.overfit_batches)
        sampler = TrainSampler(length, ranks, rank, run_seed(seed), shuffle)
    else:
        sampler = EvalSampler(length, ranks, rank, batch_size)
    return ResumableLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        collate_fn=keep_batch,
        num_workers=num_workers,
        persistent_workers=persistent and num_workers > 0,
        worker_init_fn=ignore_signals,
        generator=torch.Generator().manual_seed(mix(seed)),  # else a pass would draw from the global generator
    )


def workers_for_decoding(trainer: Any) -> int:
    """Loader processes for pictures that have to be decoded, of the cores that this rank has to itself.

    A core each where another device computes. On a CPU one core in four: there the network keeps all of them busy, and
    a process too many holds up every operation that waits for its slowest thread.
    """
    ranks, on_cpu = (1, False) if trainer is None else (trainer.num_devices, trainer.strategy.root_device.type == "cpu")
    share = available_cores() // ranks
    return min(8, share // 4 if on_cpu else share if share > 1 else 0)
