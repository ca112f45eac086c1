"""Decide which epoch is the best, for the console, best.ckpt, the dashboard, early stopping and compare.py."""

import math
from collections.abc import Mapping
from typing import Any

MODES = {"val_acc": "max", "val_loss": "min", "train_loss": "min"}
"""Metric -> ``max`` or ``min``. compare.py uses the first metric here that a run logged, fit.py ``Run.monitor``."""


class BestSoFar:
    """Remember the best value of a metric so far.

    On a tie the earlier epoch stays the best. An epoch whose metric is NaN is never the best.

    Args:
        monitor: name of the metric that decides which epoch is better. With None, there is no best epoch.
        mode: ``max`` or ``min``.
    """

    def __init__(self, monitor: str | None, mode: str) -> None:
        self.monitor, self.mode = monitor, mode
        self.value: float | None = None  # the metric's best value; checkpoints save it

    def improved(self, metrics: Mapping[str, Any]) -> bool:
        """Return True if the epoch with these metrics is better than all epochs before. If so, remember its value."""
        if self.monitor is None or self.monitor not in metrics:
            return False
        value = float(metrics[self.monitor])
        if self.value is None:
            better = not math.isnan(value)
        elif self.mode == "max":
            better = value > self.value
        else:
            better = value < self.value
        if better:
            self.value = value
        return better


def best_epoch(rows: Mapping[int, Mapping[str, Any]], monitor: str, mode: str) -> int | None:
    """Return the number of the best epoch, or None if the metric is always missing or NaN.

    ``rows``: epoch number -> metrics, in the order of training.
    """
    best, number = BestSoFar(monitor, mode), None
    for epoch, row in rows.items():
        if best.improved(row):
            number = epoch
    return number
