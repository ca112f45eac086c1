"""Find the pictures of a folder by their names, without opening one.

A million paths are held in arrays, never in lists: about 50 bytes each with label and size.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Container, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datamodules.errors import DataError, special_file_kind
from datamodules.photos.paths import Paths
from datamodules.text import plural, printable

TRAIN, VAL, TEST = 0, 1, 2
SPLITS = ("train", "val", "test")
SUFFIXES = {
    **dict.fromkeys(("jpg", "jpeg", "jpe", "jfif"), "JPEG"),
    **dict.fromkeys(("ppm", "pgm", "pbm", "pnm"), "PPM"),
    **dict.fromkeys(("tif", "tiff"), "TIFF"),
    "png": "PNG",
    "bmp": "BMP",
    "webp": "WEBP",
}
_FOLDERS = {"train": TRAIN, "val": VAL, "valid": VAL, "validation": VAL, "test": TEST}
_NEVER_SHOWN = frozenset(("__macosx", "@eadir", "thumbs.db", "desktop.ini"))  # what systems leave behind
_OTHER_FORMATS = frozenset(
    ("gif", "svg", "heic", "heif", "avif", "jxl", "jp2", "psd", "eps", "tga", "dng", "cr2", "nef", "arw")
)
PICTURE_SUFFIXES = SUFFIXES.keys() | _OTHER_FORMATS  # what is meant as a picture, whether it is read or not


def class_counts(labels: np.ndarray, splits: np.ndarray, classes: int) -> np.ndarray:
    """Files per split and class: int64 array (3, classes)."""
    return np.bincount(splits.astype(np.int64) * classes + labels, minlength=3 * classes).reshape(3, -1)


class LeftOut(NamedTuple):
    """A file that is not used: `kind` is one of a few words, `reason` says more."""

    path: str
    kind: str
    reason: str


@dataclass(frozen=True, eq=False)
class Listing:
    """What a folder holds, by name only: no file was opened.

    `labels` (int32), `splits` (int8; TRAIN where folders do not say), `sizes` (int64, bytes) and `mtimes`
    (int64, nanoseconds) have a row for each of `paths`. `left_out` are the files passed over, `notes` warnings
    of one line each.
    """

    root: Path
    class_names: tuple[str, ...]
    paths: Paths
    labels: np.ndarray
    splits: np.ndarray
    sizes: np.ndarray
    mtimes: np.ndarray
    left_out: list[LeftOut]
    notes: list[str]

    def rows(self, rows: np.ndarray) -> Listing:
        """The files at `rows` (indices) only."""
        if len(rows) == len(self.paths):
            return self
        columns = {name: getattr(self, name)[rows] for name in ("labels", "splits", "sizes", "mtimes")}
        return replace(self, paths=self.paths.take(rows), **columns)

    def only(self, learned: set[str]) -> Listing:
        """Without the classes that are not in `learned`, whose files are named, and with labels to match."""
        if len(learned) == len(self.class_names):
            return self
        names = tuple(name for name in self.class_names if name in learned)
        new_label = {name: label for label, name in enumerate(names)}
        labels = np.array([new_label.get(name, -1) for name in self.class_names], np.int32)[self.labels]
        left_out, notes = [*self.left_out], [*self.notes]
        gone = np.flatnonzero(labels < 0)
        for label in np.unique(self.labels[gone]).tolist():
            name = self.class_names[label]
            rows = gone[self.labels[gone] == label]
            where = " and ".join(SPLITS[split] for split in np.unique(self.splits[rows]))
            many = plural(len(rows), "picture")
            notes.append(f"class {printable(name)} is only in {where}: it cannot be learned, {many} left out")
            left_out += [
                LeftOut(self.paths[row], "class not in train", f"class {name} is only in {where}") for row in rows
            ]
        changed = replace(self, class_names=names, labels=labels, left_out=left_out, notes=notes)
        return changed.rows(np.flatnonzero(labels >= 0))


def find_class_names(root: str | Path) -> tuple[str, ...]:
    """The `class_names` of :func:`find_photos`, sooner: each folder only up to its first picture.

    Raises:
        DataError: as :func:`find_photos`.
    """
    root = Path(root).expanduser()
    folders, top, _ = _read_layout(root)
    names = {
        name
        for name, split, folder in folders
        if split == TRAIN and any(_is_candidate(file) for _, file in _walk(root, folder, top))
    }
    if not names:
        raise _no_training_pictures(root, folders)
    return tuple(sorted(names))


def find_photos(root: str | Path) -> Listing:
    """Find the pictures of a folder laid out as `train/<class>/`, `val/<class>/` or as `<class>/`; open none.

    Files come in the order of their names, whatever order the disk has them in. Hidden ones are passed over.
    Linked folders count once for a class; links back into the tree are not followed.

    Raises:
        DataError: `root` is no directory, has no class folders or no pictures in them.
    """
    root = Path(root).expanduser()
    folders, top, notes = _read_layout(root)
    left_out = []
    data, offsets = bytearray(), array("q", [0])
    labels, splits, sizes, mtimes = array("i"), array("b"), array("q"), array("q")
    candidates = [0] * len(folders)
    names = sorted({name for name, _, _ in folders})
    number = {name: label for label, name in enumerate(names)}
    for at, (name, split, folder) in enumerate(folders):
        for path, file in _walk(root, folder, top):
            candidates[at] += _is_candidate(file)
            status = _status(root, path, file)
            if isinstance(status, LeftOut):
                left_out.append(status)
                continue
            data += path.encode("utf-8", "surrogateescape")
            offsets.append(len(data))
            labels.append(number[name])
            splits.append(split)
            sizes.append(status.st_size)
            mtimes.append(status.st_mtime_ns)
    for path, file in _find_loose_files(root, folders):
        if _is_candidate(file):
            left_out.append(LeftOut(path, "in no class folder", "lies beside the class folders, not in one"))
    listing = Listing(
        root,
        tuple(names),
        Paths(np.frombuffer(data, np.uint8), np.frombuffer(offsets, np.int64)),
        np.frombuffer(labels, np.int32),
        np.frombuffer(splits, np.int8),
        np.frombuffer(sizes, np.int64),
        np.frombuffer(mtimes, np.int64),
        left_out,
        notes,
    )
    for (_, _, folder), count in zip(folders, candidates, strict=True):
        if not count:
            notes.append(f"{printable(folder)}/ holds no pictures: passed over")
    learned = {name for (name, split, _), n in zip(folders, candidates, strict=True) if n and split == TRAIN}
    if not learned:
        raise _no_training_pictures(root, folders)
    return listing.only(learned)


def find_files_below(folder: str | Path, suffixes: Container[str]) -> list[str]:
    """The files below `folder` whose suffix (lower case, no dot) is one of `suffixes`, sorted; hidden ones are passed
    over, links back into the tree not followed. A folder that cannot be read stands for its files."""
    found = _walk(Path(folder), ".", set())
    return sorted(str(Path(folder, path)) for path, name in found if not name or _suffix(name) in suffixes)


def _no_training_pictures(root: Path, folders: list[tuple[str, int, str]]) -> DataError:
    first = next((folder for _, split, folder in folders if split == TRAIN), "train/<class>")
    return DataError(f"no pictures to train on in {printable(str(root))}: put some in {printable(f'{root}/{first}/')}")


def _read_layout(root: Path) -> tuple[list[tuple[str, int, str]], set[tuple[int, int]], list[str]]:
    """(class name, split, folder) of each class folder; what no link may lead back to; notes."""
    here = printable(str(root))
    try:
        inside = _subfolders(root)
        splits = [folder for folder in inside if folder.lower() in _FOLDERS]
        nested = {folder: _subfolders(root / folder) for folder in splits}
    except (FileNotFoundError, NotADirectoryError) as error:
        what = "does not exist" if isinstance(error, FileNotFoundError) else "is no folder"
        raise DataError(f"{here} {what}: name the folder that holds your class folders") from error
    except OSError as error:
        raise DataError(f"{here} cannot be read ({error.strerror}): chmod -R u+rX {here}") from error
    train = [folder for folder in splits if _FOLDERS[folder.lower()] == TRAIN]
    notes: list[str] = []
    if any(nested[folder] for folder in train) or (train and len(splits) > 1):  # else a class of trains
        for split in set(_FOLDERS.values()):
            same = [folder for folder in splits if _FOLDERS[folder.lower()] == split]
            if len(same) > 1:
                raise DataError(f"{here} has {' and '.join(same)}, which mean the same: keep one of them")
        notes += [f"{printable(name)}/ is beside train/: passed over" for name in inside if name not in splits]
        folders = [(name, _FOLDERS[split.lower()], f"{split}/{name}") for split in splits for name in nested[split]]
        tops = [root, *(root / split for split in splits)]
        example = f"{here}/train/<class>/<picture>.jpg"
    elif splits and len(splits) == len(inside) and not train:
        raise DataError(f"{here} has {', '.join(splits)} but no train: make {here}/train/<class>/<picture>.jpg")
    else:
        folders = [(name, TRAIN, name) for name in inside]
        tops = [root]
        example = f"{here}/<class>/<picture>.jpg"
    if not folders:
        raise DataError(f"{here} has no class folders: make one for each class, {example}")
    ends = [*tops, *root.absolute().parents, *(root / folder for _, _, folder in folders)]
    return folders, {_identity(end) for end in ends}, notes


def _subfolders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if not _is_hidden(entry.name) and _is_folder(entry))


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _NEVER_SHOWN


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _suffix(name: str) -> str:
    return name.rpartition(".")[2].lower()


def _is_candidate(name: str) -> bool:
    """Whether `name` may be a picture's, of a format read or not: what makes a folder a class."""
    return _suffix(name) in PICTURE_SUFFIXES or not name  # no name: see _walk


