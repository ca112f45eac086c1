"""Find the pictures of a folder by their names, without opening them.

Paths, labels and sizes are kept in arrays, because a million of them then need only about 50 bytes each.
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
_SPLIT_FOLDERS = {"train": TRAIN, "val": VAL, "valid": VAL, "validation": VAL, "test": TEST}
_SYSTEM_NAMES = frozenset(("__macosx", "@eadir", "thumbs.db", "desktop.ini"))  # ignored, like hidden files
_OTHER_FORMATS = frozenset(
    ("gif", "svg", "heic", "heif", "avif", "jxl", "jp2", "psd", "eps", "tga", "dng", "cr2", "nef", "arw")
)
PICTURE_SUFFIXES = SUFFIXES.keys() | _OTHER_FORMATS  # pictures, including those that cannot be read


class LeftOut(NamedTuple):
    """A file that is not used. `kind` is one of a few fixed texts, `reason` gives details."""

    path: str
    kind: str
    reason: str


class ClassFolder(NamedTuple):
    """A folder, `path` below the root, whose pictures all have the same class and split."""

    name: str
    split: int
    path: str


@dataclass(frozen=True, eq=False)
class Listing:
    """The files of a folder, found by name. No file has been opened.

    `labels` (int32), `splits` (int8; TRAIN if the folders do not tell), `sizes` (int64, bytes) and `mtimes` (int64,
    nanoseconds) have one row for each of `paths`. `left_out` lists the files that are not used, `notes` are warnings
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

    def counts(self) -> np.ndarray:
        """Return the number of files per split and class: int64 array (3, classes)."""
        classes = len(self.class_names)
        return np.bincount(self.splits.astype(np.int64) * classes + self.labels, minlength=3 * classes).reshape(3, -1)

    def take(self, indices: np.ndarray) -> Listing:
        """Return a listing of only the files at `indices`."""
        if len(indices) == len(self.paths):
            return self
        columns = {name: getattr(self, name)[indices] for name in ("labels", "splits", "sizes", "mtimes")}
        return replace(self, paths=self.paths.take(indices), **columns)

    def keep_classes(self, learned: set[str]) -> Listing:
        """Keep only the classes in `learned` and renumber the labels. Files of other classes go to `left_out`."""
        names = tuple(name for name in self.class_names if name in learned)
        new_label = {name: label for label, name in enumerate(names)}
        labels = np.array([new_label.get(name, -1) for name in self.class_names], np.int32)[self.labels]
        left_out, notes = [*self.left_out], [*self.notes]
        for label in np.unique(self.labels[labels < 0]).tolist():
            name, rows = self.class_names[label], np.flatnonzero(self.labels == label)
            where = " and ".join(SPLITS[split] for split in np.unique(self.splits[rows]))
            many = plural(len(rows), "picture")
            notes.append(f"class {printable(name)} is only in {where}: it cannot be learned, {many} left out")
            reason = f"class {name} is only in {where}"
            left_out += [LeftOut(self.paths[row], "class not in train", reason) for row in rows]
        changed = replace(self, class_names=names, labels=labels, left_out=left_out, notes=notes)
        return changed.take(np.flatnonzero(labels >= 0))


def find_class_names(root: str | Path) -> tuple[str, ...]:
    """Return the `class_names` of :func:`find_photos`, but faster: read each folder only up to its first picture."""
    root = Path(root).expanduser()
    folders, _ = _read_layout(root)
    excluded = _excluded_targets(root, folders)
    train = [folder for folder in folders if folder.split == TRAIN]
    filled = {folder for folder in train if any(_is_candidate(name) for _, name in _walk(root, folder.path, excluded))}
    return tuple(sorted(_learned_classes(root, folders, filled)))


