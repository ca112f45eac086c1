"""Divide samples into folds, and make datasets of some samples of another one."""

import contextlib
import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.errors import DataError
from datamodules.loading.module import SplitDataModule


def assign_folds(labels: np.ndarray, groups: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return the fold of each of n samples, (n,) int64 from 0 to ``count`` - 1. Samples of one group share a fold.

    The groups come in random order, the largest first, class by class. Each one goes to the fold that has least of its
    classes, as Graham 1969 distributes jobs. If no group is in two classes, the numbers of samples of a class in two
    folds differ by at most its largest group.

    Args:
        labels: (n,) class indices, from 0.
        groups: (n,) numbers. Samples with the same number stay together.
    """
    order = np.argsort(groups, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
    shuffled = torch.randperm(len(members), generator=torch.Generator().manual_seed(seed)).tolist()
    class_sizes = np.bincount(labels).clip(1)
    counts, totals = np.zeros((count, len(class_sizes))), np.zeros(count)
    fold_of = np.empty(len(labels), np.int64)
    for rows in sorted((members[group] for group in shuffled), key=lambda rows: (-len(rows), labels[rows[0]])):
        own = labels[rows]
        fullness = (counts[:, own] / class_sizes[own] ** 2).sum(1)
        fold = np.lexsort((totals, fullness))[0]
        np.add.at(counts[fold], own, 1)
        totals[fold] += len(rows)
        fold_of[rows] = fold
    return fold_of


def refuse_small_classes(labels: np.ndarray, groups: np.ndarray, count: int, names: Sequence[str]) -> None:
    """Raise a DataError if a class has fewer groups than there are folds."""
    size, name = min((len(np.unique(groups[labels == label])), name) for label, name in enumerate(names))
    if size < count:
        fix = f"--folds {size}" if size > 1 else "add pictures to it, or leave --folds out"
        raise DataError(f"--folds {count} is more than the {size} pictures (without copies) of class {name}: {fix}")


def join_sets(data: SplitDataModule) -> tuple[Any, Any]:
    """Return two datasets of all samples of train and val: with the augmentation of the training, and without.

    The tensors and arrays with one value per sample are joined. With photos, ``train`` has all samples already. Raise a
    DataError if the datasets cannot be joined.
    """
    if data.photos is not None:
        plain: Any = copy.copy(data)
        plain.augment, plain.sets = (), {}
        return data.dataset("train"), plain.dataset("train")
    parts: Any = [data.dataset("train"), data.dataset("val")]
    train, val = parts
    columns = [name for name in vars(train) if all(_is_column(vars(part).get(name), part) for part in parts)]
    joined: Any = [copy.copy(train), copy.copy(val)]
    for name in columns:
        values = [getattr(part, name) for part in parts]
        join: Any = np.concatenate if isinstance(values[0], np.ndarray) else torch.cat
        vars(joined[0])[name] = vars(joined[1])[name] = join(values)
    is_same = False
    with contextlib.suppress(Exception):  # other attributes could decide what a sample is
        first = zip(val.__getitems__([0]), joined[1].__getitems__([len(train)]), strict=True) if len(val) else []
        is_same = all(torch.equal(*pair) for pair in first) and len(joined[1]) == len(joined[0].labels)
    if not is_same:
        needs = "tensors or arrays with one value per sample, one of them labels"
        raise DataError(f"--folds needs datasets that consist of {needs}; {type(data).__name__} has others")
    return joined[0], joined[1]


def take(dataset: Any, rows: np.ndarray) -> Any:
    """Return a copy of the dataset with the samples at ``rows`` (ints)."""
    part = copy.copy(dataset)
    for name in [name for name, value in vars(dataset).items() if _is_column(value, dataset)]:
        vars(part)[name] = vars(dataset)[name][rows]
    return part


def _is_column(value: Any, dataset: Any) -> bool:
    return isinstance(value, Tensor | np.ndarray) and value.ndim > 0 and len(value) == len(dataset)
