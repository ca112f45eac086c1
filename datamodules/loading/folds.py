"""Divide samples into folds, and make datasets of some samples of another one."""

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

    The groups come in random order, the largest first. Each one goes to the fold that has least of its classes (as
    Graham 1969 distributes jobs). If no group is in two classes, two folds differ in a class by one group at most.

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
    for rows in sorted((members[group] for group in shuffled), key=len, reverse=True):
        own = labels[rows]
        fullness = (counts[:, own] / class_sizes[own] ** 2).sum(1)
        fold = np.lexsort((totals, fullness))[0]
        np.add.at(counts[fold], own, 1)
        totals[fold] += len(rows)
        fold_of[rows] = fold
    return fold_of


def refuse_small_classes(labels: np.ndarray, groups: np.ndarray, count: int, names: Sequence[str]) -> None:
    """Raise a DataError if a class has fewer groups than there are folds."""
    sizes = {name: len(np.unique(groups[labels == label])) for label, name in enumerate(names)}
    name = min(sizes, key=lambda name: sizes[name])
    if sizes[name] < count:
        problem = f"--folds {count} needs {count} pictures of each class that are not copies, but {name}"
        fix = f"--folds {sizes[name]}" if sizes[name] > 1 else "add pictures to it, or leave --folds out"
        raise DataError(f"{problem} has {sizes[name]}: {fix}")


def join_sets(data: SplitDataModule) -> tuple[Any, Any]:
    """Return all samples of train and val as two datasets: as they are in training, and as in an evaluation.

    With photos, ``trains_on_all`` is True and ``train`` has all. Otherwise ``train`` and ``val`` must be of one class:
    the attributes that have one value for each sample are joined. Raise a DataError if this gives other samples.
    """
    if data.photos is not None:
        plain: Any = copy.copy(data)
        plain.augment, plain.sets = (), {}
        return data.dataset("train"), plain.dataset("train")
    parts: Any = [data.dataset("train"), data.dataset("val")]
    sizes, joined = [len(part) for part in parts], [copy.copy(part) for part in parts]
    for name, value in vars(parts[0]).items():
        values = [value, vars(parts[1]).get(name)]
        if all(_is_column(one, size) for one, size in zip(values, sizes, strict=True)):
            both = torch.cat(values) if isinstance(value, Tensor) else np.concatenate(values)
            for dataset in joined:
                setattr(dataset, name, both)
    is_same = [len(one) for one in joined] == [sum(sizes)] * 2 == [len(one.labels) for one in joined]
    if is_same and sizes[1]:
        samples = [dataset.__getitems__([row]) for dataset, row in ((parts[1], 0), (joined[1], sizes[0]))]
        is_same = all(torch.equal(*pair) for pair in zip(*samples, strict=True))
    if not is_same:
        raise DataError(
            f"{type(data).__name__} cannot be used with --folds: train and val must be datasets of one class with "
            "labels, whose attributes are tensors or arrays with one value per sample"
        )
    return joined[0], joined[1]


def take(dataset: Any, rows: np.ndarray) -> Any:
    """Return a copy of the dataset with the samples at ``rows`` (ints)."""
    part, size = copy.copy(dataset), len(dataset)
    for name, value in vars(dataset).items():
        if _is_column(value, size):
            setattr(part, name, value[torch.from_numpy(rows)] if isinstance(value, Tensor) else value[rows])
    if getattr(dataset, "store", None) is not None:
        part.store = dataset.store.take(rows)
    return part


def _is_column(value: Any, size: int) -> bool:
    return isinstance(value, Tensor | np.ndarray) and value.ndim > 0 and len(value) == size
