"""Which photo is trained on, validated on or tested on; split.csv."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from datamodules.errors import DataError
from datamodules.files import TEXT
from datamodules.photos.find import SPLITS, TRAIN, LeftOut, Listing
from datamodules.photos.paths import Paths
from datamodules.text import name_first, plural, printable

COLUMNS = ("path", "label", "split")  # of split.csv
NAMED = 10  # files that a message names before it says how many more there are


def copies_across(sides: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Which pictures (bool array) have a copy on another side.

    `sides` are their labels or splits, `groups` those of :func:`~datamodules.photos.scan.content_groups`.
    """
    mixed = np.zeros(len(sides), bool)
    mixed[groups[sides != sides[groups]]] = True
    return mixed[groups]


def stratified_split(labels: np.ndarray, groups: np.ndarray, order: np.ndarray, val_size: float) -> np.ndarray:
    """Choose the validation pictures: in each class the share `val_size`, rounded, copies never apart.

    Args:
        labels: int array (n,).
        groups: int array (n,): pictures with the same number stay together; all of one class.
        order: array (n,): groups are chosen by the value of their first picture, the smallest first.
        val_size: in (0, 1).

    Returns:
        bool array (n,). A class of two groups or more has pictures on both sides, one of a single group none.
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
            if not room:
                break
        if room == wanted:  # nothing but large groups
            taken[ranked[np.argmin(sizes[ranked])]] = True
        chosen[members] = taken[group]
    return chosen


def apply_split_file(listing: Listing, split_file: str) -> Listing:
    """`listing` with the splits of `split_file`, without what is not in it."""
    wanted = list(read_split_file(split_file))
    here, csv_name = printable(str(listing.root)), printable(split_file)
    keys = listing.paths.hashes()
    by_key = np.argsort(keys)
    asked = Paths.from_iterable(path for path, _, _ in wanted).hashes()
    _, firsts = np.unique(asked, return_index=True)
    if len(again := np.setdiff1d(np.arange(len(asked)), firsts)):
        names = name_first(list(dict.fromkeys(wanted[row][0] for row in again)), NAMED)
        raise DataError(
            f"{csv_name} names {plural(len(again), 'picture')} more than once ({names}): keep one line for each"
        )
    at = by_key[np.searchsorted(keys, asked, sorter=by_key).clip(max=len(keys) - 1)]
    if len(missing := np.flatnonzero(keys[at] != asked)):
        names = name_first([wanted[row][0] for row in missing], NAMED)
        raise DataError(
            f"{plural(len(missing), 'picture')} of {csv_name} missing from {here} ({names}): put back what is missing, "
            "or leave --data.split_file out"
        )
    for row, (path, label, _) in zip(at, wanted, strict=True):
        own = listing.class_names[listing.labels[row]]
        if label != own:
            raise DataError(
                f"{csv_name} says {printable(path)} is {printable(label)}, its folder says {printable(own)}: "
                "move the file or mend the line"
            )
    splits = np.full(len(keys), -1, np.int8)
    splits[at] = [split for _, _, split in wanted]
    extra = np.flatnonzero(splits < 0)
    left_out = [LeftOut(listing.paths[r], "not in the split file", split_file) for r in extra]
    notes = [f"{plural(len(extra), 'picture')} left out: not in {csv_name}"] * bool(len(extra))
    listing = replace(listing, splits=splits, left_out=[*listing.left_out, *left_out], notes=[*listing.notes, *notes])
    learned = {label for _, label, split in wanted if split == TRAIN}
    if not learned:
        raise DataError(f"{csv_name} has no line with split train: give a run's split.csv")
    return listing.rows(np.flatnonzero(splits >= 0)).only(learned)


def read_split_file(split_file: str) -> Iterator[tuple[str, str, int]]:
    """Yield (path, label, split) of each line of a split file.

    Raises:
        DataError: it cannot be read, or a line is not understood.
    """
    name = printable(split_file)
    shape = "its lines are path,label,split with split train, val or test"
    try:
        with Path(split_file).expanduser().open(**TEXT) as file:
            table = csv.reader(file)
            if next(table, None) != list(COLUMNS):
                raise DataError(f"{name} does not begin with path,label,split: give a run's split.csv")
            for row in table:
                if len(row) != len(COLUMNS) or row[2] not in SPLITS:
                    raise DataError(f"{name}, line {table.line_num}, is not understood: {shape}")
                yield row[0], row[1], SPLITS.index(row[2])
    except (OSError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"{name} cannot be read ({reason}): give a run's split.csv") from error
