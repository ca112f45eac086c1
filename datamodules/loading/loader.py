"""Make the DataLoader of all data modules. It can resume in the middle of an epoch. Its workers ignore signals."""

import atexit
import contextlib
import multiprocessing
import os
import signal
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, get_worker_info

from datamodules.errors import DataError
from datamodules.loading.device import (
    MAX_BYTES_PER_FETCH,
    Tensors,
    TwoStageDataset,
    copy_ahead,
    copy_to,
    device_for_loading,
    has_two_stages,
    resident_copy,
)
from datamodules.loading.order import EvalSampler, TrainSampler
from datamodules.loading.seeds import combine_seeds, combine_with_run_seed
from datamodules.machine import STOP_SIGNALS, available_cores
from datamodules.text import print_once


class ResumableLoader(DataLoader):
    """A DataLoader that can resume in the middle of an epoch. Lightning saves its ``state_dict`` in checkpoints.

    The batches of a TwoStageDataset are finished on ``device``. If ``resident`` is given, it is the same dataset in the
    memory of this device, and only the keys are copied there.
    """

    _batches_to_skip = _batches_done = 0
    device = torch.device("cpu")
    resident: TwoStageDataset | None = None
    has_next = False  # True if the next batch is in memory, so that no code runs to load it

    def state_dict(self) -> dict[str, int]:
        return {"batches": self._batches_done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._batches_to_skip = state["batches"]

    # Lightning calls iter() and then set_epoch(). The body of a generator runs later, so it uses the right epoch.
    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self._batches_done, self._batches_to_skip = self._batches_to_skip, 0
        if self._batches_done and isinstance(self.sampler, TrainSampler) and self.batch_size is not None:
            self.sampler.start = self._batches_done * self.batch_size
        if self.num_workers:
            # atexit runs the last handler first. If torch's handlers ran first, they would wait for the workers.
            atexit.unregister(_kill_workers)
            atexit.register(_kill_workers)
        has_two = has_two_stages(self.dataset)
        if has_two and not self.num_workers:
            batches: Iterator[Any] = self._read()
        else:
            with _blocked_stop_signals():  # a worker inherits this, until it ignores them
                batches = map(_raise_error, super().__iter__())
        for batch in self._finish(batches) if has_two else batches:
            yield batch
            self._batches_done += 1  # the caller has used this batch and requests the next one

    def _read(self) -> Iterator[Tensors]:
        """Read the samples in this process: several small batches in one call, which is faster."""
        data: Any = self.resident or self.dataset
        device = self.device if self.resident and not data.reads_keys_on_cpu else torch.device("cpu")
        # for predictions, Lightning makes a loader with another sampler
        if self.batch_size is None or not hasattr(self.sampler, "key_chunks"):
            for keys in self.batch_sampler:  # type: ignore[union-attr]
                yield data.read(torch.tensor(keys, device=device))
            return
        samples = data.samples_per_fetch
        if self.resident:  # few large calls are faster on a GPU
            sample = data.finish(*data.read(torch.zeros(1, dtype=torch.int64, device=device)))
            samples = MAX_BYTES_PER_FETCH // sum(tensor.nbytes for tensor in sample)
        size = max(1, samples // self.batch_size) * self.batch_size
        rest = torch.empty(0, dtype=torch.int64, device=device)
        for chunk in self.sampler.key_chunks():
            keys = torch.cat([rest, copy_to(chunk, device)])  # without a wait for the GPU's queued work
            whole = len(keys) // size * size
            yield from (data.read(keys[first : first + size]) for first in range(0, whole, size))
            rest = keys[whole:]
        if len(rest):
            yield data.read(rest)

    def _finish(self, batches: Iterator[Tensors]) -> Iterator[Tensors]:
        data: Any = self.resident or self.dataset
        for fetched in batches if self.resident else copy_ahead(batches, self.device):
            finished = data.finish(*fetched)
            size = self.batch_size or len(finished[0])
            parts = list(zip(*(tensor.split(size) for tensor in finished), strict=True))
            self.has_next = True
            yield from parts[:-1]
            self.has_next = False
            yield from parts[-1:]


def _raise_error(batch: Any) -> Any:
    if isinstance(batch, DataError):  # from a worker
        raise batch
    return batch


def keep_batch(batch: Any) -> Any:
    """Return ``batch`` unchanged. This is the collate function, because ``__getitems__`` already returns a batch."""
    return batch


@contextlib.contextmanager
def _blocked_stop_signals() -> Iterator[None]:
    """Let another thread get the stop signals, or this one later."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _kill_workers() -> None:
    """Kill the workers at exit. They ignore SIGTERM, so the program would wait until they have finished the epoch."""
    if hasattr(signal, "SIGCHLD"):  # torch's handler would report an error; Windows has no SIGCHLD
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def prepare_worker(worker: int) -> None:
    """Ignore the stop signals: the training process ends its workers. Leave it to that process to finish batches."""
    for signal_number in STOP_SIGNALS:
        signal.signal(signal_number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():
        os._exit(1)  # torch's workers notice only a process that ends later
    dataset: Any = get_worker_info().dataset  # type: ignore[union-attr]
    if has_two_stages(dataset):
        dataset.finishes_batches = False


def make_loader(
    dataset: Dataset,
    trainer: Any,
    *,
    batch_size: int,
    seed: int,
    train: bool,
    shuffle: bool = True,
    num_workers: int = 0,
    on_device: bool | str = False,
) -> DataLoader:
    """Make the data loader of this rank, or of a single process without a ``trainer``.

    ``dataset.__getitems__(keys)`` returns a batch. The order depends on ``seed``, the run's seed and the epoch. The
    batches of a TwoStageDataset are on the Trainer's device. ``on_device``: see :func:`resident_copy`.
    """
    device = device_for_loading(trainer) if has_two_stages(dataset) else None
    resident = None if device is None else resident_copy(dataset, device, on_device)
    num_workers = 0 if resident else num_workers
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
        model, missing = getattr(trainer, "lightning_module", None), -length // batch_size % world_size
        if missing and model is not None and not hasattr(model, "samples_evaluated"):  # it does not know the padding
            sampler.padding = length - 1
            many = f"its evaluation on {world_size} devices counts the last sample {missing + 1} times"
            print_once(f"{type(model).__name__} is not built on LitBase: {many}")
    loader = ResumableLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        collate_fn=keep_batch,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        worker_init_fn=prepare_worker,
        pin_memory=num_workers > 0 and device is not None and device.type == "cuda",
        # without this generator a DataLoader would advance torch's global generator in each epoch
        generator=torch.Generator().manual_seed(combine_seeds(seed)),
    )
    loader.device, loader.resident = device or torch.device("cpu"), resident
    return loader


def count_decoding_workers(trainer: Any) -> int:
    """Return how many loader processes should decode pictures for this rank.

    The ranks share the cores. On the CPU the network needs most of them. Beside a GPU, and without a ``trainer``, one
    core in eight is for the training process.
    """
    ranks, on_cpu = (1, False) if trainer is None else (trainer.num_devices, trainer.strategy.root_device.type == "cpu")
    cores = available_cores() // ranks
    if on_cpu:
        return cores // 4
    return cores - cores // 8 if cores > 1 else 0
