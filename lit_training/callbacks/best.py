"""Save the best epoch as ``best.ckpt``, and stop early when no epoch is better."""

import math
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor

from lit_training.errors import UsageError
from lit_training.runs.best_epoch import BestSoFar
from lit_training.runs.checkpoints import FitCheckpointIO
from lit_training.runs.layout import BEST


class BestCheckpoint(ModelCheckpoint):
    """Save the best epoch. :class:`FitCheckpointIO` limits how often the file is written.

    :class:`BestSoFar` decides which epoch is better; the first epoch is always saved. If ``monitor`` is None, every
    epoch is saved, so the last one counts as the best.
    """

    def __init__(self, monitor: str | None, mode: str) -> None:
        super().__init__(filename="best", monitor=monitor, mode=mode, enable_version_counter=False)
        self.best = BestSoFar(monitor, mode)
        self.on_train_batch_end = None  # type: ignore[assignment]  # saves time: Lightning skips a hook that is None

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        if current is None:
            return False
        first = not self.best_k_models
        return trainer.strategy.reduce_boolean_decision(self.best.improved(trainer.callback_metrics) or first)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.best.value = None if self.best_model_score is None else float(self.best_model_score)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        _flush(trainer)
        trainer.strategy.barrier(BEST)  # no rank may open the file before it is written

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        super().on_exception(trainer, pl_module, exception)
        _flush(trainer)


def _flush(trainer: Trainer) -> None:
    if isinstance(writer := trainer.strategy.checkpoint_io, FitCheckpointIO):
        writer.flush()


class StopEarly(EarlyStopping):
    """Stop after ``patience`` checks in a row without a better epoch, or when the metric is not finite.

    :class:`BestSoFar` decides which epoch is better. As Lightning's EarlyStopping, it checks after each epoch, or after
    each validation if these differ. It can load the state of Lightning's EarlyStopping.
    """

    def __init__(self, monitor: str, mode: str, patience: int) -> None:
        super().__init__(monitor, mode=mode, patience=patience)  # Lightning calls it after the model has logged
        self.best, self.waited = BestSoFar(monitor, mode), 0

    @property
    def state_key(self) -> str:
        return f"EarlyStopping{ {'monitor': self.monitor, 'mode': self.mode}!r}"

    def state_dict(self) -> dict[str, Any]:
        return {"wait_count": self.waited, "best_score": self.best.value}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        score = state_dict["best_score"]
        self.waited = state_dict["wait_count"]
        self.best.value = None if score is None or math.isinf(score) else float(score)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.each_epoch = trainer.val_check_interval == 1.0 and trainer.check_val_every_n_epoch == 1

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.each_epoch:
            self.check(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.each_epoch and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.check(trainer)

    def check(self, trainer: Trainer) -> None:
        """Compare the newest metrics with the best. All ranks stop together.

        Raises:
            UsageError: the metric is not logged.
        """
        metrics = trainer.callback_metrics
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if self.monitor not in metrics:
            logged = ", ".join(metrics) or "nothing"
            raise UsageError(f"--early_stopping needs {self.monitor}, but the model logs {logged}: leave the flag out")
        self.waited = 0 if self.best.improved(metrics) else self.waited + 1
        stop = self.waited >= self.patience or not math.isfinite(metrics[self.monitor])
        trainer.should_stop |= trainer.strategy.reduce_boolean_decision(stop, all=False)
