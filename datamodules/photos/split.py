"""Choose validation photos at random, or use the splits in a split.csv."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datamodules.errors import DataError
from datamodules.files import READ_TEXT_FILE
from datamodules.photos.find import SPLITS, TRAIN, LeftOut, Listing
from datamodules.photos.near import connect
from datamodules.text import first_names, plural, printable

MAX_NAMES_IN_MESSAGE = 10


class SplitLine(NamedTuple):
    """A line of split.csv, without the path."""

    label: str
    split: str
    sha256: str = ""  # missing in runs of older versions, as the group
    group: str = ""  # the same number: these pictures stay together


SPLIT_FILE_COLUMNS = ("path", *SplitLine._fields)
_HEADS = (SPLIT_FILE_COLUMNS[:3], SPLIT_FILE_COLUMNS[:4], SPLIT_FILE_COLUMNS)


def is_in_mixed_group(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return a bool array (n,): True for pictures whose group has different `values`."""
    _, first, group = np.unique(groups, return_index=True, return_inverse=True)
    return np.bincount(group[values != values[first][group]], minlength=len(first))[group] > 0


def check_pattern(pattern: str | None) -> None:
    """Raise DataError if the value of --data.group_by is not a regular expression."""
    try:
        re.compile(pattern or "")
    except re.error as error:
        example = "--data.group_by 'patient[0-9]+'"
        raise DataError(f"group_by {pattern} is not a regular expression ({error}): {example}") from error


def group_by_path(groups: np.ndarray, paths: np.ndarray, pattern: str) -> np.ndarray:
    """Join the groups of all pictures whose paths have the same match of a pattern: its group 1, or the whole match."""
    matches, first = [re.search(pattern, path) for path in paths], dict[str, int]()
    keys = [match and match[min(1, match.re.groups)] for match in matches]
    if not any(keys):
        raise DataError(f"--data.group_by {pattern} matches no path such as {printable(paths[0])}: change the pattern")
    same_key = [first.setdefault(key, row) if key else row for row, key in enumerate(keys)]
    return connect(np.stack([np.arange(len(groups)), groups]), np.stack([np.arange(len(groups)), same_key]))


def choose_validation_pictures(
    labels: np.ndarray, groups: np.ndarray, order: np.ndarray, val_size: float
) -> np.ndarray:
    """Choose the fraction `val_size` of the pictures of each class, rounded, for validation. Return a bool array (n,).

    Pictures with the same number in `groups` stay together, also of several classes, so the number may differ. From a
    class with two or more groups, at least one group is chosen and at least one is not, if the other classes of these
    groups allow it. From a class with only one group, no picture is chosen. The group whose first picture (in the order
    of the rows) has the lowest `order` is tried first.
    """
    _, first, group = np.unique(groups, return_index=True, return_inverse=True)
    classes = labels.max(initial=0) + 1
    cells, sizes = np.unique(group * classes + labels, return_counts=True)
    of_group, of_class = np.divmod(cells, classes)  # each group has one row for each of its classes
    totals, chosen = np.bincount(labels, minlength=classes), np.zeros(len(first), bool)
    wanted = np.clip((val_size * totals + 0.5).astype(int), 1, totals - 1)
    remaining = np.where(np.bincount(of_class, minlength=classes) < 2, 0, wanted)
    starts = np.searchsorted(of_group, np.arange(len(first) + 1))
    for candidate in np.argsort(order[first], kind="stable").tolist():
        rows = slice(starts[candidate], starts[candidate + 1])
        if (sizes[rows] <= remaining[of_class[rows]]).all():
            chosen[candidate] = True
            remaining[of_class[rows]] -= sizes[rows]
    for label in np.flatnonzero((remaining == wanted) & (np.bincount(of_class, minlength=classes) > 1)):
        # every group has more pictures than wanted: choose the smallest that leaves some of each class
        own = np.flatnonzero(of_class == label)
        for candidate in of_group[own[np.lexsort((order[first][of_group[own]], sizes[own]))]].tolist():
            rows = slice(starts[candidate], starts[candidate + 1])
            left = remaining[of_class[rows]] - sizes[rows] + totals[of_class[rows]] - wanted[of_class[rows]]
            if (left > 0).all():
                chosen[candidate] = True
                remaining[of_class[rows]] -= sizes[rows]
                break
    return chosen[group]


