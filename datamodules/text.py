"""Text for messages: printable names, plurals, aligned columns."""

from __future__ import annotations

from collections.abc import Sequence


def printable(name: str) -> str:
    """Return ``name`` with all characters escaped that cannot be printed on one line."""
    if name.isprintable():  # surrogates (bytes that are not UTF-8) are not printable
        return name
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def plural(number: int, one: str, many: str = "") -> str:
    """Return ``1 picture`` or ``2,000 pictures``; ``many`` is the plural if it does not just add an s."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def first_names(names: Sequence[str], limit: int) -> str:
    """Return the first ``limit`` names, printable, as ``a, b, ...``."""
    return ", ".join(map(printable, names[:limit])) + ", ..." * (len(names) > limit)


def align_columns(rows: Sequence[Sequence[str]], right: Sequence[bool] = ()) -> list[str]:
    """Return the lines of a table with two spaces between its columns.

    Args:
        rows: rows with the same number of cells.
        right: True for each column that is right-aligned; by default all are left-aligned.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = ["<>"[side] for side in right] or ["<"] * len(widths)
    return [
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)).rstrip()
        for row in rows
    ]
