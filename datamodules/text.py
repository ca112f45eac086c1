"""Format text for messages: printable names, plurals, aligned columns and commands to type. Print notes."""

from __future__ import annotations

import functools
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path


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


def command(name: str, *arguments: object) -> str:
    """Return a command line for ``scripts/NAME`` or ``tensorboard``. It works in a new shell in the current folder.

    ``python`` becomes the path of this Python if the shell would find no Python, or another one, under that name.
    """
    python, found = Path(sys.executable), Path(shutil.which("python") or "/")
    # two environments of one Python have the same file in different folders
    is_on_path = found.samefile(python) and found.parent.samefile(python.parent)
    start = ["python" if is_on_path else _path_from_here(python)]
    if name != "tensorboard":
        start += [_path_from_here(Path(__file__).resolve().parents[1] / "scripts" / name)]
    else:
        start = [name] if is_on_path and shutil.which(name) else [*start, "-m", "tensorboard.main"]
    return shlex.join([*start, *map(str, arguments)])


def _path_from_here(path: str | Path) -> str:
    """Return the path relative to the current folder. Return a path outside of it, or without a slash, as it is."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") or os.sep not in relative else relative


def is_rank_zero() -> bool:
    """Return True on rank 0. This also works before the ranks are connected."""
    has_global_rank = {"RANK", "SLURM_PROCID"} & set(os.environ)  # else rank is LOCAL_RANK, which is 0 once per machine
    is_first_machine = os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0")) == "0"
    rank_zero = sys.modules.get("lightning.fabric.utilities.rank_zero")  # None if Lightning is not imported
    rank = getattr(rank_zero.rank_zero_only, "rank", 0) if rank_zero else 0
    return rank == 0 and (bool(has_global_rank) or is_first_machine)


def print_note(text: str) -> None:
    """Print ``note: text`` on stderr, on rank 0."""
    if is_rank_zero():
        print(printable(f"note: {text}"), file=sys.stderr, flush=True)


print_once = functools.cache(print_note)
"""Print a note, but not again in this process."""
