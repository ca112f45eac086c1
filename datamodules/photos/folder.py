"""Prepare photos for training: decode them, leave out bad files, split the rest. This code does not use torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from datamodules.errors import DataError
from datamodules.files import write_csv
from datamodules.photos.decode import BLANK, CENTER_BLANK, HAS_PAGES, MISNAMED, ROTATED
from datamodules.photos.find import SPLITS, TEST, TRAIN, VAL, LeftOut, Listing, find_photos
from datamodules.photos.fixes import apply_fixes
from datamodules.photos.near import group_look_alikes
from datamodules.photos.scan import Scan, first_with_same_content, hash_paths, scan_photos
from datamodules.photos.split import (
    MAX_NAMES_IN_MESSAGE,
    SPLIT_FILE_COLUMNS,
    apply_split_file,
    choose_validation_pictures,
    group_by_path,
    is_in_mixed_group,
    keep_split,
    split_lines,
)
from datamodules.text import align_columns, command, first_names, plural, printable

MAX_CUT_OFF = 0.4  # a note says so if the center crop of a picture of the median aspect ratio cuts off a larger share
UNEVEN_CLASS_RATIO = 10  # uneven: the largest class has this many times as many training pictures as the smallest


class Photos(Listing):
    """The pictures in a folder that are used for training and evaluation."""

    def select(self, split: int) -> np.ndarray:
        """Return the indices of the pictures of one split (TRAIN, VAL or TEST), ascending."""
        return np.flatnonzero(self.splits == split)

    def write_split(self, csv_path: str | Path) -> None:
        """Write a CSV file with SPLIT_FILE_COLUMNS for each picture. :func:`examine` accepts it as `split_file`."""
        write_csv(csv_path, [SPLIT_FILE_COLUMNS, *((path, *line) for path, line in split_lines(self))])

    def write_left_out(self, csv_path: str | Path) -> None:
        """Write a CSV file with `path,kind,reason` for each file that is not used."""
        write_csv(csv_path, [LeftOut._fields, *self.left_out])

    def report(self) -> str:
        """Return text for the user: a table of counts, the files that were left out with reasons, and the notes."""
        counts = f"{plural(len(self.paths), 'picture')} in {plural(len(self.class_names), 'class', 'classes')}"
        lines = [f"{counts}: {printable(str(self.root))}", *_format_counts(self.class_names, self.counts())]
        if self.left_out:
            lines.append(f"left out: {plural(len(self.left_out), 'file')}")
        for kind, count in Counter(file.kind for file in self.left_out).most_common():
            lines.append(f"  {count:,} {kind}")
            files = [file for file in self.left_out if file.kind == kind]
            lines += [f"    {printable(file.path)}: {printable(file.reason)}" for file in files[:MAX_NAMES_IN_MESSAGE]]
            lines += [f"    and {count - MAX_NAMES_IN_MESSAGE:,} more"] * (count > MAX_NAMES_IN_MESSAGE)
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)


def examine(
    root: str | Path,
    *,
    val_size: float | None = 0.2,
    seed: int = 0,
    split_file: str | None = None,
    fixes: str | None = None,
    max_bad_fraction: float = 0.05,
    resize: str = "crop",
    layout: str | None = None,
    group: str = "near",
    group_by: str | None = None,
    began: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Photos:
    """Decode every picture in a folder, leave out the files that cannot be used, and split the other pictures.

    The arguments are those of :class:`~datamodules.image_folder.ImageFolderDataModule`, and `progress` of
    :func:`scan_photos`. The same seed and the same pictures give the same split. If `val_size` is None, the pictures of
    val are training pictures. `began` is the split.csv of a resumed run, whose pictures keep their splits and groups.
    """
    for name, value, usual in (("val_size", val_size, 0.2), ("max_bad_fraction", max_bad_fraction, 0.05)):
        if (value is not None and not 0 <= value <= 1) or (name == "val_size" and value in (0, 1)):
            raise DataError(f"{name} must be between 0 and 1, but is {value}: --data.{name} {usual}")
    listing = find_photos(root, layout, strict=split_file is None)  # the classes in the file show the layout
    before, listing = listing, apply_fixes(listing, fixes) if fixes else listing
    if split_file is not None:
        listing = apply_split_file(listing, split_file, before)
    if len(listing.class_names) == 1:
        class_name, root_text = printable(listing.class_names[0]), printable(str(listing.root))
        is_in_root = (listing.root / listing.class_names[0]).is_dir()  # otherwise it is in train/
        fix = f"--data {root_text}/{class_name}" if is_in_root else "move them up, as in train/<class>/"
        problem = f"{root_text} has only one class, {class_name}, but a classifier needs two"
        raise DataError(f"{problem}: add a second class folder, or, if the classes are inside {class_name}, {fix}")
    scan = scan_photos(listing, progress=progress)
    bad, n = scan.bad, len(listing.paths)
    counts = listing.counts()
    lost = counts - scan.listing.counts()
    lost_texts = describe_lost(listing, scan.listing)
    loses_half = (2 * lost >= counts) & (lost > max_bad_fraction * counts)
    loses_half[TRAIN] &= lost[TRAIN] < counts[TRAIN]  # a class without any picture has its own error below
    if len(bad) > max_bad_fraction * n or loses_half.any():
        share = max(len(bad) / n, (lost[loses_half] / counts[loses_half]).max(initial=0))
        names = first_names([f"{file.path} ({file.kind})" for file in bad], MAX_NAMES_IN_MESSAGE)
        all_names = f"; for all names: {command('check.py', root, '--json')}" * (len(bad) > MAX_NAMES_IN_MESSAGE)
        heif = "pip install 'lit-classics[heif]' for HEIC, " * any("[heif]" in file.reason for file in bad)
        raise DataError(
            f"{len(bad)} of {n} pictures cannot be read, more than {max_bad_fraction:.0%} or half of a class "
            f"({first_names(lost_texts, 3)}), such as {names}: {heif}repair, convert or delete them or use "
            f"--data.max_bad_fraction {min(1, np.ceil(share * 100) / 100):g}{all_names}"
        )
    in_two_classes = is_in_mixed_group(scan.listing.labels, scan.first_copies)
    left_out = [*listing.left_out, *bad, *_leave_out_copies(scan, np.flatnonzero(in_two_classes))]
    listing, inspections = scan.listing.take(~in_two_classes), scan.inspections[~in_two_classes]
    for label in np.flatnonzero(listing.counts()[TRAIN] == 0).tolist():
        name = listing.class_names[label]
        reasons = [f"{file.path} ({file.kind})" for file in left_out if f"/{name}/" in f"/{file.path}/"]
        examples = first_names(reasons, MAX_NAMES_IN_MESSAGE)
        problem = f"class {printable(name)} has no usable training picture ({examples})"
        raise DataError(f"{problem}: add pictures to its folder or delete the folder")
    first_copies = first_with_same_content(listing.sha256)
    look_alikes, chains = group_look_alikes(listing, inspections["thumbnail"], first_copies, group)
    groups = look_alikes if group_by is None else group_by_path(look_alikes, listing.paths, group_by)
    notes, splits = [*listing.notes], listing.splits.copy()
    if lost_texts:
        notes.append(f"left out, because they cannot be read: {first_names(lost_texts, MAX_NAMES_IN_MESSAGE)}")
    if began is not None:
        splits, groups = keep_split(listing, groups, began)
    elif val_size is None:
        splits[splits == VAL] = TRAIN
    elif split_file is None and not (splits == VAL).any():
        train = np.flatnonzero(splits == TRAIN)
        order = hash_paths(listing.paths, str(seed))
        is_val = choose_validation_pictures(listing.labels[train], groups[train], order[train], val_size)
        splits[train[is_val]] = VAL
        if group_by is not None and not is_val.any():
            joined = f"it joins {len(train)} pictures into {plural(len(np.unique(groups[train])), 'group')}"
            problem = f"--data.group_by {group_by} leaves no picture for validation: {joined}"
            raise DataError(f"{problem}; use a pattern with more different matches")
        notes.append(f"no usable folder val/: {val_size:.0%} of each class became val (seed {seed})")
        sizes = np.bincount(groups[train])
        if (is_group := sizes > 1).any():
            count = f"{plural(int(sizes[is_group].sum()), 'picture')} in {plural(int(is_group.sum()), 'group')}"
            flags = f"--data.group {group}" + f" and --data.group_by {group_by}" * (group_by is not None)
            notes.append(f"{count} ({flags}): each group is only in train or only in val")
    photos = Photos(**{**vars(listing), "splits": splits, "groups": groups, "left_out": left_out, "notes": notes})
    notes += [*chains, *_make_notes(photos, inspections, first_copies, look_alikes, resize)]
    return photos


def _leave_out_copies(scan: Scan, rows: np.ndarray) -> Iterator[LeftOut]:
    """Yield a LeftOut for the pictures at `rows`, which are in two classes. It names a copy in another class."""
    groups, labels, paths = scan.first_copies[rows], scan.listing.labels[rows], scan.listing.paths[rows]
    for path, group, label in zip(paths, groups, labels, strict=True):
        copy = paths[(groups == group) & (labels != label)][0]
        yield LeftOut(path, "same picture under two classes", f"also {copy}")


def describe_lost(before: Listing, after: Listing) -> list[str]:
    """Return a text for each class and split that has fewer pictures `after` the scan, the largest loss first."""
    counts, lost = before.counts(), before.counts() - after.counts()
    cells = sorted(zip(*np.nonzero(lost), strict=True), key=lambda cell: -lost[cell] / counts[cell])
    names = [f"{before.class_names[label]} in {SPLITS[split]}" for split, label in cells]
    return [f"{lost[cell]} of {counts[cell]} pictures of {name}" for cell, name in zip(cells, names, strict=True)]


def _make_notes(
    photos: Photos, inspections: np.ndarray, first_copies: np.ndarray, look_alikes: np.ndarray, resize: str
) -> list[str]:
    outside_train = photos.splits != TRAIN
    has_copy = is_in_mixed_group(photos.splits, first_copies) & outside_train
    looks_alike = is_in_mixed_group(photos.splits, look_alikes) & outside_train & ~has_copy
    notes, flags = [], inspections["flags"]
    blank = flags & (BLANK | CENTER_BLANK * (resize == "crop"))
    for found, text in (
        (flags & ROTATED, "rotated by an EXIF tag, as phones do: used upright"),
        (flags & MISNAMED, "whose suffix does not match the format: still used"),
        (blank, "blank or nearly blank as the network sees it: still used"),
        (flags & HAS_PAGES, "with several pages or frames: only the first is used"),
        (has_copy, "in val or test with a copy in another split: the score will be too good"),
        (looks_alike, "in val or test look like a picture in another split: the score may be too good; see check.py"),
    ):
        if len(paths := photos.paths[found > 0]):
            notes.append(f"{plural(len(paths), 'picture')} {text} ({first_names(list(paths), 3)})")
    sides = np.sort(np.stack([inspections["width"], inspections["height"]]), axis=0)
    ratio = float(np.median(sides[1] / sides[0]))  # of the usual picture
    if resize == "crop" and (cut_off := 1 - 1 / ratio) > MAX_CUT_OFF:
        problem = f"the usual picture is {ratio:.1f} times as long as wide, and the square center crop cuts off"
        notes.append(f"{problem} {cut_off:.0%} of it: --data.resize pad or --data.resize squash keeps all of it")
    counts = photos.counts()
    if counts[VAL].any() and len(not_in_val := np.flatnonzero(counts[VAL] == 0)):
        names = first_names([photos.class_names[label] for label in not_in_val], MAX_NAMES_IN_MESSAGE)
        count_text = plural(len(not_in_val), "class", "classes")
        notes.append(f"accuracy is not measured for {count_text} without pictures in val: {names}")
    if counts[TRAIN].max() >= UNEVEN_CLASS_RATIO * counts[TRAIN].min():
        sizes = f"{counts[TRAIN].min()} to {counts[TRAIN].max()} training pictures"
        notes.append(f"classes are uneven: {sizes}; --data.balance loss gives them equal weight")
    return notes


def _format_counts(class_names: tuple[str, ...], counts: np.ndarray, max_rows: int = 12) -> list[str]:
    """Return the lines of a table of counts. Show the largest and smallest of more than `max_rows` classes."""
    splits = [split for split in (TRAIN, VAL, TEST) if split == TRAIN or counts[split].any()]
    order = list(range(len(class_names)))
    if len(class_names) > max_rows:
        largest_first = np.argsort(-counts.sum(0), kind="stable").tolist()
        order = largest_first[: max_rows // 2] + largest_first[-(max_rows // 2) :]
    cells = [["class", *(f"{SPLITS[split]:>8}" for split in splits)]]
    cells += [[printable(class_names[label]), *(f"{counts[split, label]:,}" for split in splits)] for label in order]
    cells.append(["all", *(f"{counts[split].sum():,}" for split in splits)])
    lines = [f"  {line}" for line in align_columns(cells, right=[False, *[True] * len(splits)])]
    if skipped := len(class_names) - len(order):
        lines.insert(1 + max_rows // 2, f"  ... {plural(skipped, 'class', 'classes')} between these ...")
    return lines
