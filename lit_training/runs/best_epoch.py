"""Which epoch of a run is the best: one rule for the star, best.ckpt, the dashboard, early stopping and compare.py."""

from collections.abc import Mapping
from typing import Any

MODES = {"val_acc": "max", "val_loss": "min", "train_loss": "min"}
"""The first of these that a run logs decides which epoch is best: the one with the most or the least of it."""

Row = Mapping[str, Any]
"""An epoch's metrics by name, as numbers or scalar tensors."""


def is_better(row: Row, best: Row | None, monitor: str, mode: str) -> bool:
    """True if an epoch with the metrics ``row`` is better than the best one before it.

    An equal value is not better: the earlier epoch stays the best. NaN is never better.

    Args:
        row: the epoch's metrics.
        best: those of the best epoch so far, or None.
        monitor: the metric that decides; an epoch without it is not better.
        mode: ``max`` or ``min``.
    """
    if monitor not in row:
        return False
    value = float(row[monitor])
    if best is None:
        return value == value
    return value > float(best[monitor]) if mode == "max" else value < float(best[monitor])


class BestSoFar:
    """Remembers the metrics of the best epoch up to now.

    Args:
        monitor: the metric's name; without one nothing is an improvement.
        mode: ``max`` or ``min``.
    """

    def __init__(self, monitor: str | None, mode: str) -> None:
        self.monitor, self.mode = monitor, mode
        self.row: dict[str, float] | None = None

    @property
    def value(self) -> float | None:
        """The monitored metric of the best epoch; plain, so that a checkpoint can hold it."""
        return None if self.row is None or self.monitor is None else self.row[self.monitor]

    @value.setter
    def value(self, value: float | None) -> None:
        self.row = None if value is None or self.monitor is None else {self.monitor: value}

    def improved(self, metrics: Row) -> bool:
        """True if ``metrics`` are better than all before; they are then kept."""
        if self.monitor is None or not is_better(metrics, self.row, self.monitor, self.mode):
            return False
        self.row = {name: float(metrics[name]) for name in {self.monitor, *MODES} if name in metrics}
        return True


def best_epoch(rows: Mapping[int, Row], monitor: str, mode: str) -> int | None:
    """The number of the best epoch; None where no epoch has the metric.

    Args:
        rows: metrics by number of the epoch, in the order of training.
    """
    best, found = BestSoFar(monitor, mode), None
    for epoch, row in rows.items():
        if best.improved(row):
            found = epoch
    return found
