"""What the scripts printed and wrote, as numbers."""

import csv
import re
from pathlib import Path
from typing import Any, NamedTuple

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


class Epoch(NamedTuple):
    """A line of fit.py: the epoch, of how many, its figures by name, and whether it has a star."""

    number: int
    of: int | None
    figures: dict[str, float]
    star: bool


def epochs(out: str) -> list[Epoch]:
    """The epoch lines of fit.py."""
    found = []
    for line in out.splitlines():
        if said := re.fullmatch(r"epoch +(\d+)(?:/(\d+))?  (.*?)(  \*)?", line):
            figures = dict(map(_figure, said[3].split("  ")))
            found.append(Epoch(int(said[1]), int(said[2]) if said[2] else None, figures, bool(said[4])))
    return found


def _figure(text: str) -> tuple[str, float]:
    """``val_loss 1.5`` by its name, ``0.3 s`` as ``seconds``, ``70 samples/s`` as ``speed``."""
    one, other = text.split(" ")
    if other in ("s", "samples/s"):
        return {"s": "seconds", "samples/s": "speed"}[other], float(one.replace(",", ""))
    return one, float(other)


def result(out: str) -> dict[str, str]:
    """The lines ``name   value   (more)`` by their names; a value has no blank in it."""
    return dict(re.findall(r"^(\w+) +(\S+)", out, re.MULTILINE))


def interval(out: str, name: str) -> tuple[float, float, float]:
    """An accuracy and its 95 % interval, of the line that begins with ``name``."""
    found = re.search(rf"^{name} +([\d.]+) .*?\(95 % interval ([\d.]+) to ([\d.]+), ", out, re.MULTILINE)
    assert found is not None, f"no line of {name} with an interval in:\n{out}"
    return float(found[1]), float(found[2]), float(found[3])


def table(out: str, *head: str) -> list[list[str]]:
    """The rows below the line that consists of the words ``head``, up to an empty line."""
    lines = out.splitlines()
    [start] = [place for place, line in enumerate(lines) if line.split() == list(head)]
    end = lines.index("", start) if "" in lines[start:] else len(lines)
    return [line.split() for line in lines[start + 1 : end]]


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a file, without the cells that are empty."""
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: cell for name, cell in row.items() if cell} for row in csv.DictReader(file)]


def column(rows: list[dict[str, str]], name: str) -> list[float]:
    """The numbers of a column of metrics.csv, in the order of the rows."""
    return [float(row[name]) for row in rows if name in row]


def board(run: Path) -> Any:
    """Everything that TensorBoard finds in a run's folder."""
    found = EventAccumulator(str(run), size_guidance={"images": 0, "scalars": 0, "tensors": 0})
    found.Reload()
    return found


def scalars(found: Any, tag: str) -> tuple[list[int], list[float]]:
    """The steps and the values of a curve in TensorBoard."""
    events = found.Scalars(tag)
    return [event.step for event in events], [event.value for event in events]
