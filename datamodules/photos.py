"""A folder of photos becomes data to learn from: what is broken is left out and named, what is left is split.

:func:`examine` does both and :class:`Photos` is what it finds. Needs no torch, so that checking a folder and
refusing one are a matter of a second.
"""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from datamodules.examination import MISNAMED, ROTATED, examine_files, read_picture
from datamodules.listing import (
    SPLITS,
    TEST,
    TRAIN,
    VAL,
    DataError,
    LeftOut,
    Listing,
    Paths,
    class_counts,
    counted,
    list_photos,
    shown,
    trained_classes,
)

__all__ = [
    "SPLITS",
    "TEST",
    "TRAIN",
    "VAL",
    "DataError",
    "LeftOut",
    "Listing",
    "Paths",
    "Photos",
    "class_names",
    "content_groups",
    "examine",
    "list_photos",
    "read_picture",
    "stratified_split",
    "two_sides",
]

NAMED = 10  # files that a message names before it says how many more there are
IMBALANCE = 10  # times as many pictures in the largest class as in the smallest


@dataclass(frozen=True, eq=False)
class Photos:
    """The pictures that are used, their classes and their split.

    `labels` (int32, indices into `class_names`), `splits` (int8: TRAIN, VAL, TEST) and `sizes` (int64, bytes)
    have a row for each of `paths`, which are relative to `root`. `notes` are warnings of one line each.
    """

    root: Path
    class_names: tuple[str, ...]
    paths: Paths
    labels: np.ndarray
    splits: np.ndarray
    sizes: np.ndarray
    left_out: list[LeftOut]
    notes: list[str]

    def counts(self) -> np.ndarray:
        """Pictures per split and class: int64 array (3, classes)."""
        return class_counts(self.labels, self.splits, len(self.class_names))

    def select(self, split: int) -> np.ndarray:
        """Indices of the pictures of `split`, ascending."""
        return np.flatnonzero(self.splits == split)

    def fingerprint(self) -> str:
        """SHA-256 over class names and every picture's path, size, label and split."""
        digest = hashlib.sha256()
        Paths.from_iterable(self.class_names).update(digest)
        self.paths.update(digest)
        for column in (self.sizes, self.labels, self.splits):
            digest.update(column.astype("<i8").tobytes())
        return digest.hexdigest()

    def write_split(self, csv_path: str | Path) -> None:
        """Write `path,label,split` for each picture; :func:`examine` takes the file as `split_file`."""
        rows = zip(self.paths, self.labels, self.splits, strict=True)
        _write_csv(
            csv_path,
            ("path", "label", "split"),
            ((p, self.class_names[label], SPLITS[s]) for p, label, s in rows),
        )

    def write_left_out(self, csv_path: str | Path) -> None:
        """Write `path,kind,reason` for each file that is not used."""
        _write_csv(csv_path, LeftOut._fields, self.left_out)

    def report(self) -> str:
        """What the owner of the pictures is told first: counts, what was left out and why, notes."""
        lines = [
            f"{counted(len(self.paths), 'picture')} in {counted(len(self.class_names), 'class', 'classes')}: "
            f"{shown(str(self.root))}",
            *_table(self.class_names, self.counts()),
        ]
        if self.left_out:
            lines.append(f"left out: {counted(len(self.left_out), 'file')}")
        for kind, count in Counter(file.kind for file in self.left_out).most_common():
            lines.append(f"  {count:,} {kind}")
            files = [file for file in self.left_out if file.kind == kind]
            lines += [f"    {shown(file.path)}: {shown(file.reason)}" for file in files[:NAMED]]
            lines += [f"    and {count - NAMED:,} more"] * (count > NAMED)
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)


def class_names(root: str | Path, split_file: str | None = None) -> tuple[str, ...]:
    """The classes that :func:`examine` will find, sorted: those with training pictures. Opens no picture.

    Raises:
        DataError: as :func:`list_photos`; or `split_file` cannot be read.
    """
    if split_file is not None:
        return tuple(sorted({label for _, label, split in _rows(split_file) if split == TRAIN}))
    return trained_classes(root)


