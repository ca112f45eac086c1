"""Decide which epoch is the best. The star, best.ckpt, the dashboard, early stopping and compare.py share this rule."""

import math
from collections.abc import Mapping
from typing import Any

MODES = {"val_acc": "max", "val_loss": "min", "train_loss": "min"}
"""Metric -> ``max`` or ``min``. The first metric that a run logs decides which epoch is the best."""


class BestSoFar:
    """The best value of a metric so far.

    On a tie the earlier epoch stays the best. NaN is never better.

    Args:
        monitor: name of the metric. With None, no epoch is an improvement.
        mode: ``max`` or ``min``.
    """

    def __init__(self, monitor: str | None, mode: str) -> None:
        self.monitor, self.mode = monitor, mode
        self.value: float | None = None

    def improved(self, metrics: Mapping[str, Any]) -> bool:
        """Return True, and keep the value, if ``metrics`` holds a better value than all before."""
        if self.monitor is None or self.monitor not in metrics:
            return False
        value = float(metrics[self.monitor])
        if self.value is None:
            better = not math.isnan(value)
        else:
            better = value > self.value if self.mode == "max" else value < self.value
        if better:
            self.value = value
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