def apply_split_file(listing: Listing, split_file: str, before: Listing) -> Listing:
    """Keep only the pictures in the split file, with their splits. Raise DataError if one is missing or has moved.

    The file has the labels of `listing` or those `before` the fixes.
    """
    root_text, csv_text = printable(str(listing.root)), printable(split_file)
    lines = read_split_file(split_file)
    trainable = trained_classes(lines)
    splits = np.full(len(listing.paths), -1, np.int8)
    folder_labels = {path: before.class_names[label] for path, label in zip(before.paths, before.labels, strict=True)}
    left_out, notes = [*listing.left_out], [*listing.notes]
    for row, path in enumerate(listing.paths):
        if path not in lines:
            left_out.append(LeftOut(path, "not in the split file", split_file))
            continue
        line = lines.pop(path)
        splits[row] = SPLITS.index(line.split)
        folder_label = folder_labels.pop(path)
        if line.label not in (folder_label, listing.class_names[listing.labels[row]]):
            labels = f"has the class {line.label}, but is in the folder of class {folder_label}"
            fix = "move the file, correct the line, or give the --data.fixes of the run"
            raise DataError(f"{csv_text}: {printable(f'{path} {labels}')}: {fix}")
    lines = {path: line for path, line in lines.items() if path not in folder_labels}  # fixes left out the others
    if lines:
        count_text, names = plural(len(lines), "picture"), first_names(list(lines), MAX_NAMES_IN_MESSAGE)
        problem = f"{root_text} does not contain {count_text} of {csv_text} ({names})"
        raise DataError(f"{problem}: restore the missing files, or leave out --data.split_file")
    if not trainable:
        raise DataError(f"{csv_text} has no line with split train: give a run's split.csv")
    if left_out_count := int((splits < 0).sum()):
        notes.append(f"{plural(left_out_count, 'picture')} left out: not in {csv_text}")
    return replace(listing, splits=splits, left_out=left_out, notes=notes).take(splits >= 0).keep_classes(trainable)


def split_lines(listing: Listing) -> Iterator[tuple[str, SplitLine]]:
    """Yield the path and the other columns of split.csv for each picture."""
    columns = (listing.paths, listing.labels, listing.splits, listing.sha256, listing.groups)
    for path, label, split, sha256, group in zip(*columns, strict=True):
        yield path, SplitLine(listing.class_names[label], SPLITS[split], sha256.decode(), str(group))


def describe_other_photos(listing: Listing, split_file: str) -> str:
    """Return how the pictures differ from those in the split file (more, fewer, changed), or "" if they do not."""
    then, now = read_split_file(split_file), {path: line[:3] for path, line in split_lines(listing)}
    both = [path for path in now if path in then]
    differences = (
        ("more", [path for path in now if path not in then]),
        ("fewer", [path for path in then if path not in now]),
        # without a sha256 in the file, only label and split are compared
        ("changed", [path for path in both if then[path][:3] not in (now[path], (*now[path][:2], ""))]),
    )
    return ", ".join(f"{len(paths):,} {kind} ({first_names(paths, 3)})" for kind, paths in differences if paths)