def find_photos(root: str | Path) -> Listing:
    """Find the pictures of a folder with the layout `train/<class>/`, `val/<class>/` or `<class>/`. Opens no file.

    Files are sorted by name. Hidden files are ignored. A linked folder is read once per class. A link to another
    class folder, to `root` or to a folder above it is not followed.

    Raises:
        DataError: `root` is not a directory, has no class folders or has no pictures to train on.
    """
    root = Path(root).expanduser()
    folders, notes = _read_layout(root)
    excluded = _excluded_targets(root, folders)
    left_out = []
    data, offsets = bytearray(), array("q", [0])
    labels, splits, sizes, mtimes = array("i"), array("b"), array("q"), array("q")
    names = sorted({folder.name for folder in folders})
    label_of = {name: label for label, name in enumerate(names)}
    filled = set[ClassFolder]()
    for folder in folders:
        for path, name in _walk(root, folder.path, excluded):
            if _is_candidate(name):
                filled.add(folder)
            status = _status(root, path, name)
            if isinstance(status, LeftOut):
                left_out.append(status)
                continue
            data += path.encode("utf-8", "surrogateescape")
            offsets.append(len(data))
            labels.append(label_of[folder.name])
            splits.append(folder.split)
            sizes.append(status.st_size)
            mtimes.append(status.st_mtime_ns)
    for parent in _parents(folders):
        for name in filter(_is_candidate, _list_folder(root / parent)[0]):
            path = f"{parent}/{name}".lstrip("/")
            left_out.append(LeftOut(path, "in no class folder", "is next to the class folders, not in one"))
    notes += [f"{printable(folder.path)}/ contains no pictures: ignored" for folder in folders if folder not in filled]
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
    return listing.keep_classes(_learned_classes(root, folders, filled))


def find_files_below(folder: str | Path, suffixes: Container[str]) -> list[str]:
    """Return the files below `folder` whose suffix (lower case, no dot) is in `suffixes`, sorted.

    Hidden files and links back into `folder` are ignored. A subfolder that cannot be read is returned like a file.
    """
    found = _walk(Path(folder), ".", set())
    return sorted(str(Path(folder, path)) for path, name in found if not name or _suffix(name) in suffixes)


def _learned_classes(root: Path, folders: list[ClassFolder], filled: set[ClassFolder]) -> set[str]:
    """Return the classes with training pictures. `filled` are the `folders` that contain pictures."""
    learned = {folder.name for folder in filled if folder.split == TRAIN}
    if not learned:
        first = next((folder.path for folder in folders if folder.split == TRAIN), "train/<class>")
        put = printable(f"{root}/{first}/")
        raise DataError(f"no pictures to train on in {printable(str(root))}: put some in {put}")
    return learned


def _read_layout(root: Path) -> tuple[list[ClassFolder], list[str]]:
    """Return the class folders below `root` and notes about the other folders."""
    here = printable(str(root))
    try:
        if not root.is_dir():
            what = "is not a folder" if root.exists() else "does not exist"
            raise DataError(f"{here} {what}: give the folder that contains your class folders")
        inside = _subfolders(root)
        split_of = {folder: _SPLIT_FOLDERS[folder.lower()] for folder in inside if folder.lower() in _SPLIT_FOLDERS}
        classes = {folder: _subfolders(root / folder) for folder in split_of}
    except OSError as error:
        raise DataError(f"{here} cannot be read ({error.strerror}): chmod -R u+rX {here}") from error
    train = [folder for folder, split in split_of.items() if split == TRAIN]
    notes: list[str] = []
    if any(classes[folder] for folder in train) or (train and len(split_of) > 1):  # else "train" is a class
        for split in set(split_of.values()):
            same = [folder for folder in split_of if split_of[folder] == split]
            if len(same) > 1:
                raise DataError(f"{here} has {' and '.join(same)}, which mean the same: keep one of them")
        notes += [f"{printable(name)}/ is next to train/: ignored" for name in inside if name not in split_of]
        folders = [ClassFolder(name, split_of[top], f"{top}/{name}") for top in split_of for name in classes[top]]
        example = f"{here}/train/<class>/<picture>.jpg"
    elif split_of and len(split_of) == len(inside) and not train:
        raise DataError(f"{here} has {', '.join(split_of)} but no train: make {here}/train/<class>/<picture>.jpg")
    else:
        folders = [ClassFolder(name, TRAIN, name) for name in inside]
        example = f"{here}/<class>/<picture>.jpg"
    if not folders:
        raise DataError(f"{here} has no class folders: make one for each class, {example}")
    return folders, notes


