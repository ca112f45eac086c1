"""Split photos into train, val and test, by chance or by a split.csv."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from datamodules.errors import DataError
from datamodules.files import TEXT
from datamodules.photos.find import SPLITS, TRAIN, LeftOut, Listing
from datamodules.text import first_names, plural, printable

COLUMNS = ("path", "label", "split")  # of split.csv
NAMED = 10  # maximum number of files that a message names


def copies_across(sides: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return a bool array that is True for pictures with a copy on another side.

    `sides` are labels or splits, `groups` comes from :func:`~datamodules.photos.scan.content_groups`.
    """
    mixed = np.zeros(len(sides), bool)
    mixed[groups[sides != sides[groups]]] = True
    return mixed[groups]


def stratified_split(labels: np.ndarray, groups: np.ndarray, order: np.ndarray, val_size: float) -> np.ndarray:
    """Choose validation pictures: the fraction `val_size` of each class, rounded. Copies are not separated.

    Args:
        labels: int array (n,).
        groups: int array (n,). Pictures of the same group stay together; they must have the same class.
        order: array (n,). Groups with the smallest value of their first picture are chosen first.
        val_size: in (0, 1).

    Returns:
        bool array (n,), True for validation. A class with at least two groups has pictures on both sides, a class with
        one group has none in validation.
    """
    chosen = np.zeros(len(labels), bool)
    by_class = np.argsort(labels, kind="stable")
    for members in np.split(by_class, np.flatnonzero(np.diff(labels[by_class])) + 1):
        _, first, group, sizes = np.unique(groups[members], return_index=True, return_inverse=True, return_counts=True)
        if len(sizes) < 2:
            continue
        wanted = min(max(int(val_size * len(members) + 0.5), 1), len(members) - 1)
        taken = np.zeros(len(sizes), bool)
        ranked = np.argsort(order[members][first], kind="stable")
        room = wanted
        for candidate in ranked.tolist():
            if sizes[candidate] <= room:
                taken[candidate] = True
                room -= int(sizes[candidate])
        if room == wanted:  # all groups are larger than that
            taken[ranked[np.argmin(sizes[ranked])]] = True
        chosen[members] = taken[group]
    return chosen


def apply_split_file(listing: Listing, split_file: str) -> Listing:
    """Return `listing` with the splits of `split_file` and without the pictures that are not in it.

    Raises:
        DataError: the file cannot be read or does not match the folder.
    """
    wanted: dict[str, tuple[str, int]] = {}
    here, csv_name = printable(str(listing.root)), printable(split_file)
    for path, label, split in read_split_file(split_file):
        if path in wanted:
            raise DataError(f"{csv_name} names {printable(path)} more than once: keep one line for it")
        wanted[path] = label, split
    learned = {label for label, split in wanted.values() if split == TRAIN}
    splits = np.full(len(listing.paths), -1, np.int8)
    left_out = [*listing.left_out]
    for row, path in enumerate(listing.paths):
        if path not in wanted:
            left_out.append(LeftOut(path, "not in the split file", split_file))
            continue
        label, splits[row] = wanted.pop(path)
        own = listing.class_names[listing.labels[row]]
        if label != own:
            raise DataError(
                f"{csv_name} says {printable(path)} is {printable(label)}, its folder says {printable(own)}: "
                "move the file or correct the line"
            )
    if wanted:
        many, names = plural(len(wanted), "picture"), first_names(list(wanted), NAMED)
        raise DataError(f"{here} lacks {many} of {csv_name} ({names}): restore them, or leave out --data.split_file")
    if not learned:
        raise DataError(f"{csv_name} has no line with split train: give a run's split.csv")
    rows = np.flatnonzero(splits >= 0)
    extra = len(splits) - len(rows)
    notes = [*listing.notes, *[f"{plural(extra, 'picture')} left out: not in {csv_name}"] * bool(extra)]
    return replace(listing, splits=splits, left_out=left_out, notes=notes).take(rows).keep_classes(learned)


def read_split_file(split_file: str) -> Iterator[tuple[str, str, int]]:
    """Yield (path, label, split) for each line of a split file.

    Raises:
        DataError: the file or one of its lines cannot be read.
    """
    name = printable(split_file)
    try:
        with Path(split_file).expanduser().open(**TEXT) as file:
            table = csv.reader(file)
            if next(table, None) != list(COLUMNS):
                raise DataError(f"{name} does not begin with path,label,split: give a run's split.csv")
            for row in table:
                if len(row) != len(COLUMNS) or row[2] not in SPLITS:
                    raise DataError(
                        f"{name}, line {table.line_num}: must be path,label,split with split train, val or test"
                    )
                yield row[0], row[1], SPLITS.index(row[2])
    except (OSError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"{name} cannot be read ({reason}): give a run's split.csv") from error
