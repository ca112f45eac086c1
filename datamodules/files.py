"""Write files atomically. Read and write CSV files that can contain any text."""

from __future__ import annotations

import contextlib
import csv
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

TEXT_FILE_ARGUMENTS: dict[str, Any] = {"newline": "", "encoding": "utf-8", "errors": "surrogateescape"}
"""Arguments of ``open`` for text files. ``surrogateescape`` preserves file names that are not valid UTF-8."""
READ_TEXT_FILE = {**TEXT_FILE_ARGUMENTS, "encoding": "utf-8-sig"}  # skips the byte order mark that Excel writes
OUTPUT_MARKER = ".lit_classics_output"
"""A hidden file in each folder that a command makes for its results. The pictures in such a folder are not data."""


@contextlib.contextmanager
def atomic_write(path: str | Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file for a ``with`` block, and rename it to ``path`` at the end. ``mode`` is ``wb`` or ``w``.

    So ``path`` is never incomplete, and an error in the block leaves it unchanged. A missing folder is created.
    """
    target = Path(path)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with part.open(mode, **({} if "b" in mode else TEXT_FILE_ARGUMENTS)) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    finally:
        with contextlib.suppress(OSError):  # after the rename the temporary file does not exist
            part.unlink()
    with contextlib.suppress(OSError):  # Windows and some file systems cannot sync a folder
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_csv(path: str | Path, rows: Iterable[Iterable[Any]]) -> None:
    """Write a CSV file in UTF-8. The first row contains the column names."""
    with atomic_write(path, "w") as file:
        csv.writer(file).writerows(rows)


def write_spreadsheet(
    path: str | Path, rows: Iterable[Iterable[str]], numbers: str = "$^", mark: str = "\ufeff"
) -> None:
    """Write a CSV file in which no text can become a formula: the prefix ``'`` is put before ``'``, =, + and the like.

    Columns whose name matches ``numbers`` get no prefix. Excel sees by the ``mark`` that this is UTF-8.
    """
    body = map(list, rows)
    head = next(body)
    are_numbers = [bool(re.match(numbers, name)) for name in head]
    start = r"^(?=['=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20])"  # the last four are the wide forms of = + - @
    with atomic_write(path, "w") as file:
        file.write(mark)
        for row in (head, *body):
            cells = zip(row, are_numbers, strict=True)
            csv.writer(file).writerow([cell if is_number else re.sub(start, "'", cell) for cell, is_number in cells])


def read_csv(path: str | Path) -> list[dict[str, str]]:
    """Read a CSV file and return each row as a dict from column names to cells."""
    with Path(path).open(**READ_TEXT_FILE) as file:
        return list(csv.DictReader(file))
