"""Print the progress of a training run: one line per epoch, and a progress bar in a terminal."""

import contextlib
import sys
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lit_training.callbacks.throughput import count_samples
from lit_training.runs.best_epoch import BestSoFar

SECONDS_BETWEEN_REFRESHES = 0.2


class EpochLines(ProgressBar):
    """Print one line per epoch on stdout. If stderr is a terminal, also show a progress bar.

    A star marks an epoch that is better than all earlier epochs (see :class:`BestSoFar`).
    """

    def __init__(self, monitor: str | None, mode: str) -> None:
        super().__init__()
        self.best = BestSoFar(monitor, mode)
        self.improved = False  # True if a validation in this epoch was better than all earlier ones
        self.enabled = True
        self.bar: Progress | None = None

    def enable(self) -> None:
        self.enabled = True

    def disable(self) -> None:
        self.enabled = False

    def state_dict(self) -> dict[str, Any]:
        return {**self.best.state_dict(), "improved": self.improved}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best.load_state_dict(state_dict)
        self.improved = state_dict.get("improved", False)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.unprinted_epoch: int | None = None
        if self.enabled and sys.stderr.isatty():
            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[speed]}"),
                console=Console(stderr=True),
                transient=True,
                auto_refresh=False,
                redirect_stdout=sys.stdout.isatty(),  # if stdout is a file, keep its lines out of the terminal
            )
            self.bar.start()
            total = trainer.estimated_stepping_batches * trainer.accumulate_grad_batches
            self.bar_task = self.bar.add_task("training", total=None if total == float("inf") else int(total), speed="")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._print_line(trainer)
        self.unprinted_epoch = trainer.current_epoch
        self.start_time = self.refresh_time = time.monotonic()
        self.samples = 0
        # Store the learning rates now, because the schedules change them at the end of the epoch.
        self.learning_rates = [group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups[:1]]

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.bar is None:
            return
        self.samples += count_samples(batch)
        if (now := time.monotonic()) - self.refresh_time > SECONDS_BETWEEN_REFRESHES:
            self.refresh_time = now
            speed = self.samples * trainer.world_size / (now - self.start_time)
            self.bar.update(
                self.bar_task,
                completed=trainer.fit_loop.total_batch_idx + 1,
                description=f"epoch {_epoch_text(trainer.current_epoch, trainer)}",
                speed=f"{speed:,.0f} samples/s",
                refresh=True,
            )

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.bar is not None:
            description = f"epoch {_epoch_text(trainer.current_epoch, trainer)} validation"
            self.bar.update(self.bar_task, description=description, refresh=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.improved |= self.best.improved(trainer.callback_metrics)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.epoch_seconds = time.monotonic() - self.start_time

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._print_line(trainer)
        self._stop_bar()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop_bar()

    def _stop_bar(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _print_line(self, trainer: Trainer) -> None:
        """Print the line of the last complete epoch. Its training loss exists only after the epoch's hooks."""
        if self.unprinted_epoch is None or not self.enabled:
            return
        epoch, self.unprinted_epoch = self.unprinted_epoch, None
        metrics = trainer.callback_metrics
        parts = [f"{name} {float(metrics[name]):.4g}" for name in ("train_loss", "val_loss") if name in metrics]
        parts += [f"val_acc {float(metrics['val_acc']):.4f}"] if "val_acc" in metrics else []
        if (monitor := self.best.monitor) in metrics.keys() - {"train_loss", "val_loss", "val_acc"}:
            parts += [f"{monitor} {float(metrics[monitor]):.4g}"]
        parts += [f"lr {rate:.3g}" for rate in self.learning_rates]
        parts += [f"{self.epoch_seconds:.1f} s"]
        if "samples_per_second" in metrics:
            parts += [f"{float(metrics['samples_per_second']):,.0f} samples/s"]
        star = "  *" if self.best.improved(metrics) or self.improved else ""
        self.improved = False
        with contextlib.suppress(BrokenPipeError):  # nobody reads the lines any more, but the run goes on
            print(f"epoch {_epoch_text(epoch, trainer)}  {'  '.join(parts)}{star}", flush=True)


def _epoch_text(epoch: int, trainer: Trainer) -> str:
    """Return the number of the epoch, from 1, as text: ``3/20``, or ``3`` if the number of epochs is not known."""
    last = trainer.max_epochs
    return f"{epoch + 1:>{len(str(last))}}/{last}" if last is not None and last > 0 else str(epoch + 1)
