"""Write the logged metrics of a run to TensorBoard's file, some steps at a time."""

import time
from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only


class BufferedTensorBoard(TensorBoardLogger):
    """A TensorBoardLogger that writes logged numbers in :meth:`save`. Each write wakes a thread, which takes time."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._waiting: list[tuple[str, float, int | None, float]] = []

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        if all(isinstance(value, int | float) for value in metrics.values()):
            self._waiting += [(name, value, step, time.time()) for name, value in metrics.items()]
        else:  # from a user
            super().log_metrics(metrics, step)

    @rank_zero_only
    def save(self) -> None:
        waiting, self._waiting = self._waiting, []
        for scalar in waiting:
            self.experiment.add_scalar(*scalar)
        super().save()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self._waiting:  # a run that has nothing to do gets no new file
            self.save()
        super().finalize(status)
