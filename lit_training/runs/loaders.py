"""Make the batches of any training loader repeatable, so that a resumed run gets the same batches."""

import random
from collections.abc import Iterator
from functools import partial
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities.apply_func import apply_to_collection
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torch.utils.data import DistributedSampler

from datamodules.loading.seeds import combine_seeds

NOT_SEARCHED = (type, ModuleType, FunctionType, Tensor, LightningDataModule, LightningModule, Trainer)
MAX_ITEMS, MAX_PARTS = 100, 10_000  # larger collections hold data, not state
NUMBERS = (bool, int, float)


def seed_random_numbers(seed: int, device: torch.device) -> None:
    """Seed the global generators of torch, numpy and Python. This takes 10 us."""
    torch.default_generator.manual_seed(seed)  # torch.manual_seed is slower, because it seeds all devices
    np.random.seed(seed % 2**32)
    random.seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


class RepeatableLoader:
    """Wrap a training loader, which may be any iterable. Its batches depend only on seed, epoch and their number.

    ``resume_point.loaded_data`` is {}, or tells what a resumed run must restore. The batches before it are loaded again
    and dropped, but if the loader has a ``state_dict``, Lightning restores its position. It keeps its attributes.
    """

    def __init__(self, loader: Any, trainer: Trainer, seed: int, resume_point: Any) -> None:
        own = SimpleNamespace(loader=loader, trainer=trainer, seed=seed, resume_point=resume_point)
        own.has_state, own.first, own.start, own.epoch, own.passes, own.skip = False, own_state(loader), {}, -1, 0, 0
        vars(self)["own"] = own
        if hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict"):
            vars(self).update(state_dict=loader.state_dict, load_state_dict=loader.load_state_dict)
            own.has_state = True

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["own"].loader, name)

    def __setattr__(self, name: str, value: Any) -> None:  # for example Lightning sets worker_init_fn
        setattr(self.own.loader, name, value)

    def __len__(self) -> int:
        return len(self.own.loader)

    # Lightning may call iter() before the epoch begins. The body of a generator runs later, at the first batch.
    def __iter__(self) -> Iterator[Any]:
        own = self.own
        resumed = own.resume_point.loaded_data if own.resume_point else {}
        if (epoch := resumed.get("epoch", own.trainer.current_epoch)) != own.epoch:
            if resumed.get("loaders"):
                states = resumed["loaders"]
                states = states[own.trainer.global_rank * len(states) // own.trainer.world_size]
                own_state(own.loader, states[repeatable_loaders(own.trainer).index(self)])
            own.epoch, own.passes, own.start = epoch, 0, own_state(own.loader)
        if not own.passes:  # otherwise a longer loader continues, and this one starts again in the same epoch
            own_state(own.loader, own.start)
            own.skip = resumed.get("batches", 0)
        seed, device = combine_seeds(own.seed, epoch, own.passes), own.trainer.strategy.root_device
        first = own.skip if own.has_state else 0  # the number of the loader's first batch
        own.skip -= first
        to_skip, number = own.skip, first
        seed_random_numbers(seed + first, device)
        for number, batch in enumerate(own.loader, first + 1):
            if own.skip:
                own.skip -= 1
            else:
                yield batch
            seed_random_numbers(seed + number, device)
        own.passes += 1
        if own.passes > 1 and to_skip >= number > 0:  # Lightning does not expect that a second pass gives no batch
            yield from self

    def changed_state(self, finished: bool) -> dict[str, Any]:
        """Return what had changed in the loader when this epoch began, or at the end if the run has finished."""
        state = own_state(self.own.loader) if finished else self.own.start
        same = {path for path, old in self.own.first.items() if type(old) in NUMBERS and old == state.get(path)}
        return {path: value for path, value in state.items() if path not in same}


def repeatable_loaders(trainer: Trainer) -> list[RepeatableLoader]:
    """Return the training loaders in Lightning's order."""
    return [one for one in CombinedLoader(trainer.train_dataloader).flattened if isinstance(one, RepeatableLoader)]


def shuffled(trainer: Trainer) -> list[Any]:
    """Return for each training loader if it shuffles. If its order depends on the number of processes, return that."""
    samplers = [getattr(one, "sampler", None) for one in repeatable_loaders(trainer)]
    return [one.shuffle if isinstance(one, DistributedSampler) else f"on {trainer.world_size}" for one in samplers]


def own_state(loader: Any, new: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the numbers and the states of random generators in a loader and its parts, by path; first set ``new``."""
    state: dict[str, Any] = {}
    parts: list[tuple[str, Any]] = [] if hasattr(loader, "load_state_dict") else [("", loader)]
    seen: set[int] = set()
    read: Any
    write: Any
    while parts and len(seen) < MAX_PARTS:
        path, part = parts.pop()
        items = part if isinstance(part, dict | list | tuple) else getattr(part, "__dict__", {})
        if id(part) in seen or isinstance(part, NOT_SEARCHED) or len(items) > MAX_ITEMS:
            continue
        seen.add(id(part))
        for name, value in items.items() if isinstance(items, dict) else enumerate(items):
            key = f"{path}.{name}"
            if name != "_iterator":  # torch's iterator over its workers
                parts.append((key, value))
            if isinstance(value, torch.Generator | np.random.RandomState):
                read, write = value.get_state, value.set_state
            elif isinstance(value, random.Random):
                read, write = value.getstate, value.setstate
            elif isinstance(value, np.random.Generator):
                read, write = (partial(do, value.bit_generator, "state") for do in (getattr, setattr))
            elif type(value) in NUMBERS and isinstance(items, dict):
                read, write = partial(items.get, name), partial(items.__setitem__, name)
            else:
                continue
            if new and key in new:
                write(new[key])
            state[key] = apply_to_collection(read(), np.ndarray, np.ndarray.tolist)  # a checkpoint holds no arrays
    return state
