"""Read and restore what objects of the user change in their attributes while they train, as plain values."""

import pickle
import random
import sys
from argparse import Namespace
from collections import deque
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities.apply_func import apply_to_collection
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset

from lit_training.runs.foreign import PACKAGES
from lit_training.runs.plain import SIMPLE

GENERATORS: tuple[tuple[type, Any, Any], ...] = (  # class, functions that read and write its state
    (torch.Generator, torch.Generator.get_state, torch.Generator.set_state),
    (random.Random, random.Random.getstate, random.Random.setstate),
    (np.random.RandomState, np.random.RandomState.get_state, np.random.RandomState.set_state),
    (np.random.Generator, lambda own: own.bit_generator.state, lambda own, to: setattr(own.bit_generator, "state", to)),
)
FORMS: dict[str, tuple[type, Any, Any]] = {  # mark -> class, functions that return the plain value, and the value again
    "\0array": (np.ndarray, lambda array: torch.from_numpy(array.copy()), Tensor.numpy),
    "\0deque": (deque, lambda items: [[*items], items.maxlen], lambda saved: deque(*saved)),
    "\0path": (Path, str, Path),
    "\0enum": (Enum, lambda member: member.name, str),
}
ON_DEVICE = "\0device"  # the mark of a tensor that is not on the CPU
NOT_SEARCHED = (LightningModule, LightningDataModule, Trainer, Optimizer, LRScheduler, Tensor)
"""Their state is elsewhere in a checkpoint, or they have none."""
OF_LIGHTNING = vars(LightningModule()).keys() - {"_modules"}
MAX_ITEMS, MAX_PARTS = 1_000, 10_000


class OwnState:
    """The plain values and the states of random generators in an object and its parts, now.

    A value with more than ``max_numbers`` numbers is left out: it holds data. Parts of a class in ``skipped`` too.
    """

    def __init__(self, root: Any, max_numbers: float = float("inf"), skipped: tuple[type, ...] = ()) -> None:
        self.values: dict[tuple[Any, ...], Any] = {}
        """Names of attributes, keys and indices on the way to a value -> the plain value."""
        self.iterators: list[str] = []
        """Names of iterators. Their position cannot be saved."""
        self._parts: dict[tuple[Any, ...], Any] = {}
        # the buffers that checkpoints contain
        saved = set(map(id, root.state_dict(keep_vars=True).values())) if isinstance(root, nn.Module) else set()
        waiting: list[tuple[tuple[Any, ...], Any]] = [((), root)]
        seen: set[int] = set()
        while waiting and len(seen) < MAX_PARTS:
            way, part = waiting.pop()
            if id(part) in seen:
                continue
            if way and not _is_searched(part, skipped):
                self.iterators += [".".join(map(str, way))] * isinstance(part, Iterator)
                continue
            seen.add(id(part))
            self._parts[way] = part
            for name, value in _named_values(part, saved):
                try:
                    self.values[(*way, name)] = _read(value, [max_numbers])
                except Exception:  # a value that is not plain; tensors of special kinds may raise any error
                    waiting.append(((*way, name), value))

    def digests(self) -> dict[tuple[Any, ...], int]:
        """Return a hash of each value, to find out later which ones have changed."""
        return {way: hash(pickle.dumps(value)) for way, value in self.values.items()}

    def changed(self, first: dict[tuple[Any, ...], int]) -> dict[tuple[Any, ...], Any]:
        """Return the values that differ from those of which ``first`` are the :meth:`digests`."""
        return {way: self.values[way] for way, digest in self.digests().items() if first.get(way) != digest}

    def restore(self, saved: dict[tuple[Any, ...], Any], device: torch.device) -> None:
        """Set the values ``saved`` in the object. Tensors that were not on the CPU are moved to ``device``."""
        for way, plain in saved.items():
            part, name = self._parts.get(way[:-1]), way[-1]
            if part is None or pickle.dumps(self.values.get(way)) == pickle.dumps(plain):
                continue
            old = dict(_named_values(part)).get(name)
            new = to_value(plain, device)
            for kind, _, write in GENERATORS:
                if isinstance(old, kind):
                    write(old, new)
                    break
            else:
                if isinstance(old, Enum):
                    new = type(old)[new]
                if isinstance(old, Tensor) and old.requires_grad:  # an optimizer may have it
                    old.data.copy_(new)
                elif isinstance(new, list | set | dict | deque) and isinstance(old, type(new)):  # others may have it
                    old.clear()
                    (old.extend if isinstance(old, list | deque) else old.update)(new)
                elif isinstance(part, dict | list):
                    part[name] = new
                elif not isinstance(part, tuple) and not isinstance(getattr(part, name, None), nn.Parameter):
                    setattr(part, name, new)  # ModelPruning replaces parameters by plain tensors


