"""Format text for messages: printable names, plurals and aligned columns."""

from __future__ import annotations

from collections.abc import Sequence


def printable(name: str) -> str:
    """Escape the characters in ``name`` that are not printable, so that the result is one line."""
    if name.isprintable():  # False for surrogates, which stand for bytes that are not UTF-8
        return name
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def plural(number: int, singular: str, plural_form: str = "") -> str:
    """Return a number and a noun: ``1 picture``, ``2,000 pictures``. ``plural_form`` is ``singular`` + s by default."""
    return f"{number:,} {singular if number == 1 else plural_form or singular + 's'}"


def first_names(names: Sequence[str], limit: int) -> str:
    """Join the first ``limit`` names with commas and add ``...`` if there are more. Escape unprintable characters."""
    return ", ".join(map(printable, names[:limit])) + ", ..." * (len(names) > limit)


def align_columns(rows: Sequence[Sequence[str]], right: Sequence[bool] = ()) -> list[str]:
    """Return the lines of a table. ``right``: True for each right-aligned column. By default all are left-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    alignments = ["<>"[is_right] for is_right in right] or ["<"] * len(widths)
    return [
        "  ".join(f"{cell:{align}{width}}" for cell, align, width in zip(row, alignments, widths, strict=True)).rstrip()
        for row in rows
    ]
