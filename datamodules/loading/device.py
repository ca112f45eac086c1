"""Read and augment the data of a batch where the network computes: on the CPU, on a GPU, or on MPS."""

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from datamodules.errors import DataError
from datamodules.text import print_once

DEVICE_TYPES = ("cpu", "cuda", "mps")  # others may not compute with uint8
TRANSFER_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
SHARE_OF_FREE_MEMORY = 0.25  # of the device; the network, its gradients and the batches need the rest
MAX_BYTES_PER_FETCH = 1 << 25  # on a GPU: a few large kernels are faster than many small ones

Tensors = tuple[Tensor, ...]


class TwoStageDataset(Dataset):
    """A dataset that reads the stored samples of a batch first, and computes the network's inputs from them later.

    A subclass has ``labels``, ``read`` and ``finish``. Between the two, the loader can copy the batch to the device,
    and pictures are still uint8. ``dataset[key]`` and ``__getitems__(keys)`` do both. A key is
    ``epoch * N + index``, or :data:`~datamodules.loading.order.PADDING`.
    """

    labels: Tensor  # (N,); a dataset without it has its own __len__
    finishes_batches = True  # False in worker processes: the loader finishes their batches
    samples_per_fetch = 0  # if the batches are smaller, read some of them together
    reads_keys_on_cpu = False  # True if read() needs the numbers: from a GPU it would have to wait for them

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, keys: Tensor) -> Tensors:
        """Return the stored samples of ``keys`` (B,) int64, and what :meth:`finish` needs for them."""
        raise NotImplementedError

    def finish(self, *batch: Tensor) -> Tensors:
        """Return inputs and targets from the result of :meth:`read`, which can be on any device."""
        return batch

    def __getitem__(self, key: int) -> Tensors:
        return tuple(tensor[0] for tensor in self.finish(*self.read(torch.tensor([key]))))

    def __getitems__(self, keys: list[int]) -> Tensors:
        try:
            batch = self.read(torch.tensor(keys))
        except DataError as error:
            if get_worker_info() is None:
                raise
            return error  # type: ignore[return-value]  # ResumableLoader raises it; torch would add a traceback
        return self.finish(*batch) if self.finishes_batches else batch

    def on(self, device: torch.device) -> "TwoStageDataset":
        """Return a copy with all tensors on ``device``, or this dataset if they are there already."""
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        if all(moved[name] is vars(self)[name] for name in moved):
            return self  # changes of this dataset then stay visible
        resident = copy.copy(self)
        vars(resident).update(moved)
        return resident

    def bytes_in_memory(self) -> int:
        """Return the size of the samples, if all of them are in memory, otherwise 0."""
        return sum(value.nbytes for value in vars(self).values() if isinstance(value, Tensor))


def has_two_stages(dataset: Any) -> bool:
    """Return True for a TwoStageDataset, unless a subclass changes ``__getitems__``."""
    return getattr(type(dataset), "__getitems__", None) is TwoStageDataset.__getitems__


def device_for_loading(trainer: Any) -> torch.device | None:
    """Return the Trainer's device. Return None without a Trainer, or if Lightning must copy the batches."""
    device = None if trainer is None else trainer.strategy.root_device
    if device is None or device.type not in DEVICE_TYPES:
        return None
    for owner in (getattr(trainer, "lightning_module", None), getattr(trainer, "datamodule", None)):
        for hook in TRANSFER_HOOKS:
            if owner is not None and is_overridden(hook, owner):
                if device.type != "cpu":
                    print_once(f"the data are copied batch by batch, because {type(owner).__name__} has its own {hook}")
                return None
    return device


def resident_copy(dataset: Any, device: torch.device, on_device: bool | str) -> TwoStageDataset | None:
    """Return ``dataset`` in the memory of ``device``, or None if batches are to be copied there. On a CPU: None.

    ``on_device`` is True, False, or ``auto``, which keeps the data there if they need at most a quarter of its free
    memory. Raise a DataError for other values, and if it is True but the data are not in memory.
    """
    size = dataset.bytes_in_memory()
    if on_device not in (True, False, "auto"):
        raise DataError(f"on_device must be true, false or auto, but is {on_device}: --data.on_device auto")
    if on_device is True and not size:
        fix = "add --data.cache true, or leave out --data.on_device true"
        raise DataError(f"the pictures are not kept in memory: {fix}")
    if device.type == "cpu" or not size or on_device is False:
        return None
    free = 0
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    elif device.type == "mps":
        free = torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    if on_device == "auto" and size > SHARE_OF_FREE_MEMORY * free:
        sizes = f"{size >> 20:,} MB, but {free >> 20:,} MB are free"
        print_once(f"the data are copied batch by batch: they need {sizes} on the device (--data.on_device true)")
        return None
    return dataset.on(device)


def copy_to(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to ``device``. A copy to a CUDA device does not wait for the work that is queued there."""
    can_run_ahead = device.type == "cuda" and tensor.is_cpu
    return (tensor.pin_memory() if can_run_ahead else tensor).to(device, non_blocking=can_run_ahead)


def copy_ahead(batches: Iterable[Tensors], device: torch.device) -> Iterator[Tensors]:
    """Copy batches to ``device``. To a CUDA device, copy the next one while the network uses the current one."""
    if device.type != "cuda":
        yield from (tuple(tensor.to(device) for tensor in batch) for batch in batches)
        return
    stream, waiting = torch.cuda.Stream(device), None
    for batch in batches:
        with torch.cuda.stream(stream):
            copied = tuple(copy_to(tensor, device) for tensor in batch)
        following = copied, stream.record_event()
        if waiting is not None:
            yield _wait_for(*waiting)
        waiting = following
    if waiting is not None:
        yield _wait_for(*waiting)


def _wait_for(batch: Tensors, copied: Any) -> Tensors:
    """Let the current stream wait for the event ``copied``, and keep the memory of the batch until it is used."""
    stream = torch.cuda.current_stream(batch[0].device)
    stream.wait_event(copied)
    for tensor in batch:
        tensor.record_stream(stream)
    return batch
