"""Read and restore what objects of the user change in their attributes while they train, as plain values."""

import copy
import pickle
import random
import sys
from argparse import Namespace
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from enum import Enum
from operator import attrgetter
from pathlib import Path
from types import MemberDescriptorType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities.apply_func import apply_to_collection
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset

from datamodules.loading.module import SplitDataModule
from lit_models.base import dotted_path
from lit_training.runs.own_classes import PACKAGES
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
    "\0frozenset": (frozenset, set, frozenset),
    "\0numbers": (array, lambda items: [items.typecode, items.tolist()], lambda saved: array(*saved)),
    "\0path": (Path, str, Path),
    "\0enum": (Enum, lambda member: member.name, str),
}
ON_DEVICE = "\0device"  # the mark of a tensor that is not on the CPU
OBJECT = "\0object"  # the mark of an object of the user in a collection: [module, name of the class, its values]
TRAINED, GRADIENTS = "\0requires_grad", "\0grad"  # names of what a module's parameters have
NOT_SEARCHED = (LightningDataModule, Trainer, Optimizer, LRScheduler, Tensor)
"""Their state is elsewhere in a checkpoint, or they have none."""
OF_LIGHTNING = vars(LightningModule()).keys() - {"_modules", "training"}
MAX_ITEMS, MAX_PARTS, MAX_NUMBERS = 1_000, 10_000, 10_000
NO_STATE = (Callback.state_dict, LightningDataModule.state_dict)


class OwnState:
    """The plain values and the states of random generators in an object and its parts, now.

    Left out: values with more than ``max_numbers`` numbers, which are data, parts of a class in ``skipped``, and
    parameters and buffers whose id is in ``saved``. The values with ``gradients`` have those of parameters.
    """

    def __init__(
        self,
        root: Any,
        max_numbers: float = float("inf"),
        skipped: tuple[type, ...] = (),
        saved: frozenset[int] = frozenset(),
        gradients: bool = False,
    ) -> None:
        self.values: dict[tuple[Any, ...], Any] = {}
        """Names of attributes, keys and indices on the way to a value -> the plain value."""
        self.iterators: list[str] = []
        """Names of iterators. Their position cannot be saved."""
        self._parts: dict[tuple[Any, ...], Any] = {}
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
            for name, value in _named_values(part, saved, gradients):
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
            if name in (TRAINED, GRADIENTS):
                for parameter, value in new.items():
                    if hasattr(part, parameter):  # ModelPruning renames parameters
                        setattr(getattr(part, parameter), name[1:], value)
                continue
            for kind, _, write in GENERATORS:
                if isinstance(old, kind):
                    write(old, new)
                    break
            else:
                if isinstance(old, Enum):
                    new = type(old)[new]
                is_parameter = isinstance(part, nn.Module) and isinstance(getattr(part, name, None), nn.Parameter)
                if isinstance(old, Tensor) and (old.requires_grad or is_parameter):  # an optimizer may have it
                    old.data.copy_(new)
                elif isinstance(new, list | set | dict | deque) and isinstance(old, type(new)):  # others may have it
                    if isinstance(new, list | deque):
                        new = [*map(_reuse, old, new), *list(new)[len(old) :]]
                    old.clear()
                    (old.extend if isinstance(old, list | deque) else old.update)(new)
                elif isinstance(part, dict | list):
                    part[name] = new
                elif not isinstance(part, tuple):
                    setattr(part, name, new)


def weights_restorer(trainer: Trainer) -> Callable[[], None]:
    """Return a function that sets the weights and the optimizers to what they are now."""
    model = trainer.lightning_module
    tensors = [one for one in (*model.parameters(), *model.buffers()) if not is_lazy(one)]
    weights = [one.detach().clone() for one in tensors]
    states = [copy.deepcopy(optimizer.state_dict()) for optimizer in trainer.optimizers]

    def restore() -> None:
        with torch.no_grad():
            for one, weight in zip(tensors, weights, strict=True):
                one.copy_(weight)
        for optimizer, state in zip(trainer.optimizers, states, strict=True):
            if len(state["param_groups"]) == len(optimizer.param_groups):  # else fine-tuning has added a group
                optimizer.load_state_dict(copy.deepcopy(state))

    return restore