def own_states(trainer: Trainer) -> list[OwnState]:
    """Return the state of the model, and of the user's data module and callbacks that save no state themselves."""
    others: list[Any] = [*trainer.callbacks, getattr(trainer, "datamodule", None)]  # type: ignore[attr-defined]
    own = [one for one in others if type(one).__module__.partition(".")[0] not in PACKAGES]
    own = [one for one in own if type(one).state_dict in (Callback.state_dict, LightningDataModule.state_dict)]
    data = [OwnState(one, 10_000, skipped=(Dataset, DataLoader)) for one in own]
    return [OwnState(trainer.lightning_module, skipped=(Dataset, DataLoader)), *data]


def _named_values(part: Any, saved: set[int] | None = None) -> list[tuple[Any, Any]]:
    """Return the items of a container or the attributes of an object; of the buffers only those not in ``saved``."""
    if isinstance(part, dict | list | tuple):
        items = part.items() if isinstance(part, dict) else enumerate(part)
        return list(items) if len(part) <= MAX_ITEMS else []
    items = getattr(part, "__dict__", {}).items()
    if not isinstance(part, nn.Module):
        return list(items)
    buffers = [(name, one) for name, one in part.named_buffers(recurse=False) if id(one) not in (saved or ())]
    return [item for item in items if item[0] not in OF_LIGHTNING] + buffers


def _is_searched(part: Any, skipped: tuple[type, ...]) -> bool:
    """Return False for objects of Python, of torch.distributed, and for torch's iterators: they have no own state."""
    if isinstance(part, dict | list | tuple | SimpleNamespace | Namespace):
        return True
    package = f"{type(part).__module__}."
    of_python = package.partition(".")[0] in sys.stdlib_module_names or package.startswith("torch.distributed.")
    of_torch = isinstance(part, Iterator) and package.startswith("torch.")
    return not (of_python or of_torch or isinstance(part, NOT_SEARCHED + skipped))


def _read(value: Any, left: list[float]) -> Any:
    """Return the state of a random generator, or a plain copy of a value. Raise a TypeError if there is none."""
    for kind, read, _ in GENERATORS:
        if isinstance(value, kind):
            return apply_to_collection(read(value), np.ndarray, np.ndarray.tolist)  # a checkpoint holds no arrays
    return _plain(value, left)


def _plain(value: Any, left: list[float]) -> Any:
    left[0] -= value.numel() if isinstance(value, Tensor) else 1
    if left[0] < 0:
        raise TypeError("too large")
    kind = type(value)
    if kind in SIMPLE:
        return value
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        plain = value.detach().cpu().clone()
        return plain if value.device.type == "cpu" else {ON_DEVICE: plain}
    if isinstance(value, np.generic):
        return value.item()
    if kind in (list, tuple, set):
        return kind([_plain(item, left) for item in value])
    if isinstance(value, dict):
        return {_plain(key, left): _plain(item, left) for key, item in value.items()}
    for mark, (known, to_plain, _) in FORMS.items():
        if isinstance(value, known):
            return {mark: _plain(to_plain(value), left)}
    raise TypeError(f"{kind.__name__} is not plain")


def to_value(plain: Any, device: torch.device) -> Any:
    """Return the value that was read as ``plain``. It shares no memory with ``plain``."""
    if isinstance(plain, dict):
        if plain.keys() == {ON_DEVICE}:
            return plain[ON_DEVICE].to(device)
        new = {key: to_value(item, device) for key, item in plain.items()}
        mark = next(iter(new), None)
        return FORMS[mark][2](new[mark]) if mark in FORMS else new
    if type(plain) in (list, set, tuple):
        return type(plain)(to_value(item, device) for item in plain)
    return plain.clone() if isinstance(plain, Tensor) else plain
