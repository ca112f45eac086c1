"""Find the pictures in a folder by their file names."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import unicodedata
from array import array
from collections import Counter
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datamodules.errors import DataError
from datamodules.files import OUTPUT_MARKER
from datamodules.text import first_names, plural, printable

TRAIN, VAL, TEST = 0, 1, 2
SPLITS = ("train", "val", "test")
FORMAT_OF_SUFFIX = {
    **dict.fromkeys(("jpg", "jpeg", "jpe", "jfif"), "JPEG"),
    **dict.fromkeys(("ppm", "pgm", "pbm", "pnm"), "PPM"),
    **dict.fromkeys(("tif", "tiff"), "TIFF"),
    **dict.fromkeys(("heic", "heif", "hif"), "HEIF"),  # needs the extra "heif"
    **{suffix: suffix.upper() for suffix in ("png", "bmp", "webp")},
}
_NEUTRAL = "(?:data|sets?|splits?|seg|cls|images?|imgs?|photos?|pics?|pictures?|samples?|folder|dir|jpe?gs?|pngs?)*"
# One word of a folder's name. Group 1, 2 or 3 matches if the word says train, val or test. No group: a neutral word.
_SPLIT_WORD = re.compile(
    rf"{_NEUTRAL}(?:(train(?:ing|val)?)|(val(?:id(?:ation)?)?|dev|eval(?:uation)?)|(test(?:ing)?|holdout))?{_NEUTRAL}"
)
# A command of this project has made the folders with these names, or with these files.
_OUTPUT_FOLDERS = ("lightning_logs", "explanations")
_OUTPUT_FILES = ((OUTPUT_MARKER,), ("config.yaml", "checkpoints"), ("predictions.csv", "confusion_matrix.csv"))
_IGNORED_NAMES = frozenset(("__macosx", "@eadir", "thumbs.db", "desktop.ini"))  # made by macOS, Synology, Windows
UNSUPPORTED_SUFFIXES = frozenset(
    {"gif", "svg", "avif", "jxl", "jp2", "j2k", "psd", "eps", "tga", "dcm", "exr", "hdr", "dds", "pcx", "ico"}
    | {"dng", "cr2", "cr3", "nef", "arw", "orf", "rw2", "raf", "srw", "pef"}
)
PICTURE_SUFFIXES = FORMAT_OF_SUFFIX.keys() | UNSUPPORTED_SUFFIXES  # includes the formats that cannot be decoded
MAX_SUFFIX_LENGTH = 5  # a longer text after the last dot is not a suffix: "2021.05.03 Berlin"
_UNREADABLE, _OUTPUT = "/unreadable", "/output"  # instead of a suffix, for a folder that is not read
_MAKES_A_CLASS = PICTURE_SUFFIXES | {_UNREADABLE}  # a folder with such files is a class: it has, or may have, pictures
_SUFFIX_OF_FIRST_BYTES = re.compile(  # the name of the group is the suffix
    rb"(?P<jpg>\xff\xd8\xff)|(?P<png>\x89PNG\r\n)|(?P<gif>GIF8)|(?P<bmp>BM.{4}\0{4})|(?P<webp>RIFF.{4}WEBP)"
    rb"|(?P<tif>(?:II|MM)(?:[*+]\0|\0[*+]))|(?P<ppm>P(?:[1-6]\s+[\d#]|[7Ff]\s))"
    rb"|(?P<avif>.{4}ftypavi)|(?P<heic>.{4}ftyp(?:hei|hev|mif1|msf1))",
    re.DOTALL,
)


class LeftOut(NamedTuple):
    """A file that is not used."""

    path: str
    kind: str  # a fixed text such as "truncated"
    reason: str  # details about this file


class ClassFolder(NamedTuple):
    """A folder for the pictures of one class and one split. `path` is relative to the root."""

    name: str
    split: int
    path: str


@dataclass(frozen=True, eq=False)
class Listing:
    """The n pictures in a folder, and the files that are not used. Each array has one value for each path."""

    root: Path
    class_names: tuple[str, ...]
    paths: np.ndarray  # str, relative to root; bytes that are not UTF-8 are surrogates
    labels: np.ndarray  # int32, indices of class_names
    splits: np.ndarray  # int8: TRAIN, VAL or TEST; all TRAIN if there are no split folders
    sizes: np.ndarray  # int64, bytes
    mtimes: np.ndarray  # int64, nanoseconds
    sha256: np.ndarray  # S64, lower-case hex; empty before the files are scanned
    groups: np.ndarray  # int64; pictures with the same number must stay on one side of a split or fold
    left_out: list[LeftOut]
    notes: list[str]  # warnings of one line each

    def counts(self) -> np.ndarray:
        """Return the number of pictures per split and class: int64 array (3, classes)."""
        classes = len(self.class_names)
        return np.bincount(self.splits.astype(np.int64) * classes + self.labels, minlength=3 * classes).reshape(3, -1)

    def take(self, indices: np.ndarray) -> Listing:
        """Return a listing of only the pictures at `indices` (ints, or bools for all pictures)."""
        columns = ("paths", "labels", "splits", "sizes", "mtimes", "sha256", "groups")
        return replace(self, **{name: getattr(self, name)[indices] for name in columns})

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
        return changed.take(labels >= 0)


def find_photos(root: str | Path, layout: str | None = None, *, strict: bool = True) -> Listing:
    """Find the pictures in a folder with the layout `train/<class>/`, `val/<class>/` or `<class>/`.

    In each class folder, the files come first, then the subfolders, then linked folders, all sorted by name. Links to
    a class folder, a split folder, `root`, a folder above it or a folder that was already read are not followed.
    Hidden files and folders that a command of this project has made are ignored.

    Args:
        layout: `classes`: the subfolders are classes. `split`: they are train, val and test. None: their names decide.
        strict: refuse a folder that cannot be trained on or whose names allow two layouts. False, for an evaluation:
            the subfolders are classes if they may be, and classes without training pictures are kept.
    """
    root = Path(root).expanduser()
    folders, split_folders, notes = find_class_folders(root, layout, strict)
    own_paths = [root, *(root / top for top in split_folders), *(root / folder.path for folder in folders)]
    excluded = {_device_and_inode(path) for path in (*root.absolute().parents, *own_paths)}
    left_out, outputs, paths, numbers = [], list[str](), list[str](), array("q")
    class_names = sorted({folder.name for folder in folders})
    label_of = {name: label for label, name in enumerate(class_names)}
    folders_with_pictures = set[ClassFolder]()
    merged_folders = dict[str, None]()
    for folder in folders:
        for path, suffix in _walk_files(root, folder.path, excluded):
            if suffix in _MAKES_A_CLASS:
                folders_with_pictures.add(folder)
            if suffix == _OUTPUT:
                outputs.append(path)
                continue
            status = _stat_or_left_out(root, path, suffix)
            if isinstance(status, LeftOut):
                left_out.append(status)
                continue
            if (end := path.find("/", len(folder.path) + 1)) > 0:
                merged_folders[path[:end]] = None
            paths.append(path)
            numbers.extend((label_of[folder.name], folder.split, status.st_size, status.st_mtime_ns))
    for prefix in ("", *(f"{top}/" for top in split_folders)):
        files, _, _, made_here = _list_folder(root / prefix)
        outputs += [prefix + name for name in made_here]
        reason = f"directly in {prefix.rstrip('/') or 'the main folder'}, not in a class folder"
        loose = [prefix + name for name in files if _suffix(f"{root}/{prefix}{name}") in PICTURE_SUFFIXES]
        left_out += [LeftOut(path, "in no class folder", reason) for path in loose]
    empty = [folder.path for folder in folders if folder not in folders_with_pictures]
    notes += [f"{printable(path)}/ contains no pictures: ignored" for path in empty]
    if merged_folders:
        count_text, names = plural(len(merged_folders), "subfolder"), first_names([*merged_folders], 3)
        notes.append(f"the pictures of {count_text} count as the class above them ({names})")
    if outputs:
        notes.append(f"not read, because this project made them: {first_names(sorted(outputs), 3)}")
    labels, splits, sizes, mtimes = np.frombuffer(numbers, np.int64).reshape(-1, 4).T
    columns = labels.astype(np.int32), splits.astype(np.int8), sizes, mtimes
    new = np.zeros(len(paths), "S64"), np.arange(len(paths))
    listing = Listing(root, tuple(class_names), np.array(paths, object), *columns, *new, left_out, notes)
    kept = {folder.name for folder in folders_with_pictures if folder.split == TRAIN or not strict}
    if strict and not kept:
        example = next((folder.path for folder in folders if folder.split == TRAIN), "train/<class>")
        example_text = printable(f"{root}/{example}/")
        raise DataError(f"no pictures to train on in {printable(str(root))}: put some in {example_text}")
    return listing.keep_classes(kept)


def find_files_below(folder: str | Path, suffixes: Container[str]) -> list[str]:
    """Return the sorted paths of all files below `folder` with one of the `suffixes` (lower case, no dot).

    Hidden files are ignored. Subfolders that cannot be read are also in the list, so that the caller can report them.
    """
    files = _walk_files(Path(folder), ".")
    return sorted(str(Path(folder, path)) for path, suffix in files if suffix == _UNREADABLE or suffix in suffixes)


def find_class_folders(root: Path, layout: str | None, strict: bool) -> tuple[list[ClassFolder], list[str], list[str]]:
    """Return the class folders, the names of the split folders, and notes. See :func:`find_photos`."""
    root_text = printable(str(root))
    try:
        if not root.is_dir():
            problem = "is not a folder" if root.exists() else "does not exist"
            raise DataError(f"{root_text} {problem}: give the folder that contains your class folders")
        subfolders = _list_subfolders(root)
        split_of = {} if layout == "classes" else _find_split_folders(subfolders)
        classes = {split_folder: _list_subfolders(root / split_folder) for split_folder in split_of}
    except OSError as error:
        raise DataError(f"{root_text} cannot be read ({error.strerror}): chmod -R u+rX {root_text}") from error
    train_folders = [name for name, split in split_of.items() if split == TRAIN]
    others = [name for name in subfolders if name not in split_of]
    notes: list[str] = []
    all_are_classes = "or, if all are classes, --data.layout classes"
    is_evaluation_folder = not strict and not others and any(classes.values())
    # A folder "train" is a class if it has no subfolders and there is no folder val or test next to it.
    if any(classes[name] for name in train_folders) or (train_folders and len(split_of) > 1) or is_evaluation_folder:
        if strict and layout is None and len(split_of) == 1:
            _refuse_two_layouts(root, subfolders)
        for split in set(split_of.values()):
            synonyms = [name for name in split_of if split_of[name] == split]
            if len(synonyms) > 1 and strict:
                problem = f"has {' and '.join(synonyms)}, which mean the same"
                raise DataError(f"{root_text} {problem}: make one folder of them, {all_are_classes}")
        notes += [f"{printable(name)}/ is next to {printable(next(iter(split_of)))}/: ignored" for name in others]
        folders = [ClassFolder(name, split_of[top], f"{top}/{name}") for top in split_of for name in classes[top]]
    elif layout == "split":
        names = first_names(subfolders, 3)
        raise DataError(f"{root_text}: for --data.layout split, rename {names} to train, val and test; train is needed")
    elif split_of and not train_folders and (strict or not others):
        names = ", ".join(split_of)
        raise DataError(f"{root_text} has {names} but no train: make {root_text}/train/<class>/, {all_are_classes}")
    else:
        if strict and layout is None:
            _refuse_two_layouts(root, subfolders)
        split_of = {}
        folders = [ClassFolder(name, TRAIN, name) for name in subfolders]
    if not folders:
        example = f"{root_text}/{'train/' if split_of else ''}<class>/<picture>.jpg"
        raise DataError(f"{root_text} has no class folders: make one for each class, {example}")
    return _match_class_names(folders, notes), list(split_of), notes


def _find_split_folders(names: list[str]) -> dict[str, int]:
    """Return the split of each folder whose name says one: `Training`, `seg_test`, or `fruits-val` with `fruits-train`.

    Other words in a name, such as `fruits`, are allowed if a training folder and another split have the same ones.
    """
    groups: dict[str, dict[str, int]] = {"": {}}  # the other words of the name -> folder -> split
    for name in names:
        words = re.findall(r"[^\W\d_]+", re.sub("(?<=[a-z])(?=[A-Z])", "_", name))
        matches = {word.lower(): _SPLIT_WORD.fullmatch(word.lower()) for word in words}
        splits = [match.lastindex - 1 for match in matches.values() if match and match.lastindex]
        if len(splits) == 1:
            other_words = " ".join(word for word, match in matches.items() if not match)
            groups.setdefault(other_words, {})[name] = splits[0]
    found = groups.pop("")
    if TRAIN not in found.values():
        plain_splits = set(found.values())
        for group in groups.values():
            if TRAIN in group.values() and len({*group.values(), *plain_splits}) > 1:
                found |= group
    return found


def _refuse_two_layouts(root: Path, subfolders: list[str]) -> None:
    """Raise DataError if several subfolders have subfolders of the same names, so that these could be the classes."""
    names_below = dict[str, set[str]]()
    for name in subfolders:
        with contextlib.suppress(OSError):
            below = {_fold(n) for n in _list_subfolders(root / name) if _contains_pictures(root, f"{name}/{n}")}
            if not below and _contains_pictures(root, name):
                return
            names_below |= {name: below} if below else {}
    uses = Counter(name for below in names_below.values() for name in below)
    shared = sorted(name for name, count in uses.items() if count > 1)
    if len(shared) < 2 or any(below.isdisjoint(shared) for below in names_below.values()):
        return
    problem, tops = f"{printable(str(root))} can be read in two ways", first_names([*names_below], 3)
    if len(_find_split_folders(shared)) > 1:
        raise DataError(f"{problem}: move the splits {first_names(shared, 3)} out of {tops}, as in train/<class>/")
    if_splits = f"If they are splits of the classes {first_names(shared, 3)}: --data.layout split"
    raise DataError(f"{problem}. If {tops} are the classes: --data.layout classes. {if_splits}")


def _fold(name: str) -> str:
    """Return the same text for names that differ only in case, blanks at the ends, or Unicode form."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).strip().casefold())