def _walk(root: Path, folder: str, top: set[tuple[int, int]]) -> Iterator[tuple[str, str]]:
    """(path, name) of all files below `folder` of `root`; a folder that cannot be read is (path, "")."""
    seen = set(top)
    todo, links = [folder], list[str]()
    while todo or links:
        # Real folders first: so a link to one of them, wherever it stands, is the one that is passed over.
        at = todo.pop() if todo else links.pop(0)
        try:
            identity = _identity(root / at)
            if identity in seen and at != folder:
                continue
            seen.add(identity)
            names, folders = [], []
            with os.scandir(root / at) as entries:
                for entry in entries:
                    if _is_hidden(entry.name):
                        continue
                    if not _is_folder(entry):
                        names.append(entry.name)
                    elif entry.is_symlink():
                        links.append(f"{at}/{entry.name}")
                    else:
                        folders.append(f"{at}/{entry.name}")
        except OSError:
            yield at, ""
            continue
        todo += sorted(folders, reverse=True)
        links.sort()
        names.sort()
        yield from ((f"{at}/{name}", name) for name in names)


def _status(root: Path, path: str, name: str) -> os.stat_result | LeftOut:
    """The status of a file that may be a picture, or why it is left out without a look."""
    if not name:
        return LeftOut(path, "unreadable", "folder cannot be read: allow it with chmod u+rx")
    suffix = _suffix(name)
    if suffix in _OTHER_FORMATS:
        return LeftOut(path, "not a format we read", f".{suffix}: convert to .jpg")
    if suffix not in SUFFIXES:
        return LeftOut(path, "not a picture by its name", f"ends in .{suffix}" if "." in name else "no suffix")
    try:
        status = os.stat(f"{root}/{path}")  # noqa: PTH116 - a Path for each of a million files doubles the time
    except OSError as error:
        return LeftOut(path, "unreadable", str(error.strerror))
    if kind := special_file_kind(status.st_mode):
        return LeftOut(path, "no file", f"{kind}: move it out of the folder")
    return status


def _find_loose_files(root: Path, folders: list[tuple[str, int, str]]) -> Iterator[tuple[str, str]]:
    """(path, name) of the files beside the class folders."""
    for parent in sorted({"", *(folder.rpartition("/")[0] for _, _, folder in folders)}):
        with os.scandir(root / parent) as entries:
            names = sorted(e.name for e in entries if not _is_hidden(e.name) and not _is_folder(e))
        yield from ((f"{parent}/{name}".lstrip("/"), name) for name in names)
