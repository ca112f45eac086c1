"""Text for messages: printable names, plurals, aligned columns."""

from __future__ import annotations

from collections.abc import Sequence


def printable(name: str) -> str:
    """Return ``name`` on one line: all characters that are not printable are escaped."""
    if name.isprintable():  # surrogates, which stand for bytes that are not UTF-8, are not printable
        return name
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def plural(number: int, singular: str, plural_form: str = "") -> str:
    """Return a number and a noun, as ``1 picture`` or ``2,000 pictures``. ``plural_form`` defaults to singular + s."""
    return f"{number:,} {singular if number == 1 else plural_form or singular + 's'}"


def first_names(names: Sequence[str], limit: int) -> str:
    """Return the first ``limit`` names as ``a, b, ...``. Characters that are not printable are escaped."""
    return ", ".join(map(printable, names[:limit])) + ", ..." * (len(names) > limit)


def align_columns(rows: Sequence[Sequence[str]], right: Sequence[bool] = ()) -> list[str]:
    """Return the lines of a table. ``right`` says for each column if it is right-aligned (by default none is)."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    alignments = ["<>"[is_right] for is_right in right] or ["<"] * len(widths)
    return [
        "  ".join(f"{cell:{align}{width}}" for cell, align, width in zip(row, alignments, widths, strict=True)).rstrip()
        for row in rows
    ]