def _parents(folders: list[ClassFolder]) -> list[str]:
    """Return the root ("") and the folders that contain class folders, sorted."""
    return sorted({"", *(folder.path.rpartition("/")[0] for folder in folders)})


def _excluded_targets(root: Path, folders: list[ClassFolder]) -> set[tuple[int, int]]:
    """Return the identities of the folders that are not read if a link inside a class folder leads to them."""
    own = [*_parents(folders), *(folder.path for folder in folders)]
    return {_identity(folder) for folder in [*root.absolute().parents, *(root / path for path in own)]}


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _list_folder(folder: Path) -> tuple[list[str], list[str], list[str]]:
    """Return the names of the files, folders and links to folders in `folder`, each sorted, without hidden ones."""
    files, folders, links = list[str](), list[str](), list[str]()
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name.lower() in _SYSTEM_NAMES:
                continue
            try:
                is_folder = entry.is_dir()
            except OSError:  # a link to itself
                is_folder = False
            names = files if not is_folder else links if entry.is_symlink() else folders
            names.append(entry.name)
    return sorted(files), sorted(folders), sorted(links)


def _subfolders(folder: Path) -> list[str]:
    _, folders, links = _list_folder(folder)
    return sorted(folders + links)


def _suffix(name: str) -> str:
    return name.rpartition(".")[2].lower()


def _is_candidate(name: str) -> bool:
    """True if a file with this name makes its folder a class: it has the suffix of a picture, readable or not."""
    return _suffix(name) in PICTURE_SUFFIXES or not name  # no name: see _walk


def _walk(root: Path, folder: str, excluded: set[tuple[int, int]]) -> Iterator[tuple[str, str]]:
    """Yield (path, name) of all files below `folder` of `root`, and (path, "") of a folder that cannot be read."""
    seen = set(excluded)
    todo, links = [folder], list[str]()
    while todo or links:
        # Links come last, so that a link to a folder that is also below `folder` is the one that is ignored.
        at = todo.pop() if todo else links.pop(0)
        try:
            identity = _identity(root / at)
            if identity in seen and at != folder:
                continue
            seen.add(identity)
            names, folders, linked = _list_folder(root / at)
        except OSError:
            yield at, ""
            continue
        todo += [f"{at}/{name}" for name in reversed(folders)]
        links = sorted([*links, *(f"{at}/{name}" for name in linked)])
        yield from ((f"{at}/{name}", name) for name in names)


def _status(root: Path, path: str, name: str) -> os.stat_result | LeftOut:
    """Return the status of a file that may be a picture, or the reason why it is left out unopened."""
    if not name:
        return LeftOut(path, "unreadable", "folder cannot be read: allow it with chmod u+rx")
    suffix = _suffix(name)
    if suffix in _OTHER_FORMATS:
        return LeftOut(path, "not a format we read", f".{suffix}: convert to .jpg")
    if suffix not in SUFFIXES:
        return LeftOut(path, "not a picture by its name", f"ends in .{suffix}" if "." in name else "no suffix")
    try:
        status = os.stat(f"{root}/{path}")  # noqa: PTH116 - creating a Path for each file doubles the time
    except OSError as error:
        return LeftOut(path, "unreadable", str(error.strerror))
    if kind := special_file_kind(status.st_mode):
        return LeftOut(path, "no file", f"{kind}: move it out of the folder")
    return status