def keep_split(listing: Listing, groups: np.ndarray, split_file: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the splits and the groups that the pictures had when the run of the split file began: both (n,) int64.

    A newer version of this project may find others. Pictures that are not in the file keep their `groups`.
    """
    lines, n = read_split_file(split_file), len(listing.paths)
    unknown = SplitLine("", SPLITS[TRAIN])
    then = [lines.get(path, unknown) for path in listing.paths]
    splits = [SPLITS.index(line.split) for line in then]
    keys = [line.group or group for line, group in zip(then, groups.tolist(), strict=True)]
    first = dict(zip(reversed(keys), range(n - 1, -1, -1), strict=True))
    return np.array(splits), np.array([first[key] for key in keys])


def find_scored_pictures(listing: Listing, split_file: str) -> tuple[Listing, int, list[str]]:
    """Return a run's test pictures (val if it has none), their split, and notes on changes since the run began.

    A picture is found by its sha256, also in another folder: then it has the class of that folder. If its sha256 is
    not found, or not in the file, it is found by its path. At the same path it has the class in the file, which fixes
    may have changed. A picture of a class that was not trained is left out.
    """
    lines, csv_text = read_split_file(split_file), printable(split_file)
    scored = "test" if any(line.split == "test" for line in lines.values()) else "val"
    trainable, known = trained_classes(lines), {line.sha256 for line in lines.values()}
    now, row_of = dict(split_lines(listing)), {path: row for row, path in enumerate(listing.paths)}
    unchanged = {path for path in lines.keys() & now if lines[path].sha256 in ("", now[path].sha256)}
    moved: dict[str, list[str]] = {}
    for path in [path for path in now if path not in unchanged]:
        moved.setdefault(now[path].sha256, []).append(path)
    labels, missing, edited, relabeled = dict[int, str](), [], [], []
    for path, line in lines.items():
        if line.split != scored:
            continue
        copies = moved.get(line.sha256) if path not in unchanged else None
        place = copies.pop(0) if copies else path
        is_edited = place == path and path not in unchanged
        found = now.get(place)
        label = line.label if found and place == path else found and found.label
        if found is None or label not in trainable or (is_edited and found.sha256 in known):
            missing.append(path)
            continue
        labels[row_of[place]] = label
        edited += [path] * is_edited
        relabeled += [f"{place}, was {line.label}"] * (label != line.label)
    kinds = (
        ("left out: missing, unreadable, or not in the folder of a trained class", missing),
        ("whose content has changed since the run began: scored as they are now", edited),
        ("in another class than when the run began: scored with the class of the folder", relabeled),
    )
    notes = [f"{plural(len(names), 'picture')} {text} ({first_names(names, 10)})" for text, names in kinds if names]
    if new_count := sum(path not in lines and line.sha256 not in known for path, line in now.items()):
        notes.append(f"{plural(new_count, 'picture')} not in {csv_text}: left out")
    rows = sorted(labels)
    class_names, numbers = np.unique([labels[row] for row in rows], return_inverse=True)
    scored_listing = replace(listing.take(np.array(rows, int)), class_names=tuple(class_names), labels=numbers)
    return scored_listing, SPLITS.index(scored), notes


def read_split_file(split_file: str) -> dict[str, SplitLine]:
    """Return a dict: path -> line. Raise DataError if the file is not valid."""
    csv_text, lines = printable(split_file), dict[str, SplitLine]()
    for number, row in read_rows(split_file, _HEADS, "give a run's split.csv"):
        path, line = row[0], SplitLine(*row[1:])
        if line.split not in SPLITS:
            raise DataError(f"{csv_text}, line {number}: must be path,label,split; split is train, val or test")
        if path in lines:
            raise DataError(f"{csv_text} has more than one line for {printable(path)}: keep one of them")
        lines[path] = line
    return lines


def trained_classes(lines: dict[str, SplitLine]) -> set[str]:
    """Return the classes with pictures in train."""
    return {line.label for line in lines.values() if line.split == "train"}


def read_rows(csv_file: str, heads: Sequence[tuple[str, ...]], fix: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of its line and the cells of each row of a CSV file that has the columns of one of the `heads`.

    The columns may have another order, and there may be others. Spreadsheets change the delimiter to a semicolon or a
    tab. Of the `heads`, the last one that fits is used. Raise a DataError that ends with `fix`.
    """
    csv_text = printable(csv_file)
    try:
        with Path(csv_file).expanduser().open(**READ_TEXT_FILE) as file:
            head = file.readline()
            table = csv.reader(chain([head], file), delimiter=max(",;\t", key=head.count))
            names = [name.strip().lower() for name in next(table, [])]
            if not (known := [wanted for wanted in heads if {*wanted} <= {*names}]):
                raise DataError(f"{csv_text} needs the columns {','.join(heads[0])}: {fix}")
            for row in filter(any, table):
                if len(row) != len(names):
                    raise DataError(f"{csv_text}, line {table.line_num}: must be {','.join(names)}")
                yield table.line_num, [row[names.index(name)] for name in known[-1]]
    except (OSError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"{csv_text} cannot be read ({reason}): {fix}") from error
