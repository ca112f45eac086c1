"""Make the DataLoader of all data modules. It can resume in the middle of an epoch. Its workers ignore signals."""

import atexit
import multiprocessing
import signal
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from datamodules.errors import DataError
from datamodules.loading.order import EvalSampler, TrainSampler
from datamodules.loading.seeds import combine_seeds, combine_with_run_seed
from datamodules.machine import STOP_SIGNALS, available_cores


class ResumableLoader(DataLoader):
    """A DataLoader that can resume in the middle of an epoch. Lightning saves its ``state_dict`` in checkpoints."""

    _batches_to_skip = _batches_done = 0

    def state_dict(self) -> dict[str, int]:
        return {"batches": self._batches_done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._batches_to_skip = state["batches"]

    # Lightning calls iter() and then set_epoch(). The body of a generator runs later, so it uses the right epoch.
    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self._batches_done, self._batches_to_skip = self._batches_to_skip, 0
        if self._batches_done and isinstance(self.sampler, TrainSampler) and self.batch_size is not None:
            self.sampler.start = self._batches_done * self.batch_size
        samples_per_fetch = None if self.num_workers else getattr(self.dataset, "samples_per_fetch", None)
        batches = super().__iter__() if samples_per_fetch is None else self._fetch_batches(samples_per_fetch)
        if self.num_workers:
            # atexit runs the last handler first. If torch's handlers ran first, they would wait for the workers.
            atexit.unregister(_kill_workers)
            atexit.register(_kill_workers)
        for batch in batches:
            if isinstance(batch, DataError):  # from a worker
                raise batch
            yield batch
            self._batches_done += 1  # the caller has used this batch and requests the next one

    def _fetch_batches(self, samples_per_fetch: int) -> Iterator[tuple[Tensor, ...]]:
        """Yield the same batches as a DataLoader. Fetch several small batches in one call, which is faster."""
        key_batches = iter(self.batch_sampler)  # type: ignore[arg-type]
        batches_per_fetch = max(1, samples_per_fetch // (self.batch_size or 1))
        while key_lists := list(islice(key_batches, batches_per_fetch)):
            tensors = self.dataset.__getitems__([key for keys in key_lists for key in keys])  # type: ignore[attr-defined]
            yield from zip(*(tensor.split([len(keys) for keys in key_lists]) for tensor in tensors), strict=True)


def keep_batch(batch: Any) -> Any:
    """Return ``batch`` unchanged. This is the collate function, because ``__getitems__`` already returns a batch."""
    return batch


def _kill_workers() -> None:
    """Kill the workers at exit. They ignore SIGTERM, so the program would wait until they have finished the epoch."""
    if hasattr(signal, "SIGCHLD"):  # torch's handler would report an error; Windows has no SIGCHLD
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def ignore_signals(worker: int) -> None:
    """Ignore the stop signals in a worker. Only the training process reacts to them, and it ends its workers."""
    for signal_number in STOP_SIGNALS:
        signal.signal(signal_number, signal.SIG_IGN)


def make_loader(
    dataset: Dataset,
    trainer: Any,
    *,
    batch_size: int,
    seed: int,
    train: bool,
    shuffle: bool = True,
    num_workers: int = 0,
) -> DataLoader:
    """Make the data loader of this rank, or of a single process without a ``trainer``.

    ``dataset.__getitems__(keys)`` returns a batch. The order depends on ``seed``, the run's seed and the epoch.
    """
    if not num_workers and hasattr(dataset, "decoding_threads"):  # the network may use fewer threads
        dataset.decoding_threads = max(1, available_cores() // (trainer.num_devices if trainer else 1))
    world_size, rank = (trainer.world_size, trainer.global_rank) if trainer is not None else (1, 0)
    length = len(dataset)  # type: ignore[arg-type]
    sampler: DistributedSampler
    if train:  # --overfit_batches needs the same batches in each epoch
        shuffle = shuffle and not (trainer is not None and trainer.overfit_batches)
        sampler = TrainSampler(length, world_size, rank, combine_with_run_seed(seed), shuffle)
    else:
        sampler = EvalSampler(length, world_size, rank, batch_size)
    return ResumableLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        collate_fn=keep_batch,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        worker_init_fn=ignore_signals,
        # without this generator a DataLoader would advance torch's global generator in each epoch
        generator=torch.Generator().manual_seed(combine_seeds(seed)),
    )


def count_decoding_workers(trainer: Any) -> int:
    """Return how many loader processes should decode pictures for this rank: 0 to 8.

    The ranks share the cores. On the CPU the network needs them too. Without a ``trainer``, count as for one GPU.
    """
    ranks, on_cpu = (1, False) if trainer is None else (trainer.num_devices, trainer.strategy.root_device.type == "cpu")
    cores = available_cores() // ranks
    if on_cpu:
        return min(8, cores // 4)
    return min(8, cores) if cores > 1 else 0
