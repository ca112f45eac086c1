"""Decide which epoch is the best, for the console, best.ckpt, the dashboard, early stopping and compare.py."""

import math
from collections.abc import Mapping
from typing import Any

MODES = {"val_acc": "max", "val_loss": "min", "train_loss": "min"}
"""Metric -> ``max`` or ``min``. compare.py uses the first metric here that a run logged, fit.py ``Run.monitor``."""


class BestSoFar:
    """Remember the epoch with the largest or smallest (``mode``: ``max`` or ``min``) value of the metric ``monitor``.

    Of two epochs with the same value, that with the lower ``val_loss`` is better, else the earlier one. An epoch whose
    metric is missing or NaN is never the best.
    """

    def __init__(self, monitor: str | None, mode: str) -> None:
        self.monitor, self.mode = monitor, mode
        self.value: float | None = None  # the metric of the best epoch
        self.val_loss = math.inf  # of the best epoch; infinite if it is missing or NaN

    def improved(self, metrics: Mapping[str, Any]) -> bool:
        """Return True if the epoch with these metrics is better than all epochs before. If so, remember its values."""
        value, val_loss = (float(metrics.get(name, math.nan)) for name in (self.monitor or "", "val_loss"))
        if math.isnan(value):
            return False
        val_loss = math.inf if math.isnan(val_loss) else val_loss
        sign = -1 if self.mode == "max" else 1
        better = self.value is None or (sign * value, val_loss) < (sign * self.value, self.val_loss)
        if better:
            self.value, self.val_loss = value, val_loss
        return better

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.value, "val_loss": self.val_loss, "monitor": self.monitor}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a state of the same metric. In older ones ``val_loss`` is missing: a tie then changes nothing."""
        if state.get("monitor", self.monitor) == self.monitor:
            self.value, self.val_loss = state["best"], state.get("val_loss", -math.inf)


def best_epoch(rows: Mapping[int, Mapping[str, Any]], monitor: str, mode: str) -> int | None:
    """Return the number of the best epoch, or None. ``rows``: epoch number -> metrics, in the order of training."""
    best = BestSoFar(monitor, mode)
    improved = [epoch for epoch, row in rows.items() if best.improved(row)]
    return improved[-1] if improved else None
