"""What a terminal shows: tables on stdout, progress bars on stderr; and the name nearest to a mistyped one."""

import contextlib
import difflib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

from datamodules.text import align_columns, printable


def print_table(head: Sequence[str], body: Sequence[Sequence[str | list[str]]]) -> None:
    """Print a table: ruled in a terminal, elsewhere columns of blanks. Columns without any cell are left out.

    Args:
        head: names of the columns.
        body: rows of cells; a list is a cell of several lines.
    """
    used = [place for place in range(len(head)) if any(row[place] for row in body)]
    if not used:
        return
    rows = [[_lines(row[place]) for place in used] for row in body]
    titles = [printable(head[place]) for place in used]
    right = [all(_is_number_or_empty(row[place][0]) for row in rows) for place in range(len(used))]
    if sys.stdout.isatty():
        from rich.console import Console  # here: not everyone prints one
        from rich.table import Table
        from rich.text import Text

        table = Table()
        for title, on_the_right in zip(titles, right, strict=True):
            table.add_column(Text(title), justify="right" if on_the_right else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text("\n".join(cell)) for cell in row))  # Text: names may hold what rich takes for markup
        Console().print(table)
        return
    flat = [titles]
    for row in rows:
        height = max(map(len, row))
        flat += [list(line) for line in zip(*([*cell, *[""] * (height - len(cell))] for cell in row), strict=True)]
    print("\n".join(align_columns(flat, right)))


def _lines(cell: str | list[str]) -> list[str]:
    return [printable(line) for line in (cell if isinstance(cell, list) else [cell])]


def _is_number_or_empty(cell: str) -> bool:
    with contextlib.suppress(ValueError):
        return cell in ("", "-") or bool(float(cell) or True)
    return False


@contextlib.contextmanager
def progress_bar(title: str, show: bool = True) -> Iterator[Callable[[int, int | None], None]]:
    """Show a progress bar on stderr while the body runs, where a person sees it; yields ``update(done, total)``."""
    if not (show and sys.stderr.isatty()):
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def nearest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name that is most like ``word``, whatever its case; None where none is like it.

    Args:
        cutoff: how alike they have to be, 0 to 1 (see :func:`difflib.get_close_matches`).
    """
    names = {name.lower(): name for name in known}
    found = difflib.get_close_matches(word.lower(), names, n=1, cutoff=cutoff)
    return names[found[0]] if found else None


def suggest(word: str, known: Iterable[str]) -> str:
    """The known name nearest to ``word`` as a question, or all of them to choose from."""
    names = list(known)
    if near := nearest(word, names, cutoff=0.5):
        return f"did you mean {near}?"
    return f"choose one of {', '.join([*names[:12], *['...'] * (len(names) > 12)])}"
