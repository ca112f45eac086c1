"""Write the logged metrics of a run to metrics.csv. A resumed run continues the same file."""

import contextlib
import csv
import os
from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from datamodules.files import TEXT_FILE_ARGUMENTS, read_csv, write_csv
from lit_training.errors import CheckpointError
from lit_training.runs.folder import RunStart
from lit_training.runs.layout import METRICS


class MetricsCSV(Logger):
    """Write each logged dictionary as one row of metrics.csv. The columns are sorted by name.

    A resumed run removes the rows after its checkpoint. A new metric adds a column: then the whole file is rewritten.
    """

    def __init__(self, start: RunStart) -> None:
        super().__init__()
        self.path, self._start = start.folder / METRICS, start
        self._column_names: list[str] | None = None
        self._written_count = 0
        self._waiting_rows: list[dict[str, Any]] = []

    @property
    def name(self) -> str:
        return self._start.folder.parent.name

    @property
    def version(self) -> int | str:
        return self._start.version

    @property
    def rows(self) -> int:
        """Number of rows so far, including rows from before a resume and rows that are not written yet."""
        self._columns()
        return self._written_count + len(self._waiting_rows)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing, because config.yaml and hparams.yaml contain the hyperparameters."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add a row. :meth:`save`, which Lightning calls next, writes it to the file."""
        step = len(self._waiting_rows) if step is None else step
        values = {name: value.item() if isinstance(value, Tensor) else value for name, value in metrics.items()}
        self._waiting_rows.append(values | {"step": step})

    @rank_zero_only
    def save(self) -> None:
        """Write the rows that are not in the file yet."""
        if not self._waiting_rows:
            return
        names, rows = self._columns(), self._waiting_rows
        new_names = set().union(*rows) - set(names)
        if new_names or not self.path.is_file():
            old_rows = read_csv(self.path) if self.path.is_file() else []
            self._column_names = names = sorted([*names, *new_names])
            self._replace_file(names, old_rows)
        with self.path.open("a", **TEXT_FILE_ARGUMENTS) as file:
            csv.DictWriter(file, names).writerows(rows)
        self._written_count += len(rows)
        self._waiting_rows = []

    @rank_zero_only
    def sync(self) -> None:
        """Write all rows to the disk. ResumePoint calls this before it saves the number of rows."""
        self.save()
        if self.path.exists():
            with self.path.open() as file:
                os.fsync(file.fileno())

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.save()

    def _columns(self) -> list[str]:
        """Return the column names of the file. The first call removes the rows after the resumed checkpoint."""
        if self._column_names is None:
            kept, self._column_names = self._read_kept(), []
            if kept:
                self._column_names, self._written_count = list(kept[0]), len(kept)
                self._replace_file(self._column_names, kept)
            else:
                self.path.unlink(missing_ok=True)
        return self._column_names

    def _read_kept(self) -> list[dict[str, str]]:
        """Return the rows before the resumed checkpoint. Raise a CheckpointError if the file has lost some of them."""
        rows, count = list[dict[str, str]](), self._start.metrics_rows
        if not count or not self.path.is_file():
            return rows
        with contextlib.suppress(csv.Error):  # csv adds None to a row that is too long, and to one that is too short
            rows = [row for row in read_csv(self.path)[:count] if row.get("step") and None not in (*row, *row.values())]
        if len(rows) < count:
            problem = f"{self.path} has {len(rows)} of the {count} rows before the resume point"
            raise CheckpointError(f"{problem}: restore it, or delete it to go on without them")
        return rows

    def _replace_file(self, names: list[str], rows: list[dict[str, Any]]) -> None:
        write_csv(self.path, [names, *([row.get(name, "") for name in names] for row in rows)])