def own_states(trainer: Trainer) -> dict[str, OwnState]:
    """Return the state of the model, and of the user's data and callbacks that save no state themselves, by name."""
    model, data = trainer.lightning_module, getattr(trainer, "datamodule", None)
    saved = frozenset(map(id, model.state_dict(keep_vars=True).values()))
    hooks = ("optimizer_step", "optimizer_zero_grad")  # a model with its own keeps gradients for several batches
    gradients = not model.automatic_optimization or any(is_overridden(name, model) for name in hooks)
    states = {"model": OwnState(model, skipped=(Dataset, DataLoader), saved=saved, gradients=gradients)}
    states["trainer"] = own = OwnState(trainer, skipped=(object,))  # the settings that users change in a step
    own.values = {way: own.values[way] for way in own.values if not way[0].startswith(("_", "should_stop"))}
    others: list[Any] = [*trainer.callbacks, data]  # type: ignore[attr-defined]
    for one in others:
        if type(one).__module__.partition(".")[0] not in PACKAGES and type(one).state_dict in NO_STATE:
            limit = float("inf") if isinstance(one, Callback) else MAX_NUMBERS
            name = dotted_path(type(one))
            while name in states:
                name += " again"
            states[name] = OwnState(one, limit, skipped=(Dataset, DataLoader, LightningModule), saved=saved)
    if not isinstance(data, SplitDataModule):
        states["val"] = OwnState({"val": trainer.val_dataloaders}, MAX_NUMBERS, skipped=(LightningModule,))
    return states


def _named_values(part: Any, saved: frozenset[int] = frozenset(), gradients: bool = True) -> list[tuple[Any, Any]]:
    """Return the items of a container or the attributes of an object, and the weights that are not in ``saved``."""
    if isinstance(part, dict | list | tuple):
        items = part.items() if isinstance(part, dict) else enumerate(part)
        return list(items) if len(part) <= MAX_ITEMS else []
    items = _attributes(part).items()
    if not isinstance(part, nn.Module):
        return list(items)
    parameters = list(part.named_parameters(recurse=False))
    weights = [*parameters, *part.named_buffers(recurse=False)]
    values = [item for item in items if item[0] not in OF_LIGHTNING]
    values += [(name, one.detach()) for name, one in weights if id(one) not in saved and not is_lazy(one)]
    values += [(TRAINED, {name: one.requires_grad for name, one in parameters})] if parameters else []
    values += [(GRADIENTS, {name: one.grad for name, one in parameters})] if parameters and gradients else []
    return values


def _attributes(part: Any) -> dict[str, Any]:
    """Return the attributes of an object, also those in ``__slots__``."""
    members = [item for base in type(part).__mro__ if "__slots__" in vars(base) for item in vars(base).items()]
    slots = [name for name, one in members if isinstance(one, MemberDescriptorType) and hasattr(part, name)]
    return getattr(part, "__dict__", {}) | {name: getattr(part, name) for name in slots}


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
    return _plain(dict(value) if isinstance(value, dict) else value, left, is_attribute=True)


def _plain(value: Any, left: list[float], is_attribute: bool = False) -> Any:
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
    if kind is dict:
        return {_plain(key, left): _plain(item, left) for key, item in value.items()}
    for mark, (known, to_plain, _) in FORMS.items():
        if isinstance(value, known):
            return {mark: _plain(to_plain(value), left)}
    is_record = isinstance(value, tuple) and hasattr(value, "_make")  # a named tuple
    in_collection = not is_attribute and not isinstance(value, dict | list | tuple | nn.Module | Dataset | DataLoader)
    if is_record or (in_collection and _is_searched(value, ()) and (hasattr(value, "__dict__") or _attributes(value))):
        values = list(value) if is_record else _attributes(value)
        return {OBJECT: [kind.__module__, kind.__qualname__, _plain(values, left)]}
    raise TypeError(f"{kind.__name__} is not plain")


def _reuse(old: Any, new: Any) -> Any:
    """Return ``old`` with the attributes of ``new`` if both are objects of one class of the user, else ``new``."""
    if type(old) is not type(new) or not hasattr(new, "__dict__"):
        return new
    vars(old).clear()
    for name, value in _attributes(new).items():
        object.__setattr__(old, name, value)
    return old


def to_value(plain: Any, device: torch.device) -> Any:
    """Return the value that was read as ``plain``. It shares no memory with ``plain``."""
    if isinstance(plain, dict):
        if plain.keys() == {ON_DEVICE}:
            return plain[ON_DEVICE].to(device)
        if plain.keys() == {OBJECT}:
            module, name, values = plain[OBJECT]
            kind = attrgetter(name)(sys.modules[module])  # never an import: the user's modules are there
            if isinstance(values, list):
                return kind._make(to_value(values, device))
            one = kind.__new__(kind)
            for name, item in to_value(values, device).items():
                object.__setattr__(one, name, item)  # it may be frozen
            return one
        new = {key: to_value(item, device) for key, item in plain.items()}
        mark = next(iter(new), None)
        return FORMS[mark][2](new[mark]) if mark in FORMS else new
    if type(plain) in (list, set, tuple):
        return type(plain)(to_value(item, device) for item in plain)
    return plain.clone() if isinstance(plain, Tensor) else plain
