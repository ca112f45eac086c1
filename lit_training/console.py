"""What a run says while it trains: a live bar in a terminal, one line per epoch everywhere."""

import sys
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

REFRESH_SECONDS = 0.2


class EpochLines(ProgressBar):
    """One line per epoch on stdout; in a terminal also a bar with the remaining time and samples per second.

    Args:
        monitor: the metric whose best epoch gets a star.
        mode: ``max`` or ``min``.
    """

    def __init__(self, monitor: str, mode: str) -> None:
        super().__init__()
        self.monitor, self.mode = monitor, mode
        self.best: float | None = None
        self.enabled = True
        self.bar: Progress | None = None

    def disable(self) -> None:
        self.enabled = False

    def enable(self) -> None:
        self.enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.line_due: int | None = None
        if self.enabled and sys.stderr.isatty():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            speed = TextColumn("{task.fields[speed]}")
            self.bar = Progress(*columns, speed, console=Console(stderr=True), transient=True, auto_refresh=False)
            self.bar.start()
            total = trainer.estimated_stepping_batches * trainer.accumulate_grad_batches
            self.task = self.bar.add_task("training", total=None if total == float("inf") else int(total), speed="")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._print_line(trainer)
        self.line_due = trainer.current_epoch
        self.started = self.shown = time.monotonic()
        self.samples = 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.samples += len(batch[0])
        if self.bar is not None and (now := time.monotonic()) - self.shown > REFRESH_SECONDS:
            self.shown = now
            speed = self.samples * trainer.world_size / (now - self.started)
            description = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs or '?'}"
            self.bar.update(
                self.task,
                completed=trainer.fit_loop.total_batch_idx + 1,
                description=description,
                speed=f"{speed:,.0f} samples/s",
            )
            self.bar.refresh()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seconds = time.monotonic() - self.started

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._print_line(trainer)
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _print_line(self, trainer: Trainer) -> None:
        """The line of the epoch that has ended; its mean training loss is known only after the epoch's last hook."""
        if self.line_due is None or not self.enabled:
            return
        epoch, self.line_due = self.line_due, None
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        shown = [f"{name} {metrics[name]:.4g}" for name in ("train_loss", "val_loss") if name in metrics]
        shown += [f"{name} {metrics[name]:.4f}" for name in ("val_acc",) if name in metrics]
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        speed = self.samples * trainer.world_size / max(self.seconds, 1e-9)
        star = "  *" if self._improved(metrics.get(self.monitor)) else ""
        width = len(str(trainer.max_epochs))
        print(
            f"epoch {epoch + 1:>{width}}/{trainer.max_epochs}  {'  '.join(shown)}  lr {rate:.3g}  "
            f"{self.seconds:.1f} s  {speed:,.0f} samples/s{star}",
            flush=True,
        )

    def _improved(self, value: float | None) -> bool:
        if value is None or (
            self.best is not None and (value <= self.best if self.mode == "max" else value >= self.best)
        ):
            return False
        self.best = value
        return True
