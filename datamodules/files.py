"""Atomic writes, and CSV files that can contain any text."""

from __future__ import annotations

import contextlib
import csv
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

TEXT_FILE_ARGUMENTS: dict[str, Any] = {"newline": "", "encoding": "utf-8", "errors": "surrogateescape"}
"""Arguments of ``open`` for text files. ``surrogateescape`` preserves file names that are not valid UTF-8."""
OUTPUT_MARKER = ".lit_classics_output"
"""A hidden file in each folder that a command makes for its results. The pictures in such a folder are not data."""


@contextlib.contextmanager
def atomic_write(path: str | Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file (``mode`` is ``wb`` or ``w``) and rename it to ``path`` when the body has ended.

    So ``path`` is never incomplete, and an error in the body does not change it. A missing folder is created.
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
    """Write a CSV file in UTF-8. The first of the ``rows`` contains the column names."""
    with atomic_write(path, "w") as file:
        csv.writer(file).writerows(rows)


def read_csv(path: str | Path) -> list[dict[str, str]]:
    """Read a CSV file and return each row as a dict from column names to cells."""
    with Path(path).open(**TEXT_FILE_ARGUMENTS) as file:
        return list(csv.DictReader(file))
