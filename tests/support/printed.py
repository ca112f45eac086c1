"""Parse the output and files of the scripts."""

import csv
import re
from pathlib import Path
from typing import Any, NamedTuple

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


class Epoch(NamedTuple):
    """An epoch line of fit.py: the epoch, the number of epochs, metric -> value, and True if the line has a star."""

    number: int
    of: int | None
    figures: dict[str, float]
    star: bool


def epochs(out: str) -> list[Epoch]:
    """Parse the epoch lines of fit.py."""
    found = []
    for line in out.splitlines():
        if said := re.fullmatch(r"epoch +(\d+)(?:/(\d+))?  (.*?)(  \*)?", line):
            figures = dict(map(_figure, said[3].split("  ")))
            found.append(Epoch(int(said[1]), int(said[2]) if said[2] else None, figures, bool(said[4])))
    return found


def _figure(text: str) -> tuple[str, float]:
    """Parse ``val_loss 1.5``, ``0.3 s`` (as ``seconds``) or ``70 samples/s`` (as ``speed``)."""
    one, other = text.split(" ")
    if other in ("s", "samples/s"):
        return {"s": "seconds", "samples/s": "speed"}[other], float(one.replace(",", ""))
    return one, float(other)


def result(out: str) -> dict[str, str]:
    """Parse lines ``name   value   (more)`` as name -> value; a value contains no space."""
    return dict(re.findall(r"^(\w+) +(\S+)", out, re.MULTILINE))


def interval(out: str, name: str) -> tuple[float, float, float]:
    """Return the accuracy and 95 % interval in the line that begins with ``name``."""
    found = re.search(rf"^{name} +([\d.]+) .*?\(95 % interval ([\d.]+) to ([\d.]+), ", out, re.MULTILINE)
    assert found is not None, f"no line {name} with an interval in:\n{out}"
    return float(found[1]), float(found[2]), float(found[3])


def table(out: str, *head: str) -> list[list[str]]:
    """Return the rows between the line with the words ``head`` and the next empty line."""
    lines = out.splitlines()
    [start] = [place for place, line in enumerate(lines) if line.split() == list(head)]
    end = lines.index("", start) if "" in lines[start:] else len(lines)
    return [line.split() for line in lines[start + 1 : end]]


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file, without empty cells."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        return [{name: cell for name, cell in row.items() if cell} for row in csv.DictReader(file)]


def column(rows: list[dict[str, str]], name: str) -> list[float]:
    """Return the numbers in a column of metrics.csv."""
    return [float(row[name]) for row in rows if name in row]


def best_row(rows: list[dict[str, str]]) -> int:
    """Return the index of the epoch with the highest accuracy, and of these the one with the lowest loss."""
    ranks = [
        (-accuracy, loss) for accuracy, loss in zip(column(rows, "val_acc"), column(rows, "val_loss"), strict=True)
    ]
    return ranks.index(min(ranks))


def board(run: Path) -> Any:
    """Load the TensorBoard events of a run."""
    found = EventAccumulator(str(run), size_guidance={"images": 0, "scalars": 0, "tensors": 0})
    found.Reload()
    return found


def scalars(found: Any, tag: str) -> tuple[list[int], list[float]]:
    """Return the steps and values of a TensorBoard curve."""
    events = found.Scalars(tag)
    return [event.step for event in events], [event.value for event in events]
