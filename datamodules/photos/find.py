"""Find the pictures in a folder by their file names. Opens no file, and needs about 50 bytes of memory per picture."""

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
FORMAT_OF_SUFFIX = {
    **dict.fromkeys(("jpg", "jpeg", "jpe", "jfif"), "JPEG"),
    **dict.fromkeys(("ppm", "pgm", "pbm", "pnm"), "PPM"),
    **dict.fromkeys(("tif", "tiff"), "TIFF"),
    **{suffix: suffix.upper() for suffix in ("png", "bmp", "webp")},
}
_SPLIT_OF_NAME = {"train": TRAIN, "val": VAL, "valid": VAL, "validation": VAL, "test": TEST}
_IGNORED_NAMES = frozenset(("__macosx", "@eadir", "thumbs.db", "desktop.ini"))  # made by macOS, Synology, Windows
_UNSUPPORTED_SUFFIXES = frozenset(
    ("gif", "svg", "heic", "heif", "avif", "jxl", "jp2", "psd", "eps", "tga", "dng", "cr2", "nef", "arw")
)
PICTURE_SUFFIXES = FORMAT_OF_SUFFIX.keys() | _UNSUPPORTED_SUFFIXES  # includes the formats that cannot be decoded


class LeftOut(NamedTuple):
    """A file that is not used."""

    path: str
    kind: str  # a fixed text such as "truncated"
    reason: str  # details about this file


class ClassFolder(NamedTuple):
    """A folder whose pictures all have the same class and the same split. `path` is relative to the root."""

    name: str
    split: int
    path: str


@dataclass(frozen=True, eq=False)
class Listing:
    """The n pictures in a folder, and the files that are not used. Each array has one value for each path."""

    root: Path
    class_names: tuple[str, ...]
    paths: Paths  # relative to root
    labels: np.ndarray  # int32, indices of class_names
    splits: np.ndarray  # int8: TRAIN, VAL or TEST; all TRAIN if there are no split folders
    sizes: np.ndarray  # int64, bytes
    mtimes: np.ndarray  # int64, nanoseconds
    sha256: np.ndarray  # S64, lower-case hex; empty before the files are scanned
    left_out: list[LeftOut]
    notes: list[str]  # warnings of one line each

    def counts(self) -> np.ndarray:
        """Return the number of pictures per split and class: int64 array (3, classes)."""
        classes = len(self.class_names)
        return np.bincount(self.splits.astype(np.int64) * classes + self.labels, minlength=3 * classes).reshape(3, -1)

    def take(self, indices: np.ndarray) -> Listing:
        """Return a listing of only the pictures at `indices` (int array, ascending, each index once)."""
        if len(indices) == len(self.paths):
            return self
        columns = {name: getattr(self, name)[indices] for name in ("labels", "splits", "sizes", "mtimes", "sha256")}
        return replace(self, paths=self.paths.take(indices), **columns)

    def keep_classes(self, names: set[str]) -> Listing:
        """Return a listing of only the classes in `names`, with new labels. Add the other pictures to `left_out`."""
        kept_names = tuple(name for name in self.class_names if name in names)
        new_label = {name: label for label, name in enumerate(kept_names)}
        labels = np.array([new_label.get(name, -1) for name in self.class_names], np.int32)[self.labels]
        left_out, notes = [*self.left_out], [*self.notes]
        for label in np.unique(self.labels[labels < 0]).tolist():
            name, rows = self.class_names[label], np.flatnonzero(self.labels == label)
            split_names = " and ".join(SPLITS[split] for split in np.unique(self.splits[rows]))
            count_text, reason = plural(len(rows), "picture"), f"class {name} is only in {split_names}"
            notes.append(f"{printable(reason)}: it cannot be learned, {count_text} left out")
            left_out += [LeftOut(self.paths[row], "class not in train", reason) for row in rows]
        changed = replace(self, class_names=kept_names, labels=labels, left_out=left_out, notes=notes)
        return changed.take(np.flatnonzero(labels >= 0))


def find_class_names(root: str | Path) -> tuple[str, ...]:
    """Return the `class_names` of :func:`find_photos`, but read each training folder only up to its first picture."""
    root = Path(root).expanduser()
    folders, split_folders, _ = _find_class_folders(root)
    excluded = _folders_links_must_not_enter(root, folders, split_folders)
    folders_with_pictures = set[ClassFolder]()
    for folder in folders:
        if folder.split == TRAIN and any(_counts_as_picture(n) for _, n in _walk_files(root, folder.path, excluded)):
            folders_with_pictures.add(folder)
    return tuple(sorted(_trainable_classes(root, folders, folders_with_pictures)))


