"""Print tables on stdout, show progress bars on stderr, and suggest names for mistyped ones."""

import contextlib
import difflib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from datamodules.text import align_columns, first_names, printable

SECONDS_BETWEEN_LINES = 10.0  # of progress, if stderr is a file or a pipe


def print_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> None:
    """Print a table on stdout, with borders if stdout is a terminal. Columns without text are left out."""
    used = [column for column in range(len(head)) if any(row[column] for row in body)]
    if not used:
        return
    titles, *rows = [[printable(row[column]) for column in used] for row in (head, *body)]
    right = [all(cell in ("", "-") or is_number(cell) for cell in cells) for cells in zip(*rows, strict=True)]
    if sys.stdout.isatty():
        from rich.console import Console  # imported here because it is slow
        from rich.table import Table
        from rich.text import Text

        table = Table()
        for title, is_right in zip(titles, right, strict=True):
            table.add_column(Text(title), justify="right" if is_right else "left", overflow="fold")
        for row in rows:
            table.add_row(*map(Text, row))  # Text prints rich markup in names unchanged
        Console().print(table)
    else:
        print("\n".join(align_columns([titles, *rows], right)))


def is_number(text: str) -> bool:
    """Return True if Python can convert the text to a float."""
    try:
        float(text)
    except ValueError:
        return False
    return True


@contextlib.contextmanager
def progress_bar(title: str, show: bool = True) -> Iterator[Callable[[int, int | None], None]]:
    """Show a progress bar on stderr. Yield ``update(done, total)``; an unknown ``total`` is None.

    If stderr is not a terminal, print a line every :data:`SECONDS_BETWEEN_LINES`.
    """
    if not (show and sys.stderr.isatty()):
        last_time = time.monotonic()

        def print_line(done: int, total: int | None) -> None:
            nonlocal last_time
            if show and time.monotonic() - last_time >= SECONDS_BETWEEN_LINES:
                last_time = time.monotonic()
                share = f" of {total:,} ({done / total:.0%})" if total else ""
                print(f"{title}: {done:,}{share}", file=sys.stderr, flush=True)

        yield print_line
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def expand_paths(value: Any) -> Any:
    """Replace ``~`` and ``$NAME`` at the start of each path, and ``pytorch_lightning.``, in nested settings."""
    if isinstance(value, dict):
        return {key: expand_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [expand_paths(item) for item in value]
    if not isinstance(value, str):
        return value
    flag, equals, path = value.partition("=") if value.startswith("-") else ("", "", value)
    path = "lightning.pytorch." + path[18:] if path.startswith("pytorch_lightning.") else path
    return flag + equals + (os.path.expandvars(os.path.expanduser(path)) if path.startswith(("~", "$")) else path)  # noqa: PTH111


def closest_name(word: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the known name most similar to ``word``, or None if the similarity (0 to 1) is below ``cutoff``."""
    names = {name.lower(): name for name in known}
    matches = difflib.get_close_matches(word.lower(), names, n=1, cutoff=cutoff)
    return names[matches[0]] if matches else None


def suggest(word: str, known: Iterable[str]) -> str:
    """Return ``did you mean NAME?`` if a known name is similar, otherwise ``choose one of`` the first known names."""
    names = [name for name in known if name != word]
    if closest := closest_name(word, names, cutoff=0.5):
        return f"did you mean {closest}?"
    return f"choose one of {first_names(names, 12)}" if names else f"leave {word} out"