def examine(
    root: str | Path,
    *,
    val_size: float = 0.2,
    seed: int = 0,
    split_file: str | None = None,
    max_bad_fraction: float = 0.05,
    num_workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    cache: bool = True,
) -> Photos:
    """Open every picture of a folder, leave out what cannot be used, split what is left.

    Args:
        root: the folder, see :func:`list_photos`.
        val_size: share of each class's training pictures that becomes val if folders do not say; in (0, 1).
        seed: of that split, which is a function of it and of the pictures.
        split_file: a CSV of :meth:`Photos.write_split` that says who is trained and validated on instead.
        max_bad_fraction: share of broken files up to which the rest is used, in [0, 1].
        num_workers: processes that open files; 0 for none; None for one a core. Does not change the result.
        progress: called with (files done, files in all) now and then.
        cache: remember what was found whole, by path, size and mtime.

    Raises:
        DataError: an argument out of its range; no, one, or an emptied class; too many broken files; a
            `split_file` that does not fit the folder.
    """
    if not 0 < val_size < 1:
        raise DataError(f"val_size lies between 0 and 1, not at {val_size}: --data.val_size 0.2")
    if not 0 <= max_bad_fraction <= 1:
        raise DataError(
            f"max_bad_fraction lies between 0 and 1, not at {max_bad_fraction}: --data.max_bad_fraction 0.05"
        )
    listing = list_photos(root)
    if split_file is not None:
        listing = _follow(listing, split_file)
    if len(listing.class_names) == 1:
        only, here = shown(listing.class_names[0]), shown(str(listing.root))
        raise DataError(
            f"{here} has one class only, {only}, and a classifier needs two: add a second class folder, or, "
            f"if the classes are inside it, --data {here}/{only}"
        )
    verdicts, bad = examine_files(listing, num_workers=num_workers, progress=progress, cache=cache)
    n = len(listing.paths)
    if len(bad) > max_bad_fraction * n:
        named = (f"{shown(listing.paths[row])} ({kind})" for row, (kind, _) in sorted(bad.items())[:NAMED])
        raise DataError(
            f"broken: {len(bad)} of {n} pictures, more than {max_bad_fraction:.0%} ({', '.join(named)}"
            f"{', ...; all of them: python scripts/check.py DIR --json' if len(bad) > NAMED else ''}): "
            "mend or delete them, or --data.max_bad_fraction "
            f"{min(1, np.ceil(len(bad) / n * 100) / 100):g}"
        )
    kept = np.ones(n, bool)
    kept[list(bad)] = False
    left_out = [LeftOut(listing.paths[row], *why) for row, why in sorted(bad.items())]
    groups = content_groups(np.where(kept, verdicts["content"], 0))
    two = two_sides(listing.labels, groups)
    kept &= ~two
    odd = np.flatnonzero(two & (listing.labels != listing.labels[groups]))  # labelled unlike their first copy
    twins = dict(zip(groups[odd][::-1].tolist(), odd[::-1].tolist(), strict=True))
    for row in np.flatnonzero(two).tolist():
        first = int(groups[row])
        twin = twins[first] if listing.labels[row] == listing.labels[first] else first
        left_out.append(LeftOut(listing.paths[row], "same picture under two classes", f"also {listing.paths[twin]}"))
    left_out = [*listing.left_out, *left_out]
    _refuse_empty(listing, kept, left_out)
    rows = np.flatnonzero(kept)
    verdicts = verdicts[rows]
    groups = content_groups(verdicts["content"])
    listing = listing.rows(rows)
    notes = [*listing.notes]
    splits = listing.splits.copy()
    if split_file is None and not (splits == VAL).any():
        train = np.flatnonzero(splits == TRAIN)
        order = listing.paths.hashes(str(seed))
        splits[train[stratified_split(listing.labels[train], groups[train], order[train], val_size)]] = VAL
        notes.append(f"no folder val/: {val_size:.0%} of each class became val (seed {seed})")
    photos = Photos(
        listing.root,
        listing.class_names,
        listing.paths,
        listing.labels,
        splits,
        listing.sizes,
        left_out,
        notes,
    )
    notes += _warnings(photos, verdicts["flags"], groups)
    return photos


def content_groups(content: np.ndarray) -> np.ndarray:
    """For each picture the index of the first with the same content; `content` 0 has no copy."""
    _, first, group = np.unique(content, return_index=True, return_inverse=True)
    return np.where(content == 0, np.arange(len(content)), first[group])