def _match_class_names(folders: list[ClassFolder], notes: list[str]) -> list[ClassFolder]:
    """Give a folder in val or test the name of the class in train whose :func:`_fold` is equal. Add to the notes."""
    alike: dict[tuple[int, str], list[ClassFolder]] = {}
    for folder in folders:
        alike.setdefault((folder.split, _fold(folder.name)), []).append(folder)
    matched = []
    for (_, folded), twins in alike.items():
        folder, in_train = twins[0], alike.get((TRAIN, folded), [])
        if len(twins) > 1:
            names = " and ".join(f"'{printable(twin.path)}'" for twin in twins)
            notes.append(f"{names} are different classes, but their names look alike: join the folders if they are one")
        elif len(in_train) == 1 and folder.name != in_train[0].name:
            notes.append(f"'{printable(folder.path)}' is read as the class '{printable(in_train[0].name)}'")
            twins = [folder._replace(name=in_train[0].name)]
        matched += twins
    return matched


def _device_and_inode(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _list_folder(folder: Path) -> tuple[list[str], list[str], list[str], list[str]]:
    """Return the sorted names of files, folders, links to folders, and folders that a command of this project made.

    Hidden ones are ignored.
    """
    files, folders, links, outputs = list[str](), list[str](), list[str](), list[str]()
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name.lower() in _IGNORED_NAMES:
                continue
            names = files
            with contextlib.suppress(OSError):  # for example, a link to itself
                if entry.is_dir():
                    names = outputs if _is_output(entry) else links if entry.is_symlink() else folders
            names.append(entry.name)
    return sorted(files), sorted(folders), sorted(links), sorted(outputs)


def _is_output(folder: os.DirEntry[str]) -> bool:
    """Return True if a command of this project has made the folder: a run, an evaluation, or heat maps."""
    return folder.name in _OUTPUT_FOLDERS or any(
        all(os.access(f"{folder.path}/{name}", os.F_OK) for name in names) for names in _OUTPUT_FILES
    )


def _list_subfolders(folder: Path) -> list[str]:
    _, folders, links, _ = _list_folder(folder)
    return sorted(folders + links)


def _suffix(path: str) -> str:
    """Return the suffix of a file in lower case, without a dot. If it is unknown, prefer the suffix of the content."""
    _, dot, suffix = path.rpartition("/")[2].rpartition(".")
    suffix = suffix.lower() if dot and len(suffix) <= MAX_SUFFIX_LENGTH else ""
    if suffix in PICTURE_SUFFIXES:
        return suffix
    with contextlib.suppress(OSError):
        if Path(path).is_file():  # a named pipe would wait
            with Path(path).open("rb") as file:
                return suffix_of_content(file.read(16)) or suffix
    return suffix


def suffix_of_content(first_bytes: bytes) -> str:
    """Return the suffix of the format of a file that begins with these bytes (16 or more), or "" if it is unknown."""
    match = _SUFFIX_OF_FIRST_BYTES.match(first_bytes)
    return str(match.lastgroup) if match else ""


def _contains_pictures(root: Path, folder: str) -> bool:
    return any(suffix in _MAKES_A_CLASS for _, suffix in _walk_files(root, folder))


def _walk_files(root: Path, folder: str, excluded: Iterable[tuple[int, int]] = ()) -> Iterator[tuple[str, str]]:
    """Yield (path, suffix) of each file below `folder`. Also yield (path, _UNREADABLE) and (path, _OUTPUT) of folders.

    All paths are relative to `root`. Folders whose (device, inode) is in `excluded` are skipped, except `folder`.
    """
    already_read = set(excluded)
    folders_to_read, links_to_read = [folder], list[str]()
    while folders_to_read or links_to_read:
        # Read links last: if two paths lead to a folder, one through a link, the path without a link is used.
        current = folders_to_read.pop() if folders_to_read else links_to_read.pop(0)
        try:
            identity = _device_and_inode(root / current)
            if identity in already_read and current != folder:
                continue
            already_read.add(identity)
            files, subfolders, links, outputs = _list_folder(root / current)
        except OSError:
            yield current, _UNREADABLE
            continue
        folders_to_read += [f"{current}/{name}" for name in reversed(subfolders)]
        links_to_read = sorted([*links_to_read, *(f"{current}/{name}" for name in links)])
        yield from ((f"{current}/{name}", _OUTPUT) for name in outputs)
        yield from ((f"{current}/{name}", _suffix(f"{root}/{current}/{name}")) for name in files)


def _stat_or_left_out(root: Path, path: str, suffix: str) -> os.stat_result | LeftOut:
    """Return the status of a file from :func:`_walk_files`, or a LeftOut if it cannot be a picture."""
    if suffix == _UNREADABLE:
        return LeftOut(path, "unreadable", "folder cannot be read: allow it with chmod u+rx")
    if suffix not in PICTURE_SUFFIXES:
        reason = f".{suffix} is not a picture suffix" if suffix else "no suffix, and not a picture by its first bytes"
        return LeftOut(path, "not a picture by its name", reason)
    try:
        status = os.stat(f"{root}/{path}")  # noqa: PTH116 - creating a Path for each file doubles the time
    except OSError as error:
        return LeftOut(path, "unreadable", str(error.strerror))
    if kind := special_file_kind(status.st_mode):
        return LeftOut(path, "no file", f"{kind}: move it out of the folder")
    return status


def special_file_kind(mode: int) -> str:
    """Return what a file with this ``st_mode`` is, such as ``a socket``. Return "" for a regular file."""
    kinds = {"-": "", "p": "a named pipe", "s": "a socket", "c": "a device", "b": "a device"}
    return kinds.get(stat.filemode(mode)[0], "not a regular file")
