"""Words of messages: names that any terminal can show, numbers with their noun, aligned columns."""

from __future__ import annotations

from collections.abc import Sequence


def printable(name: str) -> str:
    """`name` fit for one line of any terminal or log: what cannot be printed is escaped."""
    if name.isprintable():  # lone surrogates, which stand for bytes that are not UTF-8, are not printable
        return name
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def plural(number: int, one: str, many: str = "") -> str:
    """``1 picture`` or ``2,000 pictures``; `many` where an s does not make it."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def name_first(names: Sequence[str], limit: int) -> str:
    """``a, b, ...``: the first `limit` names, printable, and three dots where there are more."""
    return ", ".join(map(printable, names[:limit])) + ", ..." * (len(names) > limit)


def align_columns(rows: Sequence[Sequence[str]], right: Sequence[bool] = ()) -> list[str]:
    """Lines of a table whose columns are as wide as their widest cell, two blanks apart.

    Args:
        rows: of equally many cells each.
        right: for each column whether its cells are aligned to the right; all to the left when empty.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = ["<>"[side] for side in right] or ["<"] * len(widths)
    return [
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)).rstrip()
        for row in rows
    ]