def find_photos(root: str | Path) -> Listing:
    """Find the pictures in a folder with the layout `train/<class>/`, `val/<class>/` or `<class>/`.

    Class folders are read in the order of their names. In each, the files are read first, then the subfolders, both
    sorted by name, and linked folders last. Hidden files are ignored. Links to a folder that was already read for this
    class, to another class folder, to a split folder, to `root` or to a folder above `root` are not followed.

    Raises:
        DataError: `root` cannot be read, or has another layout or no training pictures.
    """
    root = Path(root).expanduser()
    folders, split_folders, notes = _find_class_folders(root)
    excluded = _folders_links_must_not_enter(root, folders, split_folders)
    left_out = []
    path_bytes, offsets = bytearray(), array("q", [0])
    labels, splits, sizes, mtimes = array("i"), array("b"), array("q"), array("q")
    class_names = sorted({folder.name for folder in folders})
    label_of = {name: label for label, name in enumerate(class_names)}
    folders_with_pictures = set[ClassFolder]()
    for folder in folders:
        for path, name in _walk_files(root, folder.path, excluded):
            if _counts_as_picture(name):
                folders_with_pictures.add(folder)
            status = _stat_or_left_out(root, path, name)
            if isinstance(status, LeftOut):
                left_out.append(status)
                continue
            path_bytes += path.encode("utf-8", "surrogateescape")
            offsets.append(len(path_bytes))
            labels.append(label_of[folder.name])
            splits.append(folder.split)
            sizes.append(status.st_size)
            mtimes.append(status.st_mtime_ns)
    for parent in sorted({"", *(folder.path.rpartition("/")[0] for folder in folders)}):  # the root, or split folders
        for name in filter(_counts_as_picture, _list_folder(root / parent)[0]):
            path = f"{parent}/{name}".lstrip("/")
            left_out.append(LeftOut(path, "in no class folder", "is next to the class folders, not in one"))
    empty_folders = [folder for folder in folders if folder not in folders_with_pictures]
    notes += [f"{printable(folder.path)}/ contains no pictures: ignored" for folder in empty_folders]
    listing = Listing(
        root,
        tuple(class_names),
        Paths(np.frombuffer(path_bytes, np.uint8), np.frombuffer(offsets, np.int64)),
        np.frombuffer(labels, np.int32),
        np.frombuffer(splits, np.int8),
        np.frombuffer(sizes, np.int64),
        np.frombuffer(mtimes, np.int64),
        np.zeros(len(mtimes), "S64"),
        left_out,
        notes,
    )
    return listing.keep_classes(_trainable_classes(root, folders, folders_with_pictures))


def find_files_below(folder: str | Path, suffixes: Container[str]) -> list[str]:
    """Return the sorted paths of all files below `folder` with one of the `suffixes` (lower case, no dot).

    Hidden files are ignored. The list also contains the subfolders that cannot be read, for the caller to report.
    """
    files = _walk_files(Path(folder), ".", set())
    return sorted(str(Path(folder, path)) for path, name in files if not name or _suffix(name) in suffixes)


def _trainable_classes(root: Path, folders: list[ClassFolder], folders_with_pictures: set[ClassFolder]) -> set[str]:
    """Return the names of the classes with pictures in a training folder. Raise DataError if no class has any."""
    names = {folder.name for folder in folders_with_pictures if folder.split == TRAIN}
    if not names:
        example = next((folder.path for folder in folders if folder.split == TRAIN), "train/<class>")
        example_text = printable(f"{root}/{example}/")
        raise DataError(f"no pictures to train on in {printable(str(root))}: put some in {example_text}")
    return names


