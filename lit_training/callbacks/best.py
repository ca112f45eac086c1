"""Save the best epoch as ``best.ckpt``, and stop early if the model no longer gets better."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, StochasticWeightAveraging, WeightAveraging
from torch import Tensor

from datamodules.text import print_note, print_once
from lit_training.errors import UsageError
from lit_training.runs.best_epoch import BestSoFar
from lit_training.runs.checkpoints import FitCheckpointIO
from lit_training.runs.folder import resume_hint
from lit_training.runs.layout import BEST

AVERAGES = (WeightAveraging, StochasticWeightAveraging)


class NeedsMetric(Callback):
    """Raise a UsageError if the model did not log the metric, when the weights and the resume point are saved."""

    missing = ""  # the message

    def describe_missing(self, trainer: Trainer) -> str:
        names = [name for name in trainer.callback_metrics if not re.match("samples_per_second$|lr-", name)]
        choices = f"only {', '.join(names)}: choose one with --monitor NAME:max, or :min"
        return f"the model logs no {self.monitor}, {choices if names else 'and nothing else'}"  # type: ignore[attr-defined]

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.missing:
            start = getattr(trainer, "start", None)
            raise UsageError(f"{self.missing}; {resume_hint(start.folder)}" if start else self.missing)


class BestCheckpoint(NeedsMetric, ModelCheckpoint):
    """Save the model as ``best.ckpt`` after the first epoch and after each epoch with a better ``monitor`` metric.

    Without a ``monitor``, or if the model does not log it, save every epoch. If it is ``typed``, the run then stops.
    :class:`FitCheckpointIO` may write a saved model to the disk later. If the run has no ``folder`` for checkpoints,
    write ``best-v1.ckpt`` where Lightning does if another run has written ``best.ckpt``.
    """

    def __init__(
        self, monitor: str | None, mode: str, typed: bool = False, folder: Path | None = None, **options: Any
    ) -> None:
        options["enable_version_counter"] = folder is None
        super().__init__(folder, "best", monitor=monitor, mode=mode, **options)
        self.best, self.typed = BestSoFar(monitor, mode), typed
        self.on_train_batch_end = None  # type: ignore[assignment]  # saves time: Lightning calls no hook here

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Return True if Lightning should save this epoch. The result is the same on all ranks."""
        if current is None:
            return False
        is_first = not self.best_k_models
        return trainer.strategy.reduce_boolean_decision(self.best.improved(trainer.callback_metrics) or is_first)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(super().on_validation_end, trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        is_missing = self._save(super().on_train_epoch_end, trainer, pl_module)
        if is_missing and (trainer.current_epoch + 1) % (trainer.check_val_every_n_epoch or math.inf) == 0:
            message = self.describe_missing(trainer)
            if self.typed:
                self.missing, trainer.should_stop = message, True
            else:
                print_once(f"best.ckpt is the last epoch, because {message}")

    def _save(self, save: Callable[..., None], trainer: Trainer, pl_module: LightningModule) -> bool:
        """Call ``save``, without a ``monitor`` if it is not logged. Return True in this case."""
        monitor = self.monitor
        is_missing = monitor is not None and monitor not in trainer.callback_metrics
        self.monitor = None if is_missing else monitor
        save(trainer, pl_module)
        self.monitor = monitor
        return is_missing

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "best": self.best.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        score = self.best_model_score
        self.best.load_state_dict(state_dict.get("best", {"best": None if score is None else float(score)}))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """If another ModelCheckpoint would write best.ckpt, change the name of its file."""
        best = Path(self.dirpath or "", BEST)
        if isinstance(checkpoint_io := trainer.strategy.checkpoint_io, FitCheckpointIO):
            checkpoint_io.best = best
        for callback, attribute in other_writers(trainer, best):
            setattr(callback, attribute, f"{best.stem}-v1")
            print_note(f"{type(callback).__name__} writes {best.stem}-v1.ckpt, because fit.py writes {BEST}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        averages = any(isinstance(one, StochasticWeightAveraging) for one in trainer.callbacks)  # type: ignore[attr-defined]
        if averages and self.best_model_path and trainer.current_epoch >= (trainer.max_epochs or 0):
            trainer.save_checkpoint(self.best_model_path)  # the averaged weights, which exist only now
        _flush(trainer)
        trainer.strategy.barrier(BEST)  # no rank may read the file before it is written

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        super().on_exception(trainer, pl_module, exception)
        _flush(trainer)


def other_writers(trainer: Trainer, file: Path) -> list[tuple[ModelCheckpoint, str]]:
    """Return (callback, attribute with the file's name) of each ModelCheckpoint of the user that writes this file."""
    return [
        (saver, name)
        for saver in trainer.checkpoint_callbacks
        if isinstance(saver, ModelCheckpoint) and not isinstance(saver, BestCheckpoint)
        for name in ("filename", "CHECKPOINT_NAME_LAST")[: 2 if saver.save_last else 1]
        if Path(saver.dirpath or "", f"{getattr(saver, name)}{saver.FILE_EXTENSION}").resolve() == file.resolve()
    ]


def _flush(trainer: Trainer) -> None:
    if isinstance(checkpoint_io := trainer.strategy.checkpoint_io, FitCheckpointIO):
        checkpoint_io.flush()


class StopEarly(NeedsMetric, EarlyStopping):
    """Stop training if the best metric is at least ``patience`` epochs old, or if the metric is NaN or infinite.

    With one validation per epoch or none, the check runs after the epoch, otherwise after each validation. The state
    of Lightning's EarlyStopping can be loaded.
    """

    def __init__(self, monitor: str, mode: str, patience: int) -> None:
        super().__init__(monitor, mode=mode, patience=patience)  # Lightning calls this after the model has logged
        self.best, self.waited = BestSoFar(monitor, mode), 0.0  # epochs since the best one
        self.best_time: float | None = None  # when the best metric was measured, in epochs since the run began

    @property
    def state_key(self) -> str:
        return f"EarlyStopping{ {'monitor': self.monitor, 'mode': self.mode}!r}"

    def state_dict(self) -> dict[str, Any]:
        waiting = {"wait_count": self.waited, "best_time": self.best_time}
        return {**waiting, "best_score": self.best.value, **self.best.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        score = state_dict["best_score"]
        self.waited, self.best_time = state_dict["wait_count"], state_dict.get("best_time")
        self.best.load_state_dict({**state_dict, "best": None if score is None or math.isinf(score) else float(score)})

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        validates_once = trainer.val_check_interval == 1.0 and trainer.check_val_every_n_epoch == 1
        self.checks_after_epoch = validates_once or not trainer.enable_validation or self.monitor.startswith("train_")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.checks_after_epoch:
            self.check(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.checks_after_epoch and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.check(trainer)

    def check(self, trainer: Trainer) -> None:
        """Set ``should_stop`` on all ranks if training must stop, also if the metric is not logged."""
        metrics = trainer.callback_metrics
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if self.monitor not in metrics:
            self.missing, trainer.should_stop = self.describe_missing(trainer), True
            return
        now = trainer.current_epoch + (trainer.fit_loop.batch_idx + 1) / trainer.num_training_batches
        if self.best.improved(metrics):
            self.best_time = now
        elif self.best_time is None:  # the state is from an older version, which counted validations
            self.best_time = now - self.waited - 1
        self.waited = round(now - self.best_time, 6)
        stop = self.waited >= self.patience or not math.isfinite(metrics[self.monitor])
        trainer.should_stop |= trainer.strategy.reduce_boolean_decision(stop, all=False)
