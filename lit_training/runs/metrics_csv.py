"""Write metrics.csv, also for runs that are resumed."""

import csv
import itertools
import os
from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from datamodules.files import TEXT, atomic_write
from lit_training.runs.folder import RunStart
from lit_training.runs.layout import METRICS

ROWS_BETWEEN_WRITES = 100


class MetricsCSV(Logger):
    """Write each logged dictionary as a row. A resumed run keeps the rows of the steps before the resume point.

    The columns are sorted by name. A new metric rewrites the file atomically.

    Args:
        start: the run's folder and the number of rows to keep.
    """

    def __init__(self, start: RunStart) -> None:
        super().__init__()
        self.path, self._start = start.folder / METRICS, start
        self._names: list[str] | None = None
        self._written = 0
        self._waiting: list[dict[str, Any]] = []

    @property
    def name(self) -> str:
        return self._start.folder.parent.name

    @property
    def version(self) -> int | str:
        return self._start.version

    @property
    def rows(self) -> int:
        """Number of rows so far, with those from before a resume."""
        self._columns()
        return self._written + len(self._waiting)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: config.yaml and hparams.yaml hold them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        step = len(self._waiting) if step is None else step
        values = {name: value.item() if isinstance(value, Tensor) else value for name, value in metrics.items()}
        self._waiting.append(values | {"step": step})
        if (step + 1) % ROWS_BETWEEN_WRITES == 0:
            self.save()

    @rank_zero_only
    def save(self) -> None:
        """Write the waiting rows."""
        if not self._waiting:
            return
        names, waiting = self._columns(), self._waiting
        new = set().union(*waiting) - set(names)
        if new or not self.path.is_file():
            old = self._read() if self.path.is_file() else []
            self._names = names = sorted([*names, *new])
            self._replace(names, old)
        with self.path.open("a", **TEXT) as file:
            csv.DictWriter(file, names).writerows(waiting)
        self._written += len(waiting)
        self._waiting = []

    @rank_zero_only
    def sync(self) -> None:
        """Write all rows and sync the file to the disk, because a resume point relies on them."""
        self.save()
        if self.path.exists():
            with self.path.open() as file:
                os.fsync(file.fileno())

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.save()

    def _columns(self) -> list[str]:
        """Return the file's columns. The first call drops the rows of steps after the resume point."""
        if self._names is None:
            self._names = []
            if self.path.is_file() and (kept := self._read(self._start.metrics_rows)):
                self._names, self._written = list(kept[0]), len(kept)
                self._replace(self._names, kept)
            else:
                self.path.unlink(missing_ok=True)
        return self._names

    def _read(self, count: int | None = None) -> list[dict[str, Any]]:
        with self.path.open(**TEXT) as file:
            return list(itertools.islice(csv.DictReader(file), count))

    def _replace(self, names: list[str], rows: list[dict[str, Any]]) -> None:
        with atomic_write(self.path, "w") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows)
