"""Split photos into train, val and test: at random, or as given in a split.csv."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from datamodules.errors import DataError
from datamodules.files import READ_TEXT_FILE
from datamodules.photos.find import SPLITS, TRAIN, LeftOut, Listing
from datamodules.text import first_names, plural, printable

SPLIT_FILE_COLUMNS = ("path", "label", "split")
MAX_NAMES_IN_MESSAGE = 10


def is_in_mixed_group(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return a bool array (n,): True for each picture in a group whose `values` are not all equal.

    `values` (n,) are, for example, labels. `groups` (n,) has the index of the first picture of each picture's group.
    """
    mixed = np.zeros(len(values), bool)
    mixed[groups[values != values[groups]]] = True
    return mixed[groups]


def choose_validation_pictures(
    labels: np.ndarray, groups: np.ndarray, order: np.ndarray, val_size: float
) -> np.ndarray:
    """Choose the fraction `val_size` of the pictures of each class, rounded, for validation. Return a bool array (n,).

    Pictures of a group (copies) stay together, so the number may differ a little. From a class with two or more groups,
    at least one group is chosen and at least one is not. From a class with only one group, no picture is chosen.

    Args:
        groups: as in :func:`is_in_mixed_group`. All pictures of a group must have the same class.
        order: array (n,), one value per picture. Groups are tried in the order of the values of their first pictures.
    """
    chosen = np.zeros(len(labels), bool)
    by_class = np.argsort(labels, kind="stable")
    for members in np.split(by_class, np.flatnonzero(np.diff(labels[by_class])) + 1):
        _, first, group, sizes = np.unique(groups[members], return_index=True, return_inverse=True, return_counts=True)
        if len(sizes) < 2:
            continue
        val_count = min(max(int(val_size * len(members) + 0.5), 1), len(members) - 1)
        is_chosen_group = np.zeros(len(sizes), bool)
        sorted_groups = np.argsort(order[members][first], kind="stable")
        remaining = val_count
        for candidate in sorted_groups.tolist():
            if sizes[candidate] <= remaining:
                is_chosen_group[candidate] = True
                remaining -= int(sizes[candidate])
        if remaining == val_count:  # every group has more than val_count pictures: choose the smallest group
            is_chosen_group[sorted_groups[np.argmin(sizes[sorted_groups])]] = True
        chosen[members] = is_chosen_group[group]
    return chosen


def apply_split_file(listing: Listing, split_file: str) -> Listing:
    """Keep only the pictures that are in the split file, and use the splits in this file.

    Raises:
        DataError: the file is not valid, or a picture in it is missing or has another class.
    """
    entries: dict[str, tuple[str, int]] = {}
    root_text, csv_text = printable(str(listing.root)), printable(split_file)
    for path, label, split in read_split_file(split_file):
        if path in entries:
            raise DataError(f"{csv_text} has more than one line for {printable(path)}: keep one of them")
        entries[path] = label, split
    trainable = {label for label, split in entries.values() if split == TRAIN}
    splits = np.full(len(listing.paths), -1, np.int8)
    left_out = [*listing.left_out]
    for row, path in enumerate(listing.paths):
        if path not in entries:
            left_out.append(LeftOut(path, "not in the split file", split_file))
            continue
        label, splits[row] = entries.pop(path)
        folder_label = listing.class_names[listing.labels[row]]
        if label != folder_label:
            raise DataError(
                f"{csv_text}: {printable(path)} has the class {printable(label)}, but is in the folder of class "
                f"{printable(folder_label)}: move the file or correct the line"
            )
    if entries:
        count_text, names = plural(len(entries), "picture"), first_names(list(entries), MAX_NAMES_IN_MESSAGE)
        raise DataError(
            f"{root_text} does not contain {count_text} of {csv_text} ({names}): restore the missing files, or leave "
            "out --data.split_file"
        )
    if not trainable:
        raise DataError(f"{csv_text} has no line with split train: give a run's split.csv")
    rows = np.flatnonzero(splits >= 0)
    left_out_count = len(splits) - len(rows)
    notes = [*listing.notes]
    notes += [f"{plural(left_out_count, 'picture')} left out: not in {csv_text}"] * bool(left_out_count)
    return replace(listing, splits=splits, left_out=left_out, notes=notes).take(rows).keep_classes(trainable)


def read_split_file(split_file: str) -> Iterator[tuple[str, str, int]]:
    """Yield (path, class name, split index) for each line. Raise DataError if the file is missing or not valid."""
    csv_text = printable(split_file)
    try:
        with Path(split_file).expanduser().open(**READ_TEXT_FILE) as file:
            table = csv.reader(file)
            if next(table, None) != list(SPLIT_FILE_COLUMNS):
                raise DataError(f"{csv_text} does not begin with path,label,split: give a run's split.csv")
            for row in table:
                if len(row) != len(SPLIT_FILE_COLUMNS) or row[2] not in SPLITS:
                    raise DataError(
                        f"{csv_text}, line {table.line_num}: must be path,label,split; split is train, val or test"
                    )
                yield row[0], row[1], SPLITS.index(row[2])
    except (OSError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"{csv_text} cannot be read ({reason}): give a run's split.csv") from error
