"""Read what a network is to predict: pictures, and rows of numbers.

Letters in shape comments: C channels, S side in pixels, F features.
"""

import csv
import glob
import math
import os
import stat
from collections import deque
from collections.abc import Container, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from datamodules import Preprocessing
from datamodules.errors import special_file_kind
from datamodules.machine import available_cores
from datamodules.photos.dataset import PhotoFiles, read_pixels
from datamodules.photos.decode import BadPicture
from datamodules.photos.find import find_files_below
from datamodules.photos.paths import Paths
from datamodules.text import plural

ROW_SUFFIXES = ("csv", "npy")


class Sample(NamedTuple):
    """One input: ``x`` (C, S, S) uint8 or (F,) float32, or ``error``, why there is none."""

    path: str
    row: int | None = None
    """Which row of a file of rows, from 1, a header not counted."""
    x: Tensor | None = None
    error: str = ""


def find_files(inputs: Iterable[str], suffixes: Container[str]) -> list[str]:
    """Files as they are named, those of a folder (with these suffixes, by name, hidden ones passed over) and those
    that a glob matches. A name, folder or glob without a file stands for itself, to be told of when it is read."""
    files: list[str] = []
    for name in inputs:
        named = [name]
        if not os.path.lexists(name) and glob.has_magic(name):
            named = sorted(glob.glob(name, recursive=True)) or named  # noqa: PTH207 - absolute ones, too
        for path in named:
            files += (Path(path).is_dir() and find_files_below(path, suffixes)) or [path]
    return files


def read_pictures(
    sources: Sequence[Any], preprocessing: Preprocessing, batch_size: int, ahead: int = 0
) -> Iterator[Sample]:
    """Decode on all cores; ``x`` is what validation sees.

    Args:
        sources: paths as from :func:`find_files`, PIL images, or arrays (H, W, 3) uint8.
        preprocessing: of the network.
        batch_size: pictures that are decoded together.
        ahead: further batches that are decoded meanwhile. For a network that computes on the same cores none: its
            threads and the decoding ones would wait for each other, which cost up to a quarter more CPU time.
    """
    photos = PhotoFiles(Path(), Paths.from_iterable(()), torch.zeros(0), preprocessing, False, 0)

    def read(index: int) -> Sample:
        source = sources[index]
        name = str(source) if isinstance(source, str | Path) else f"picture {index + 1}"
        if isinstance(source, str | Path) and (problem := _no_file(name)):
            return Sample(name, error=problem)
        try:
            return Sample(name, x=photos.transform_pixels(read_pixels(source)))
        except BadPicture as bad:
            return Sample(name, error=f"{bad.kind} ({bad.reason})")

    waiting: deque[list[Future[Sample]]] = deque()
    with ThreadPoolExecutor(available_cores()) as threads:  # decoding and resizing need no lock of Python's
        for start in range(0, len(sources), batch_size):
            waiting.append([threads.submit(read, index) for index in range(len(sources))[start : start + batch_size]])
            if len(waiting) > ahead:
                yield from (future.result() for future in waiting.popleft())
        for batch in waiting:
            yield from (future.result() for future in batch)


def _no_file(path: str) -> str:
    """Why there is nothing to open, or ""; a pipe, for one, would be waited for."""
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116
    except FileNotFoundError:
        if os.path.lexists(path):
            return "a link to nothing"
        return "matches no file" if glob.has_magic(path) else "no such file"
    except OSError as error:
        return f"unreadable ({error.strerror})"
    if stat.S_ISDIR(mode):
        return "a folder without files to predict" if os.access(path, os.R_OK | os.X_OK) else "folder cannot be read"
    return f"{kind}, no file" if (kind := special_file_kind(mode)) else ""


def read_rows(files: Iterable[str], width: int) -> Iterator[Sample]:
    """The rows of ``.csv`` (numbers with commas between, perhaps a header line) and ``.npy`` files; ``x`` is (width,)
    float32."""
    for file in files:
        problem = _no_file(file)
        if not problem and Path(file).suffix.lower() not in (".csv", ".npy"):
            problem = "no rows: give a .csv or .npy file"
        if problem:
            yield Sample(file, error=problem)
            continue
        try:
            rows = _npy_rows(file) if file.lower().endswith(".npy") else _csv_rows(file)
            row = 0
            for row, values in enumerate(rows, start=1):
                yield _checked(file, row, values, width)
            if not row:
                yield Sample(file, error="holds no rows")
        except (OSError, ValueError, csv.Error) as error:
            yield Sample(file, error=f"cannot be read as rows of numbers ({error})")


def _csv_rows(file: str) -> Iterator[list[str]]:
    with Path(file).open(newline="", encoding="utf-8-sig") as lines:
        rows = (row for row in csv.reader(lines) if row)
        if (first := next(rows, None)) is not None:
            if any(map(_is_number, first)):  # else it is a header
                yield first
            yield from rows


def _npy_rows(file: str) -> Iterator[np.ndarray]:
    try:
        array = np.lib.format.open_memmap(file, mode="r")  # np.load would open zip archives and pickles, too
    except Exception as error:  # a broken header has many ways to fail
        raise ValueError(f"no .npy file of numbers: {type(error).__name__}") from error
    if array.ndim not in (1, 2) or array.dtype.kind not in "fiub":
        raise ValueError("it has to hold numbers of shape (rows, features)")
    yield from np.atleast_2d(array)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _checked(file: str, row: int, values: Any, width: int) -> Sample:
    if len(values) != width:
        return Sample(file, row, error=f"{plural(len(values), 'value')} where the network takes {width}")
    strange = next((value for value in values if not _is_number(value) or not math.isfinite(float(value))), None)
    if strange is not None:
        return Sample(file, row, error=f"{strange} is no finite number")
    return Sample(file, row, torch.tensor([float(value) for value in values]))