def _find_class_folders(root: Path) -> tuple[list[ClassFolder], list[str], list[str]]:
    """Return the class folders in `root`, the names of its split folders, and a note for each ignored subfolder."""
    root_text = printable(str(root))
    try:
        if not root.is_dir():
            problem = "is not a folder" if root.exists() else "does not exist"
            raise DataError(f"{root_text} {problem}: give the folder that contains your class folders")
        subfolders = _list_subfolders(root)
        split_of = {name: _SPLIT_OF_NAME[name.lower()] for name in subfolders if name.lower() in _SPLIT_OF_NAME}
        classes = {split_folder: _list_subfolders(root / split_folder) for split_folder in split_of}
    except OSError as error:
        raise DataError(f"{root_text} cannot be read ({error.strerror}): chmod -R u+rX {root_text}") from error
    train_folders = [name for name, split in split_of.items() if split == TRAIN]
    notes: list[str] = []
    # A folder "train" without subfolders and without val or test next to it is a class with this name.
    if any(classes[name] for name in train_folders) or (train_folders and len(split_of) > 1):
        for split in set(split_of.values()):
            synonyms = [name for name in split_of if split_of[name] == split]
            if len(synonyms) > 1:
                raise DataError(f"{root_text} has {' and '.join(synonyms)}, which mean the same: keep one of them")
        notes += [f"{printable(name)}/ is next to train/: ignored" for name in subfolders if name not in split_of]
        folders = [ClassFolder(name, split_of[top], f"{top}/{name}") for top in split_of for name in classes[top]]
        example = f"{root_text}/train/<class>/<picture>.jpg"
    elif split_of and len(split_of) == len(subfolders) and not train_folders:
        raise DataError(
            f"{root_text} has {', '.join(split_of)} but no train: make {root_text}/train/<class>/<picture>.jpg"
        )
    else:
        folders = [ClassFolder(name, TRAIN, name) for name in subfolders]
        example = f"{root_text}/<class>/<picture>.jpg"
    if not folders:
        raise DataError(f"{root_text} has no class folders: make one for each class, {example}")
    return folders, list(split_of), notes


def _folders_links_must_not_enter(
    root: Path, folders: list[ClassFolder], split_folders: list[str]
) -> set[tuple[int, int]]:
    """Return (device, inode) of the class folders, the split folders, `root` and all folders above `root`."""
    paths = ["", *split_folders, *(folder.path for folder in folders)]
    return {_device_and_inode(folder) for folder in [*root.absolute().parents, *(root / path for path in paths)]}


def _device_and_inode(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _list_folder(folder: Path) -> tuple[list[str], list[str], list[str]]:
    """Return the sorted names of the files, folders and links to folders in `folder`, without hidden ones."""
    files, folders, links = list[str](), list[str](), list[str]()
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name.lower() in _IGNORED_NAMES:
                continue
            try:
                is_folder = entry.is_dir()
            except OSError:  # a link to itself
                is_folder = False
            names = files if not is_folder else links if entry.is_symlink() else folders
            names.append(entry.name)
    return sorted(files), sorted(folders), sorted(links)


def _list_subfolders(folder: Path) -> list[str]:
    _, folders, links = _list_folder(folder)
    return sorted(folders + links)


def _suffix(name: str) -> str:
    return name.rpartition(".")[2].lower()


def _counts_as_picture(name: str) -> bool:
    """Return True if a file with this name makes its folder a class."""
    return _suffix(name) in PICTURE_SUFFIXES or not name  # "" is a folder that cannot be read: it may have pictures


def _walk_files(root: Path, folder: str, excluded: set[tuple[int, int]]) -> Iterator[tuple[str, str]]:
    """Yield (path, name) of each file below `folder`, and (path, "") of each folder that cannot be read.

    All paths are relative to `root`. Folders whose (device, inode) is in `excluded` are skipped.
    """
    already_read = set(excluded)
    folders_to_read, links_to_read = [folder], list[str]()
    while folders_to_read or links_to_read:
        # Links are read last. So a folder below `folder` is read by its own path, even if a link leads to it.
        current = folders_to_read.pop() if folders_to_read else links_to_read.pop(0)
        try:
            identity = _device_and_inode(root / current)
            if identity in already_read and current != folder:
                continue
            already_read.add(identity)
            files, subfolders, links = _list_folder(root / current)
        except OSError:
            yield current, ""
            continue
        folders_to_read += [f"{current}/{name}" for name in reversed(subfolders)]
        links_to_read = sorted([*links_to_read, *(f"{current}/{name}" for name in links)])
        yield from ((f"{current}/{name}", name) for name in files)


def _stat_or_left_out(root: Path, path: str, name: str) -> os.stat_result | LeftOut:
    """Return the status of a file from :func:`_walk_files`, or a LeftOut if it cannot be a readable picture."""
    if not name:
        return LeftOut(path, "unreadable", "folder cannot be read: allow it with chmod u+rx")
    suffix = _suffix(name)
    if suffix in _UNSUPPORTED_SUFFIXES:
        return LeftOut(path, "not a format we read", f".{suffix}: convert to .jpg")
    if suffix not in FORMAT_OF_SUFFIX:
        reason = f".{suffix} is not a picture suffix" if "." in name else "the name has no suffix"
        return LeftOut(path, "not a picture by its name", reason)
    try:
        status = os.stat(f"{root}/{path}")  # noqa: PTH116 - creating a Path for each file doubles the time
    except OSError as error:
        return LeftOut(path, "unreadable", str(error.strerror))
    if kind := special_file_kind(status.st_mode):
        return LeftOut(path, "no file", f"{kind}: move it out of the folder")
    return status