def two_sides(sides: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Which pictures (bool array) have a copy on another side.

    `sides` are their labels or splits, `groups` those of :func:`content_groups`.
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


def _refuse_empty(listing: Listing, kept: np.ndarray, left_out: list[LeftOut]) -> None:
    usable = np.bincount(listing.labels[kept & (listing.splits == TRAIN)], minlength=len(listing.class_names))
    for label in np.flatnonzero(usable == 0).tolist():
        name = listing.class_names[label]
        why = [f"{shown(f.path)} ({f.kind})" for f in left_out if f"/{name}/" in f"/{f.path}/"]
        raise DataError(
            f"class {shown(name)} would be empty, nothing in it can be trained on ({', '.join(why[:NAMED])}"
            f"{', ...' if len(why) > NAMED else ''}): add pictures to its folder or delete the folder"
        )


def _warnings(photos: Photos, flags: np.ndarray, groups: np.ndarray) -> list[str]:
    notes = []
    if turned := int(np.count_nonzero(flags & ROTATED)):
        notes.append(f"{counted(turned, 'picture')} turned by an EXIF tag, as phones do: used upright")
    if len(misnamed := np.flatnonzero(flags & MISNAMED)):
        notes.append(
            f"{counted(len(misnamed), 'picture')} of another format than the name says: used all the same "
            f"({_first(photos, misnamed)})"
        )
    if len(rows := np.flatnonzero(two_sides(photos.splits, groups) & (photos.splits != TRAIN))):
        notes.append(
            f"{counted(len(rows), 'picture')} of val or test with a copy in another split ({_first(photos, rows)}): "
            "the score will be too good"
        )
    counts = photos.counts()
    if len(unseen := np.flatnonzero(counts[VAL] == 0)):
        names = ", ".join(shown(photos.class_names[label]) for label in unseen[:NAMED])
        names += ", ..." * (len(unseen) > NAMED)
        many = counted(len(unseen), "class", "classes")
        notes.append(f"no picture in val, so accuracy is not measured, for {many}: {names}")
    if counts[TRAIN].max() >= IMBALANCE * counts[TRAIN].min():
        notes.append(
            f"classes are uneven: {counts[TRAIN].min()} to {counts[TRAIN].max()} training pictures; "
            "--data.balance loss weighs them alike"
        )
    return notes


def _first(photos: Photos, rows: np.ndarray) -> str:
    names = ", ".join(shown(photos.paths[row]) for row in rows[:3])
    return names + ", ..." * (len(rows) > 3)


def _follow(listing: Listing, split_file: str) -> Listing:
    """`listing` with the splits of `split_file`, without what is not in it."""
    wanted = list(_rows(split_file))
    here, csv_name = shown(str(listing.root)), shown(split_file)
    keys = listing.paths.hashes()
    by_key = np.argsort(keys)
    asked = Paths.from_iterable(path for path, _, _ in wanted).hashes()
    _, firsts = np.unique(asked, return_index=True)
    if len(again := np.setdiff1d(np.arange(len(asked)), firsts)):
        names = ", ".join(dict.fromkeys(shown(wanted[row][0]) for row in again[:NAMED]))
        raise DataError(
            f"{csv_name} names {counted(len(again), 'picture')} more than once ({names}"
            f"{', ...' * (len(again) > NAMED)}): keep one line for each"
        )
    at = by_key[np.searchsorted(keys, asked, sorter=by_key).clip(max=len(keys) - 1)]
    if len(missing := np.flatnonzero(keys[at] != asked)):
        first = ", ".join(shown(wanted[row][0]) for row in missing[:NAMED])
        raise DataError(
            f"{counted(len(missing), 'picture')} of {csv_name} missing from {here} ({first}"
            f"{', ...' * (len(missing) > NAMED)}): put back what is missing, or leave --data.split_file out"
        )
    for row, (path, label, _) in zip(at, wanted, strict=True):
        own = listing.class_names[listing.labels[row]]
        if label != own:
            raise DataError(
                f"{csv_name} says {shown(path)} is {shown(label)}, its folder says {shown(own)}: "
                "move the file or mend the line"
            )
    splits = np.full(len(keys), -1, np.int8)
    splits[at] = [split for _, _, split in wanted]
    extra = np.flatnonzero(splits < 0)
    left_out = [LeftOut(listing.paths[r], "not in the split file", split_file) for r in extra]
    notes = [f"{counted(len(extra), 'picture')} left out: not in {csv_name}"] * bool(len(extra))
    listing = replace(listing, splits=splits, left_out=[*listing.left_out, *left_out], notes=[*listing.notes, *notes])
    learned = {label for _, label, split in wanted if split == TRAIN}
    if not learned:
        raise DataError(f"{csv_name} has no line with split train: give a run's split.csv")
    return listing.rows(np.flatnonzero(splits >= 0)).only(learned)


def _rows(split_file: str) -> Iterator[tuple[str, str, int]]:
    """(path, label, split) of each line of a split file."""
    name = shown(split_file)
    shape = "its lines are path,label,split with split train, val or test"
    try:
        with Path(split_file).expanduser().open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            table = csv.reader(file)
            if next(table, None) != ["path", "label", "split"]:
                raise DataError(f"{name} does not begin with path,label,split: give a run's split.csv")
            for row in table:
                if len(row) != 3 or row[2] not in SPLITS:
                    raise DataError(f"{name}, line {table.line_num}, is not understood: {shape}")
                yield row[0], row[1], SPLITS.index(row[2])
    except (OSError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"{name} cannot be read ({reason}): give a run's split.csv") from error


def _write_csv(csv_path: str | Path, head: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    with Path(csv_path).open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        table = csv.writer(file)
        table.writerow(head)
        table.writerows(rows)


def _table(names: tuple[str, ...], counts: np.ndarray, most: int = 12) -> list[str]:
    """Lines of counts per class and split; of many classes the largest and the smallest."""
    splits = [split for split in (TRAIN, VAL, TEST) if split == TRAIN or counts[split].any()]
    order = list(range(len(names)))
    skipped = 0
    if len(names) > most:
        largest = np.argsort(-counts.sum(0), kind="stable").tolist()
        order = largest[: most // 2] + largest[-(most // 2) :]
        skipped = len(names) - len(order)
    cells = [["class", *(SPLITS[split] for split in splits)]]
    cells += [[shown(names[label]), *(f"{counts[split, label]:,}" for split in splits)] for label in order]
    cells.append(["all", *(f"{counts[split].sum():,}" for split in splits)])
    width = max(len(row[0]) for row in cells)
    lines = [f"  {row[0]:<{width}}" + "".join(f"{cell:>10}" for cell in row[1:]) for row in cells]
    if skipped:
        lines.insert(1 + most // 2, f"  ... {counted(skipped, 'class', 'classes')} between these ...")
    return lines
