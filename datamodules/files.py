"""Write files that are never half there, and CSV files whose texts survive."""

from __future__ import annotations

import contextlib
import csv
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

TEXT: dict[str, Any] = {"newline": "", "encoding": "utf-8", "errors": "surrogateescape"}
"""How text files are opened: bytes of file names that are not UTF-8 survive."""


@contextlib.contextmanager
def atomic_write(path: str | Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a new file for writing and move it to ``path`` at the end: readers see the old file or the new one, whole.

    It lies beside the target, so that the move is a rename. Its bytes are on the disk before it is renamed, the rename
    is on the disk afterwards. If the body raises, ``path`` stays as it was.

    Args:
        path: the target; its folder is made if it is missing.
        mode: ``wb`` or ``w``.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    target = Path(path)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with part.open(mode, **({} if "b" in mode else TEXT)) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    finally:
        with contextlib.suppress(OSError):  # it was renamed, or the folder cannot be written at all
            part.unlink()
    if hasattr(os, "O_DIRECTORY"):  # Windows cannot open a folder
        with contextlib.suppress(OSError):  # the file is there; not every file system can sync a folder
            folder = os.open(target.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def write_csv(path: str | Path, rows: Iterable[Iterable[Any]]) -> None:
    """Write rows of cells, the first of them the column names, as a CSV file in UTF-8."""
    with atomic_write(path, "w") as file:
        csv.writer(file).writerows(rows)


def read_csv(path: str | Path) -> list[dict[str, str]]:
    """Read the rows of a CSV file, each as column name -> cell.

    Raises:
        OSError, csv.Error: it cannot be read.
    """
    with Path(path).open(**TEXT) as file:
        return list(csv.DictReader(file))
