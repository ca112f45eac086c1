"""Prepare a folder of photos for training: list the broken files and split the others. Imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from datamodules.errors import DataError
from datamodules.files import write_csv
from datamodules.photos.decode import MISNAMED, ROTATED
from datamodules.photos.find import (
    SPLITS,
    TEST,
    TRAIN,
    VAL,
    LeftOut,
    Listing,
    find_photos,
)
from datamodules.photos.scan import content_groups, scan_photos
from datamodules.photos.split import (
    COLUMNS,
    NAMED,
    apply_split_file,
    copies_across,
    stratified_split,
)
from datamodules.text import align_columns, first_names, plural, printable

IMBALANCE = 10  # the largest class has at least this many times the training pictures of the smallest


class Photos(Listing):
    """The pictures that are used, with their classes and their splits."""

    def select(self, split: int) -> np.ndarray:
        """Return the indices of the pictures of `split`, ascending."""
        return np.flatnonzero(self.splits == split)

    def write_split(self, csv_path: str | Path) -> None:
        """Write `path,label,split` for each picture, a file that :func:`examine` accepts as `split_file`."""
        rows = zip(self.paths, self.labels, self.splits, strict=True)
        write_csv(csv_path, [COLUMNS, *((path, self.class_names[label], SPLITS[split]) for path, label, split in rows)])

    def write_left_out(self, csv_path: str | Path) -> None:
        """Write `path,kind,reason` for each file that is not used."""
        write_csv(csv_path, [LeftOut._fields, *self.left_out])

    def report(self) -> str:
        """Return a text for the user: the counts, the files that were left out and why, and the notes."""
        lines = [
            f"{plural(len(self.paths), 'picture')} in {plural(len(self.class_names), 'class', 'classes')}: "
            f"{printable(str(self.root))}",
            *_table(self.class_names, self.counts()),
        ]
        if self.left_out:
            lines.append(f"left out: {plural(len(self.left_out), 'file')}")
        for kind, count in Counter(file.kind for file in self.left_out).most_common():
            lines.append(f"  {count:,} {kind}")
            files = [file for file in self.left_out if file.kind == kind]
            lines += [f"    {printable(file.path)}: {printable(file.reason)}" for file in files[:NAMED]]
            lines += [f"    and {count - NAMED:,} more"] * (count > NAMED)
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)


def examine(
    root: str | Path,
    *,
    val_size: float = 0.2,
    seed: int = 0,
    split_file: str | None = None,
    max_bad_fraction: float = 0.05,
) -> Photos:
    """Decode every picture of a folder, leave out what cannot be used and split the rest.

    The arguments are those of :class:`~datamodules.image_folder.ImageFolderDataModule`. The same seed and the same
    pictures give the same split.

    Raises:
        DataError: an argument is out of range, the folder has fewer than two classes, a class has no usable training
            picture, too many files are broken, or `split_file` does not match the folder.
    """
    if not 0 < val_size < 1:
        raise DataError(f"val_size must be between 0 and 1, but is {val_size}: --data.val_size 0.2")
    if not 0 <= max_bad_fraction <= 1:
        raise DataError(
            f"max_bad_fraction must be between 0 and 1, but is {max_bad_fraction}: --data.max_bad_fraction 0.05"
        )
    listing = find_photos(root)
    if split_file is not None:
        listing = apply_split_file(listing, split_file)
    if len(listing.class_names) == 1:
        only, here = printable(listing.class_names[0]), printable(str(listing.root))
        raise DataError(
            f"{here} has only one class, {only}, but a classifier needs two: add a second class folder, or, "
            f"if the classes are inside {only}, --data {here}/{only}"
        )
    scan = scan_photos(listing)
    bad, n = scan.bad, len(listing.paths)
    if len(bad) > max_bad_fraction * n:
        names = first_names([f"{file.path} ({file.kind})" for file in bad], NAMED)
        names += "; all of them: python scripts/check.py DIR --json" * (len(bad) > NAMED)
        raise DataError(
            f"{len(bad)} of {n} pictures are broken, more than {max_bad_fraction:.0%} ({names}): repair or delete them "
            f"or use --data.max_bad_fraction {min(1, np.ceil(len(bad) / n * 100) / 100):g}"
        )
    across = copies_across(scan.listing.labels, scan.copies)
    left_out = [*listing.left_out, *bad, *_find_twins(scan.listing, scan.copies, across)]
    rows = np.flatnonzero(~across)
    listing, verdicts = scan.listing.take(rows), scan.verdicts[rows]
    _refuse_empty_classes(listing, left_out)
    groups = content_groups(verdicts["content"])
    notes = [*listing.notes]
    splits = listing.splits.copy()
    if split_file is None and not (splits == VAL).any():
        train = np.flatnonzero(splits == TRAIN)
        order = listing.paths.hashes(str(seed))
        splits[train[stratified_split(listing.labels[train], groups[train], order[train], val_size)]] = VAL
        notes.append(f"no folder val/: {val_size:.0%} of each class became val (seed {seed})")
    photos = Photos(**{**vars(listing), "splits": splits, "left_out": left_out, "notes": notes})
    notes += _make_notes(photos, verdicts["flags"], groups)
    return photos


def _find_twins(listing: Listing, copies: np.ndarray, across: np.ndarray) -> Iterator[LeftOut]:
    """Yield the pictures that are in two classes, each with a copy in another class."""
    other = np.flatnonzero(across & (listing.labels != listing.labels[copies]))  # not in the class of their first copy
    twins = dict(zip(copies[other][::-1].tolist(), other[::-1].tolist(), strict=True))
    for row in np.flatnonzero(across).tolist():
        first = int(copies[row])
        twin = twins[first] if listing.labels[row] == listing.labels[first] else first
        yield LeftOut(listing.paths[row], "same picture under two classes", f"also {listing.paths[twin]}")


def _refuse_empty_classes(listing: Listing, left_out: list[LeftOut]) -> None:
    for label in np.flatnonzero(listing.counts()[TRAIN] == 0).tolist():
        name = listing.class_names[label]
        why = [f"{file.path} ({file.kind})" for file in left_out if f"/{name}/" in f"/{file.path}/"]
        raise DataError(
            f"class {printable(name)} has no usable training picture ({first_names(why, NAMED)}): "
            "add pictures to its folder or delete the folder"
        )


def _make_notes(photos: Photos, flags: np.ndarray, groups: np.ndarray) -> list[str]:
    notes = []
    if turned := int(np.count_nonzero(flags & ROTATED)):
        notes.append(f"{plural(turned, 'picture')} rotated by an EXIF tag, as phones do: used upright")
    if len(misnamed := np.flatnonzero(flags & MISNAMED)):
        notes.append(
            f"{plural(len(misnamed), 'picture')} whose suffix does not match the format: still used "
            f"({first_names(list(photos.paths.take(misnamed)), 3)})"
        )
    if len(rows := np.flatnonzero(copies_across(photos.splits, groups) & (photos.splits != TRAIN))):
        notes.append(
            f"{plural(len(rows), 'picture')} in val or test with a copy in another split "
            f"({first_names(list(photos.paths.take(rows)), 3)}): the score will be too good"
        )
    counts = photos.counts()
    if len(unseen := np.flatnonzero(counts[VAL] == 0)):
        names = first_names([photos.class_names[label] for label in unseen], NAMED)
        many = plural(len(unseen), "class", "classes")
        notes.append(f"accuracy is not measured for {many} without pictures in val: {names}")
    if counts[TRAIN].max() >= IMBALANCE * counts[TRAIN].min():
        notes.append(
            f"classes are uneven: {counts[TRAIN].min()} to {counts[TRAIN].max()} training pictures; "
            "--data.balance loss gives them equal weight"
        )
    return notes


def _table(names: tuple[str, ...], counts: np.ndarray, most: int = 12) -> list[str]:
    """Return a table of counts per class and split. If there are many classes, only the largest and the smallest."""
    splits = [split for split in (TRAIN, VAL, TEST) if split == TRAIN or counts[split].any()]
    order = list(range(len(names)))
    if len(names) > most:
        largest = np.argsort(-counts.sum(0), kind="stable").tolist()
        order = largest[: most // 2] + largest[-(most // 2) :]
    cells = [["class", *(f"{SPLITS[split]:>8}" for split in splits)]]
    cells += [[printable(names[label]), *(f"{counts[split, label]:,}" for split in splits)] for label in order]
    cells.append(["all", *(f"{counts[split].sum():,}" for split in splits)])
    lines = [f"  {line}" for line in align_columns(cells, right=[False, *[True] * len(splits)])]
    if skipped := len(names) - len(order):
        lines.insert(1 + most // 2, f"  ... {plural(skipped, 'class', 'classes')} between these ...")
    return lines
