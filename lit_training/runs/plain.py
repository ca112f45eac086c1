"""Convert what a checkpoint contains to plain values, so that it opens without executing code in the file."""

import contextlib
import copy
import inspect
import io
import os
from argparse import ArgumentError
from collections import Counter, OrderedDict
from collections.abc import Mapping
from enum import Enum
from typing import Any

import numpy as np
import torch
import yaml
from jsonargparse import ArgumentParser
from lightning.fabric.utilities.apply_func import apply_to_collection

from datamodules.text import print_once
from lit_training.errors import CheckpointError

SIMPLE = (type(None), bool, int, float, complex, str, bytes, torch.Size, torch.dtype, torch.device)
UNSAVED = {
    "": "checkpoints do not hold it: --resume has to do without it",
    "callbacks": "checkpoints do not hold its state: --resume starts it anew",
    "state_dict": "checkpoints do not hold it: --resume, evaluate.py and predict.py need it",
} | dict.fromkeys(
    ("hyper_parameters", "datamodule_hyper_parameters"),
    "checkpoints do not hold it: --resume works, but not evaluate.py and predict.py",
)
"""Part of a checkpoint that consists of parts -> what is printed about a part that has no plain value."""
NOT_SAVED = "not saved in this checkpoint: "
MISSING_PARTS = "left_out"  # key in a checkpoint: the end of an error message about the parts that it does not hold
FORMS: list[tuple[Any, Any]] = [  # class -> function that returns the plain value
    (Enum, lambda value: value.name),
    (os.PathLike, os.fspath),
    (np.ndarray, lambda value: torch.from_numpy(value.copy())),
    *((kind, kind) for kind in (int, float, str)),
]


def to_plain(value: Any, changed: list[str]) -> Any:
    """Return a copy with plain values. Append the name of each class that gets another form to ``changed``.

    Raise an error for a value that torch does not load without executing code. Its class is the last in ``changed``.
    """
    kind = type(value)
    if isinstance(value, torch.Tensor) or kind in SIMPLE:
        return value
    if kind in (list, tuple, set):
        return kind([to_plain(item, changed) for item in value])
    if isinstance(value, np.number | np.bool_ | np.str_):
        return value.item()
    if kind in (OrderedDict, Counter):
        plain = copy.copy(value)  # a state_dict has an attribute _metadata
        plain.update({key: to_plain(item, changed) for key, item in value.items()} if kind is OrderedDict else {})
        return plain
    changed += [kind.__name__] if kind is not dict else []
    if isinstance(value, dict):
        return {to_plain(key, changed): to_plain(item, changed) for key, item in value.items()}
    for known, convert in FORMS:
        if isinstance(value, known):
            return convert(value)
    torch.save(value, buffer := io.BytesIO())
    buffer.seek(0)
    torch.load(buffer, weights_only=True)
    changed.pop()
    return value


def plain_checkpoint(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return a checkpoint with plain values. Print a note, once, about each part that gets another form, or none."""
    plain = dict(checkpoint)
    groups: dict[str, Any] = {key: copy.copy(plain[key]) for key in UNSAVED if key in plain}
    plain |= groups
    left_out: list[str] = []
    for key, name in [(key, name) for key, part in [*groups.items(), ("", plain)] for name in part]:
        group = groups.get(key, plain)
        changed, fate = list[str](), "checkpoints hold it as plain values"
        try:
            group[name] = to_plain(group[name], changed)
        except Exception:  # pickling may raise any error
            changed = changed[-1:] or ["nested too deeply"]
            fate = UNSAVED[key]
            if key.endswith("hyper_parameters"):
                group[name] = NOT_SAVED + "".join(changed)
            else:
                del group[name]
                left_out.append(f"{name} ({changed[0]})")
        if changed:
            print_once(f"{name} ({', '.join(dict.fromkeys(changed))}): {fate}")
    if left_out:
        plain[MISSING_PARTS] = f"; it does not hold {', '.join(left_out)}: let on_save_checkpoint save plain values"
    return plain


def is_writable(value: Any) -> bool:
    """Return True if config.yaml can hold this default value of an argument, so that it can be read again."""
    if isinstance(value, type) or inspect.isroutine(value):
        return "<" not in value.__qualname__  # else it is a lambda, or inside a function
    if isinstance(value, os.PathLike | np.float64 | Enum):
        return not isinstance(value, str)
    with contextlib.suppress(yaml.YAMLError):
        return bool(yaml.safe_dump(value))
    return False


def parameters_of(kind: Any) -> dict[str, inspect.Parameter]:
    """Return the constructor parameters of a class, with those of its base classes, which ``**kwargs`` may reach."""
    makers = [base.__init__ for base in reversed(getattr(kind, "__mro__", ())) if inspect.isfunction(base.__init__)]
    return {name: one for maker in makers for name, one in inspect.signature(maker).parameters.items()}


def hidden_arguments(kind: Any) -> set[str]:
    """Return the constructor arguments that cannot be flags: jsonargparse cannot compare their default, an array."""
    return {name for name, one in parameters_of(kind).items() if not isinstance(one.default == one.empty, bool)}


def to_yaml(data: Any) -> str:
    """Return the text of a configuration. Where an argument takes functions too, jsonargparse adds a remark to text."""
    remark = "Unable to serialize instance "
    data = apply_to_collection(
        to_plain(data, []), str, lambda text: yaml.safe_load(text[len(remark) :]) if text.startswith(remark) else text
    )
    return yaml.safe_dump(data, allow_unicode=True, sort_keys=False)


def create(kind: Any, arguments: Mapping[str, Any]) -> Any:
    """Create an object. jsonargparse parses the plain arguments as annotations or default values say."""
    for name, value in arguments.items():
        if isinstance(value, str) and value.startswith(NOT_SAVED):
            raise CheckpointError(f"the argument {name} is {value}")
    parsed = dict(arguments)
    hidden = hidden_arguments(kind)
    added = ArgumentParser().add_class_arguments(kind, "new", fail_untyped=False, skip=set(hidden))
    names = {name.removeprefix("new.") for name in added}
    for name in names & set(arguments):  # one at a time, because one wrong annotation must not change the others
        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(kind, "new", fail_untyped=False, instantiate=False, skip=hidden | names - {name})
        with contextlib.suppress(ArgumentError, ValueError, TypeError):
            config = parser.parse_object({"new": {name: copy.deepcopy(arguments[name])}})
            parsed[name] = vars(parser.instantiate(config).new)[name]
    return kind(**parsed)
