"""Make the batches of any training loader repeatable, so that a resumed run gets the same batches."""

import random
from collections.abc import Callable, Iterator
from functools import partial
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities.apply_func import apply_to_collection
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor

from datamodules.loading.seeds import combine_seeds

NOT_SEARCHED = (type, ModuleType, FunctionType, Tensor, LightningDataModule, LightningModule, Trainer)
MAX_ITEMS, MAX_PARTS = 100, 10_000  # larger collections hold data, not state
NUMBERS = (bool, int, float)


def seed_random_numbers(seed: int, device: torch.device) -> None:
    """Seed the global generators of torch, numpy and Python. This takes 10 us."""
    torch.default_generator.manual_seed(seed)  # torch.manual_seed is slower, because it seeds all devices
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the user's code may draw from it
    random.seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


class RepeatableLoader:
    """Wrap a training loader, which may be any iterable: seed before each batch, and skip batches after a resume.

    ``resume_state(self)`` returns ``epoch``, ``batches`` (to skip, which loads them again) and :meth:`state`, or {}.
    """

    def __init__(self, loader: Any, trainer: Trainer, seed: int, resume_state: Callable[[Any], dict[str, Any]]) -> None:
        vars(self).update(_loader=loader, _trainer=trainer, _seed=seed, _resume_state=resume_state)
        vars(self).update(_first=own_state(loader), _start={}, _epoch=-1, _passes=0, _skip=0)

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["_loader"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in vars(self):
            vars(self)[name] = value
        else:  # for example Lightning sets worker_init_fn
            setattr(self._loader, name, value)

    def __len__(self) -> int:
        return len(self._loader)

    # Lightning may call iter() before the epoch begins. The body of a generator runs later, at the first batch.
    def __iter__(self) -> Iterator[Any]:
        resumed = self._resume_state(self)
        if (epoch := resumed.get("epoch", self._trainer.current_epoch)) != self._epoch:
            self._start = own_state(self._loader, resumed.get("state", {}))
            self._epoch, self._passes = epoch, 0
        if not self._passes:  # otherwise a longer loader continues, and this one starts again in the same epoch
            own_state(self._loader, self._start)
            self._skip = resumed.get("batches", 0)
        first = 0
        if isinstance(self, StatefulRepeatableLoader):
            first, self._skip = self._skip, 0
        seed, device = combine_seeds(self._seed, epoch, self._passes), self._trainer.strategy.root_device
        seed_random_numbers(seed + first, device)
        for number, batch in enumerate(self._loader, first + 1):
            if self._skip:
                self._skip -= 1
            else:
                yield batch
            seed_random_numbers(seed + number, device)
        self._passes += 1

    def state(self, finished: bool) -> dict[str, Any]:
        """Return the loader's own state when this epoch began, or its current state if the run has finished."""
        state = own_state(self._loader) if finished else self._start
        kept = {path for path, value in self._first.items() if type(value) in NUMBERS and value == state.get(path)}
        return {path: value for path, value in state.items() if path not in kept}


class StatefulRepeatableLoader(RepeatableLoader):
    """Wrap a loader that has a ``state_dict``, which Lightning saves and loads. It finds its position itself."""

    def state_dict(self) -> Any:
        return self._loader.state_dict()

    def load_state_dict(self, state: Any) -> None:
        self._loader.load_state_dict(state)


def has_state(loader: Any) -> bool:
    """Return True if Lightning saves and loads the state of this loader."""
    return hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")


def repeatable_loaders(trainer: Trainer) -> list[RepeatableLoader]:
    """Return the training loaders, in the order in which Lightning uses them."""
    return [one for one in CombinedLoader(trainer.train_dataloader).flattened if isinstance(one, RepeatableLoader)]


def own_state(loader: Any, new: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the numbers and the states of random generators in a loader and its parts, by path; first set ``new``."""
    state: dict[str, Any] = {}
    parts: list[tuple[str, Any]] = [("", loader)]
    seen: set[int] = set()
    if has_state(loader):
        return state
    while parts and len(seen) < MAX_PARTS:
        path, part = parts.pop()
        items = part if isinstance(part, dict | list | tuple) else getattr(part, "__dict__", {})
        if id(part) in seen or isinstance(part, NOT_SEARCHED) or len(items) > MAX_ITEMS:
            continue
        seen.add(id(part))
        for name, value in items.items() if isinstance(items, dict) else enumerate(items):
            key, read, write = f"{path}.{name}", None, None
            if name == "_iterator":  # torch's iterator over the workers
                continue
            parts.append((key, value))
            if isinstance(value, torch.Generator):
                read, write = value.get_state, value.set_state
            elif isinstance(value, random.Random):
                read, write = value.getstate, value.setstate
            elif isinstance(value, np.random.RandomState):
                read, write = partial(value.get_state, legacy=False), value.set_state
            elif isinstance(value, np.random.Generator):
                generator = value.bit_generator
                read, write = partial(getattr, generator, "state"), partial(setattr, generator, "state")
            elif type(value) in NUMBERS and isinstance(items, dict):
                read, write = partial(items.get, name), partial(items.__setitem__, name)
            else:
                continue
            if new and key in new:
                write(new[key])
            state[key] = apply_to_collection(read(), np.ndarray, np.ndarray.tolist)  # safe to read from a checkpoint
    return state
