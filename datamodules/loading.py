"""How every data module here loads: what a batch holds is a function of (seed, epoch, position) and of nothing else.

A training sampler hands out *keys*, ``epoch * len(dataset) + index``, and a dataset fetches a whole batch of keys at
once (``__getitems__``). Order, augmentation and resume therefore do not depend on workers, devices or history.
"""

import atexit
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from functools import wraps
from itertools import islice
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, get_worker_info

from datamodules.examination import available_cores
from datamodules.listing import DataError

P = ParamSpec("P")
R = TypeVar("R")

PADDING = -1
"""Key of a row that only fills up a device's last evaluation batch; its target becomes -1, or NaN for floats."""

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name))
"""What asks a training to stop; Windows has no SIGUSR1."""


def mix(*numbers: int) -> int:
    """One well-mixed seed in [0, 2**63) out of several integers (splitmix64, Steele et al. 2014)."""
    state = np.zeros(1, dtype=np.uint64)
    for number in numbers:
        state = _splitmix(state ^ np.uint64(number % 2**64))
    return int(state[0] >> np.uint64(1))


def uniforms(seed: int, keys: Tensor, count: int) -> Tensor:
    """``count`` random numbers for each key, a function of ``seed`` and the key alone.

    Args:
        keys: (B,) int64.

    Returns:
        (B, count) float32 in [0, 1).
    """
    lanes = keys.numpy().astype(np.uint64)[:, None] * np.uint64(count) + np.arange(count, dtype=np.uint64)
    bits = _splitmix(_splitmix(lanes) ^ np.uint64(mix(seed)))
    return torch.from_numpy((bits >> np.uint64(40)).astype(np.float32) / np.float32(2**24))


def _splitmix(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def run_seed(seed: int) -> int:
    """The data's own seed joined with the run's (``seed_everything``): it governs order and augmentation.

    What is split or drawn depends on the data's seed alone, so that runs with different seeds stay comparable.
    """
    return mix(seed, int(os.environ.get("PL_GLOBAL_SEED", 0)))


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


def whole_batch(batch: Any) -> Any:
    """Collate function of a dataset whose ``__getitems__`` returns the batch itself."""
    return batch


def raised_by_loader(fetch: Callable[P, R]) -> Callable[P, R]:
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


def leave_signals_to_main(worker: int) -> None:
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
        collate_fn=whole_batch,
        num_workers=num_workers,
        persistent_workers=persistent and num_workers > 0,
        worker_init_fn=leave_signals_to_main,
        generator=torch.Generator().manual_seed(mix(seed)),  # else a pass would draw from the global generator
    )


class SplitDataModule(LightningDataModule):
    """The four loaders of a data module that has ``batch_size`` and ``seed`` and its splits in ``sets``."""

    eval_batch_size = 100
    """Rows of an evaluation's batch, where ``batch_size`` is not more."""
    predict_split = "test"
    shuffle = True
    sets: dict[str, Dataset]

    def dataset(self, split: str) -> Dataset:
        """The samples of ``train``, ``val`` or ``test``; known after ``setup``."""
        return self.sets[split]

    def num_workers(self, dataset: Dataset) -> int:
        """Processes that load ``dataset``: none for what is in memory."""
        return 0

    def train_dataloader(self) -> DataLoader:
        return self._loader("train")

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        return self._loader("val") if len(self.dataset("val")) else []  # type: ignore[arg-type]

    def test_dataloader(self) -> DataLoader:
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader:
        return self._loader(self.predict_split)

    def _loader(self, split: str) -> DataLoader:
        train, dataset = split == "train", self.dataset(split)
        batch_size = self.hparams["batch_size"]
        return make_loader(
            dataset,
            self.trainer,
            batch_size=batch_size if train else max(self.eval_batch_size, batch_size),
            seed=self.hparams["seed"],
            train=train,
            shuffle=self.shuffle,
            num_workers=self.num_workers(dataset),
        )


def workers_for_decoding(trainer: Any) -> int:
    """Loader processes for pictures that have to be decoded, of the cores that this rank has to itself.

    A core each where another device computes. On a CPU one core in four: there the network keeps all of them busy, and
    a process too many holds up every operation that waits for its slowest thread.
    """
    ranks, on_cpu = (1, False) if trainer is None else (trainer.num_devices, trainer.strategy.root_device.type == "cpu")
    share = available_cores() // ranks
    return min(8, share // 4 if on_cpu else share if share > 1 else 0)
