"""What the scripts beside fit.py show: tables on stdout, progress on stderr."""

import sys
from collections.abc import Iterable
from typing import TypeVar

from rich.console import Console
from rich.progress import track as rich_track
from rich.table import Table
from rich.text import Text

from datamodules.listing import shown

T = TypeVar("T")


def show(head: list[str], body: list[list[str]]) -> None:
    """Print a table: ruled in a terminal, elsewhere columns of blanks, one line a row. Empty columns are left out."""
    used = [place for place in range(len(head)) if any(row[place] for row in body)]
    rows = [[shown(row[place]) for place in used] for row in [head, *body]]
    numbers = [all(_is_number_or_empty(row[place]) for row in rows[1:]) for place in range(len(used))]
    if sys.stdout.isatty():
        table = Table()
        for name, right in zip(rows[0], numbers, strict=True):
            table.add_column(Text(name), justify="right" if right else "left", overflow="fold")
        for row in rows[1:]:
            table.add_row(*map(Text, row))  # Text, because names may hold what rich takes for markup
        Console().print(table)
        return
    widths = [max(len(row[place]) for row in rows) for place in range(len(used))]
    for row in rows:
        cells = zip(row, widths, numbers, strict=True)
        print("  ".join(f"{cell:>{width}}" if right else f"{cell:<{width}}" for cell, width, right in cells).rstrip())


def _is_number_or_empty(cell: str) -> bool:
    return not cell or cell == "-" or cell.replace(".", "", 1).replace("-", "", 2).replace("e", "", 1).isdecimal()


def track(items: Iterable[T], what: str, total: int | None) -> Iterable[T]:
    """``items``, with a progress bar on stderr where somebody sees it."""
    watched = sys.stderr.isatty()
    return rich_track(items, what, total, console=Console(stderr=True), transient=True, disable=not watched)
