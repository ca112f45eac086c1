"""Convert what a checkpoint contains to plain values, so that it opens without executing code in the file."""

import contextlib
import copy
import dataclasses
import functools
import io
import os
import sys
import typing
from collections import Counter, OrderedDict
from collections.abc import Mapping
from enum import Enum
from typing import Any

import numpy as np
import torch
from jsonargparse import ArgumentParser

from lit_training.errors import CheckpointError, is_rank_zero

SIMPLE = (type(None), bool, int, float, complex, str, bytes, torch.Size, torch.dtype, torch.device)
NOT_SAVED = "not saved in this checkpoint: "


def to_plain(value: Any, changed: list[str]) -> Any:
    """Return a copy with plain values. Append the name of each class that gets another form to ``changed``.

    Raise an error for a value that torch does not load without executing code. Its class is the last in ``changed``.
    """
    kind = type(value)
    if isinstance(value, torch.Tensor) or kind in SIMPLE:
        return value
    if kind in (list, tuple, set):
        return kind([to_plain(item, changed) for item in value])
    if isinstance(value, dict):
        plain: Any = copy.copy(value) if kind in (OrderedDict, Counter) else {}  # keeps attributes of a state_dict
        plain.clear()
        plain.update({to_plain(key, changed): to_plain(item, changed) for key, item in value.items()})
        changed += [] if kind in (dict, OrderedDict, Counter) else [kind.__name__]
        return plain
    if isinstance(value, np.number | np.bool | np.str_):
        return value.item()
    changed.append(kind.__name__)
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_plain(vars(value), changed)
    for base in (int, float, str):
        if isinstance(value, base):
            return base(value)
    torch.save(value, buffer := io.BytesIO())
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=True)
    changed.pop()
    return loaded


def plain_arguments(values: Mapping[str, Any], constructor: Any = None) -> dict[str, Any]:
    """Return the arguments of a constructor as plain values. :func:`to_arguments` refuses one that has no plain value.

    With ``constructor``, print a note about each argument that it will not get back.
    """
    plain: dict[str, Any] = {}
    for name, value in values.items():
        changed: list[str] = []
        try:
            plain[name] = to_plain(value, changed)
            returns = not changed or bool(to_arguments(constructor, {name: plain[name]})[name] == value)
        except Exception:  # pickling and comparing may raise any error
            returns = False
        form = f"only as {type(plain[name]).__name__}" if name in plain else "not at all"
        plain.setdefault(name, NOT_SAVED + type(value).__name__)
        if constructor is not None and not returns:
            text = f"a checkpoint holds the argument {name} ({type(value).__name__}) {form}"
            print_once(f"note: {text}: evaluate.py and predict.py may not open this run, --resume does")
    return plain


def to_arguments(constructor: Any, plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that became ``plain``: jsonargparse parses them as the constructor's annotations say."""
    arguments, hints = dict(plain), {}
    with contextlib.suppress(Exception):  # annotations can be wrong
        hints = typing.get_type_hints(constructor.__init__)
    for name, value in plain.items():
        if isinstance(value, str) and value.startswith(NOT_SAVED):
            raise CheckpointError(f"the argument {name} is {value}")
        if name in hints and isinstance(value, str | dict | list | tuple):
            with contextlib.suppress(Exception):  # not a value of the command line
                parser = ArgumentParser(exit_on_error=False)
                parser.add_argument("--value", type=hints[name])
                arguments[name] = parser.instantiate(parser.parse_object({"value": copy.deepcopy(value)})).value
    return arguments


def plain_checkpoint(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint with plain values. Print a note, once, about each part that has no plain values."""
    states = dict(checkpoint.get("callbacks", {}))
    plain = {**checkpoint, "callbacks": states} if states else dict(checkpoint)
    for key in {"hyper_parameters", "datamodule_hyper_parameters"} & plain.keys():
        plain[key] = plain_arguments(plain[key])
    for part, name in [(states, name) for name in states] + [(plain, name) for name in plain]:
        changed: list[str] = []
        try:
            part[name] = to_plain(part[name], changed)
            text = f"checkpoints hold {{}} of {name} as plain values"
        except Exception:  # pickling may raise any error
            if part is states:
                del states[name]
                text = f"checkpoints do not hold the state of {name}, because of {{}}: --resume starts it anew"
            else:
                text = f"--resume, evaluate.py and predict.py cannot open the checkpoints, because of {{}} in {name}"
            changed = changed[-1:]
        if changed:
            print_once(f"note: {text.format(', '.join(dict.fromkeys(changed)))}")
    return plain


@functools.cache
def print_once(text: str) -> None:
    """Print a line on stderr, on rank 0."""
    if is_rank_zero():
        print(text, file=sys.stderr)
