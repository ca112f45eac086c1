"""Correct wrong labels with a fixes.csv: in training without changing a file, or by moving files."""

from __future__ import annotations

import contextlib
import csv
import os
import unicodedata
from dataclasses import replace
from pathlib import Path

from datamodules.errors import DataError
from datamodules.files import READ_TEXT_FILE, write_csv
from datamodules.photos.find import LeftOut, Listing, find_class_folders, find_photos
from datamodules.photos.split import read_rows
from datamodules.text import first_names, plural, printable

FIX_COLUMNS = ("path", "label", "suggested", "confidence", "action")
MOVE, KEEP, LEAVE_OUT = "move", "keep", "leave_out"  # actions
LEFT_OUT_FOLDER = ".left_out"  # in the photo folder; hidden folders are not read
JOURNAL, JOURNALS = ".moved_{:04}.csv", ".moved_[0-9][0-9][0-9][0-9].csv"
"""Files in the photo folder, one for each --apply: the old and the new path of each file, then each new folder/."""


def read_fixes(listing: Listing, fixes_file: str) -> dict[int, str]:
    """Return index of a picture -> its new class, or "" to leave it out. Raise DataError for a wrong line."""
    fixes, names, rows = dict[int, str](), listing.class_names, {path: row for row, path in enumerate(listing.paths)}
    moved = " (if --apply has moved it, check.py DIR --undo moves it back)" * any(listing.root.glob(JOURNALS))
    for number, cells in read_rows(fixes_file, [FIX_COLUMNS], "give a fixes.csv that check.py --labels wrote"):
        path, label, suggested, _, action = (cell.removeprefix("'") for cell in cells)
        row, new = rows.get(path, -1), {MOVE: suggested, KEEP: label, LEAVE_OUT: ""}.get(action.strip().lower())
        own = names[listing.labels[row]] if row >= 0 else ""
        for problem, is_found in (
            (f"the action is {action}, but must be {MOVE}, {KEEP} or {LEAVE_OUT}", new is None),
            (f"{path} is not a picture in {listing.root}{moved}: correct or delete the line", row < 0),
            (f"an earlier line has {path} too: delete one of them", row in fixes),
            (f"the class of {path} is {own}, not {label}: correct or delete the line", label != own),
            (f"{new} is not one of the classes {first_names(names, 12)}", new not in ("", *names)),
        ):
            if is_found:
                raise DataError(printable(f"{fixes_file}, line {number}: {problem}"))
        fixes[row] = str(new)
    return {row: name for row, name in fixes.items() if name != names[listing.labels[row]]}


def apply_fixes(listing: Listing, fixes_file: str) -> Listing:
    """Return a listing with the new labels, without the pictures to leave out, and with a note."""
    fixes, labels = read_fixes(listing, fixes_file), listing.labels.copy()
    labels[list(fixes)] = [listing.class_names.index(name) if name else -1 for name in fixes.values()]
    is_out = labels < 0
    counts = f"{plural(len(fixes) - is_out.sum(), 'label')} changed and {plural(is_out.sum(), 'picture')} left out"
    left_out = [*listing.left_out, *(LeftOut(path, "left out by fixes", fixes_file) for path in listing.paths[is_out])]
    notes = [*listing.notes, f"{counts} by {printable(fixes_file)}"]
    return replace(listing, labels=labels, left_out=left_out, notes=notes).take(~is_out)


def move_files(root: str, fixes_file: str, layout: str | None = None) -> int:
    """Move files to the folders of their new classes, or to LEFT_OUT_FOLDER. Return their number.

    Split and subfolder of a file stay. If its name is taken, the name of its old class is added. Raise DataError before
    the first move if a file would be overwritten or is behind a link. If a move fails, all files are moved back.
    """
    listing, folder, moves = find_photos(root, layout), Path(root).expanduser(), dict[str, tuple[str, str]]()
    folders = {(place.name, place.split): place.path for place in find_class_folders(folder, layout, True)[0]}
    for row, name in read_fixes(listing, fixes_file).items():
        path, split, own = listing.paths[row], listing.splits[row], listing.class_names[listing.labels[row]]
        old = folders[own, split]
        new = folders.get((name, split), old[: old.rfind("/") + 1] + name)  # the split may have no folder of the class
        first = Path(new + path[len(old) :] if name else f"{LEFT_OUT_FOLDER}/{path}")
        for target in (first.as_posix(), first.with_stem(f"{first.stem}_{own}").as_posix()):
            alike = unicodedata.normalize("NFC", target).casefold()  # the same file on some file systems
            if alike not in moves and not os.path.lexists(folder / target):
                break
        else:
            raise DataError(f"{printable(path)}: {printable(target)} exists already: rename one of the two files")
        if any((folder / place).resolve() != folder.resolve() / place for place in (path, target)):
            raise DataError(f"{printable(path)}: it or its new folder is a link: use --data.fixes, or move it by hand")
        moves[alike] = path, target
    if not moves:
        raise DataError(f"{printable(fixes_file)} has no new class and nothing to leave out: edit its column action")
    last = max(folder.glob(JOURNALS), default=Path(JOURNAL.format(0))).stem.rpartition("_")[2]
    places = {parent.as_posix() for _, target in moves.values() for parent in Path(target).parents}
    new_folders = [[f"{place}/"] for place in sorted(places) if not (folder / place).is_dir()]
    write_csv(folder / JOURNAL.format(int(last) + 1), [*moves.values(), *new_folders])
    try:
        for path, target in moves.values():
            _move(folder, path, target)
    except BaseException:
        undo_move(root)
        raise
    return len(moves)


def undo_move(root: str) -> int:
    """Move the files of the last :func:`move_files` back, also if it was interrupted. Return their number.

    Folders that it made are removed if they are empty again.
    """
    folder = Path(root).expanduser()
    if not (journals := sorted(folder.glob(JOURNALS))):
        raise DataError(f"{printable(root)} has nothing to undo: --apply has moved no file in it")
    with journals[-1].open(**READ_TEXT_FILE) as file:
        rows = list(csv.reader(file))
    parts = [part for row in rows for place in row for part in Path(place).parts]
    moves, folders = [row for row in rows if len(row) == 2], [row for row in rows if len(row) == 1]
    is_whole = len(moves) + len(folders) == len(rows) and all(place.endswith("/") for [place] in folders)
    if not is_whole or {"..", os.sep}.intersection(parts):
        raise DataError(f"{printable(str(journals[-1]))} is damaged: move the files back by hand, then delete it")
    moved = [row for row in moves if os.path.lexists(folder / row[1])]
    if existing := [path for path, _ in moved if os.path.lexists(folder / path)]:
        raise DataError(f"{first_names(existing, 3)} would be overwritten: rename these files, then repeat --undo")
    for path, target in moved:
        _move(folder, target, path)
    for [place] in reversed(folders):  # subfolders first
        with contextlib.suppress(OSError):  # it is not empty
            (folder / place).rmdir()
    journals[-1].unlink()
    return len(moved)


def _move(folder: Path, path: str, target: str) -> None:
    (folder / target).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).rename(folder / target)
