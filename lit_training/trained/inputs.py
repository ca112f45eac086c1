"""Read images or rows of numbers to predict. Letters in shapes: C channels, S side in pixels, F features."""

import csv
import glob
import math
import os
import stat
from collections import deque
from collections.abc import Container, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from datamodules import Preprocessing
from datamodules.machine import available_cores
from datamodules.photos.dataset import PhotoFiles, read_pixels
from datamodules.photos.decode import BadPicture
from datamodules.photos.find import find_files_below, special_file_kind
from datamodules.text import plural
from lit_training.text import is_number

ROW_SUFFIXES = ("csv", "npy")


class Sample(NamedTuple):
    """One input of a network. ``path``, ``row`` and ``error`` are explained in ``Prediction`` (predict.py)."""

    path: str
    row: int | None = None
    x: Tensor | None = None  # (C, S, S) uint8 for an image, (F,) float32 for a row; None if it cannot be read
    error: str = ""


def find_files(inputs: Iterable[str], suffixes: Container[str]) -> list[str]:
    """Replace globs and folders by their files, sorted by name, without hidden files. Return all paths.

    From folders, take files with one of the ``suffixes`` (lower case, no dot). A glob or folder without files stays in
    the list. When it is read later, its sample has an error.
    """
    files: list[str] = []
    for name in inputs:
        matches = [name]
        if not os.path.lexists(name) and glob.has_magic(name):
            matches = sorted(glob.glob(name, recursive=True)) or matches  # noqa: PTH207 - Path.glob: relative globs
        for path in matches:
            files += (os.path.isdir(path) and find_files_below(path, suffixes)) or [path]  # noqa: PTH112 - any text
    return files


def read_pictures(
    sources: Sequence[Any], preprocessing: Preprocessing, batch_size: int, ahead: int = 0
) -> Iterator[Sample]:
    """Yield the images in order, resized and cropped but not normalized. All cores decode the images of a batch.

    ``sources`` are paths from :func:`find_files`, bytes of files, PIL images, or uint8 arrays (H, W, 3). Other arrays
    raise a DataError. ``ahead`` is the number of batches to decode in advance.
    """
    photos = PhotoFiles(Path(), np.array([]), torch.zeros(0), preprocessing, (), 0)

    def read(index: int) -> Sample:
        source = sources[index]
        is_path = isinstance(source, str | Path)
        name = str(source) if is_path else f"picture {index + 1}"
        if is_path and (problem := _path_problem(name)):
            return Sample(name, error=problem)
        try:
            return Sample(name, x=photos.transform_pixels(read_pixels(source)))
        except BadPicture as bad:
            return Sample(name, error=f"{bad.kind} ({bad.reason})")

    batches: deque[Iterator[Sample]] = deque()
    with ThreadPoolExecutor(available_cores()) as threads:  # decoding and resizing release the GIL
        for start in range(0, len(sources), batch_size):
            batches.append(threads.map(read, range(len(sources))[start : start + batch_size]))  # decoding starts now
            if len(batches) > ahead:
                yield from batches.popleft()
        for batch in batches:
            yield from batch


def _path_problem(path: str) -> str:
    """Return why ``path`` is not a readable file, or "". Do not open it: a named pipe would block."""
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116
    except FileNotFoundError:
        if os.path.lexists(path):
            return "broken symbolic link"
        return "matches no file" if glob.has_magic(path) else "no such file"
    except (OSError, ValueError) as error:  # a ValueError for a null byte
        return f"unreadable ({getattr(error, 'strerror', error)})"
    if stat.S_ISDIR(mode):
        return "folder without files to predict" if os.access(path, os.R_OK | os.X_OK) else "folder cannot be read"
    return f"{kind}, not a file" if (kind := special_file_kind(mode)) else ""


def read_rows(files: Iterable[str], width: int) -> Iterator[Sample]:
    """Yield the rows of ``.csv`` and ``.npy`` files. A row needs ``width`` numbers. A ``.csv`` header is optional."""
    for file in files:
        suffix = Path(file).suffix[1:].lower()
        wrong_suffix = "not a file of rows: give a .csv or .npy file" * (suffix not in ROW_SUFFIXES)
        if problem := _path_problem(file) or wrong_suffix:
            yield Sample(file, error=problem)
            continue
        try:
            row = 0
            for row, values in enumerate(_npy_rows(file) if suffix == "npy" else _csv_rows(file), start=1):
                yield _to_sample(file, row, values, width)
            if not row:
                yield Sample(file, error="contains no rows")
        except Exception as error:  # damaged files raise many kinds of errors
            yield Sample(file, error=f"cannot be read as rows of numbers ({error})")


def _csv_rows(file: str) -> Iterator[list[str]]:
    with Path(file).open(newline="", encoding="utf-8-sig") as lines:
        rows = (row for row in csv.reader(lines) if row)
        first = next(rows, [])
        if any(map(is_number, first)):  # otherwise it is a header
            yield first
        yield from rows


def _npy_rows(file: str) -> Iterator[np.ndarray]:
    array = np.lib.format.open_memmap(file, mode="r")  # np.load would also open zip archives
    if array.ndim not in (1, 2) or array.dtype.kind not in "fiub":
        raise ValueError("must contain numbers of shape (rows, features)")
    yield from np.atleast_2d(array)


def _to_sample(file: str, row: int, values: Any, width: int) -> Sample:
    """Return a sample with the values as float32, or with an error if they are not ``width`` finite numbers."""
    if len(values) != width:
        return Sample(file, row, error=f"{plural(len(values), 'value')}, but the network takes {width}")
    for value in values:
        if not is_number(value) or not math.isfinite(float(value)):
            return Sample(file, row, error=f"{value} is not a finite number")
    return Sample(file, row, torch.tensor([float(value) for value in values]))
