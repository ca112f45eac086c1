"""Decide which epoch is the best. The star, best.ckpt, the dashboard, early stopping and compare.py share this rule."""

import math
from collections.abc import Mapping
from typing import Any

MODES = {"val_acc": "max", "val_loss": "min", "train_loss": "min"}
"""Metric -> ``max`` or ``min``. The first metric that a run logs decides which epoch is the best."""


class BestSoFar:
    """The metrics of the best epoch so far.

    On a tie the earlier epoch stays the best. NaN is never better.

    Args:
        monitor: name of the metric that decides. With None, no epoch is an improvement.
        mode: ``max`` or ``min``.
    """

    def __init__(self, monitor: str | None, mode: str) -> None:
        self.monitor, self.mode = monitor, mode
        self.row: dict[str, float] = {}

    @property
    def value(self) -> float | None:
        """The deciding metric of the best epoch, or None; checkpoints hold it."""
        return self.row.get(self.monitor or "")

    @value.setter
    def value(self, value: float | None) -> None:
        self.row = {} if value is None or self.monitor is None else {self.monitor: value}

    def improved(self, metrics: Mapping[str, Any]) -> bool:
        """Return True, and keep the metrics, if the epoch with these ``metrics`` is better than all before."""
        if self.monitor is None or self.monitor not in metrics:
            return False
        value, best = float(metrics[self.monitor]), self.value
        if best is None:
            better = not math.isnan(value)
        elif self.mode == "max":
            better = value > best
        else:
            better = value < best
        if better:
            self.row = {name: float(metrics[name]) for name in {self.monitor, *MODES} if name in metrics}
        return better


def best_epoch(rows: Mapping[int, Mapping[str, Any]], monitor: str, mode: str) -> int | None:
    """Return the number of the best epoch, or None if no epoch has the metric.

    Args:
        rows: epoch number -> metrics, in the order of training.
    """
    best, found = BestSoFar(monitor, mode), None
    for epoch, row in rows.items():
        if best.improved(row):
            found = epoch
    return found
