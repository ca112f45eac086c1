"""Print the progress of a run: one line per epoch, and a progress bar in a terminal."""

import sys
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lit_training.callbacks.throughput import count_samples
from lit_training.runs.best_epoch import BestSoFar

REFRESH_SECONDS = 0.2


class EpochLines(ProgressBar):
    """Print one line per epoch on stdout. In a terminal also show a bar with remaining time and samples per second.

    An epoch gets a star if :class:`BestSoFar` finds it better than all before.
    """

    def __init__(self, monitor: str | None, mode: str) -> None:
        super().__init__()
        self.best = BestSoFar(monitor, mode)
        self.enabled = True
        self.bar: Progress | None = None

    def disable(self) -> None:
        self.enabled = False

    def enable(self) -> None:
        self.enabled = True

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best.value}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best.value = state_dict["best"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.unprinted: int | None = None
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
                redirect_stdout=sys.stdout.isatty(),  # lines for a file must not appear in the terminal
            )
            self.bar.start()
            total = trainer.estimated_stepping_batches * trainer.accumulate_grad_batches
            self.task = self.bar.add_task("training", total=None if total == float("inf") else int(total), speed="")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._print_line(trainer)
        self.unprinted = trainer.current_epoch
        self.started = self.shown = time.monotonic()
        self.samples = 0
        self.rates = [optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers]  # before schedules step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.bar is None:
            return
        self.samples += count_samples(batch)
        if (now := time.monotonic()) - self.shown > REFRESH_SECONDS:
            self.shown = now
            speed = self.samples * trainer.world_size / (now - self.started)
            self.bar.update(
                self.task,
                completed=trainer.fit_loop.total_batch_idx + 1,
                description=f"epoch {_epoch_of_all(trainer.current_epoch, trainer)}",
                speed=f"{speed:,.0f} samples/s",
            )
            self.bar.refresh()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.bar is not None:
            epoch = _epoch_of_all(trainer.current_epoch, trainer)
            self.bar.update(self.task, description=f"epoch {epoch} validation")
            self.bar.refresh()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seconds = time.monotonic() - self.started

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
        """Print the line of the epoch before. Its training loss is known only after the epoch's last hook."""
        if self.unprinted is None or not self.enabled:
            return
        epoch, self.unprinted = self.unprinted, None
        metrics = trainer.callback_metrics
        shown = [f"{name} {float(metrics[name]):.4g}" for name in ("train_loss", "val_loss") if name in metrics]
        shown += [f"val_acc {float(metrics['val_acc']):.4f}"] if "val_acc" in metrics else []
        shown += [f"lr {rate:.3g}" for rate in self.rates]
        shown += [f"{self.seconds:.1f} s"]
        if "samples_per_second" in metrics:
            shown += [f"{float(metrics['samples_per_second']):,.0f} samples/s"]
        star = "  *" if self.best.improved(metrics) else ""
        print(f"epoch {_epoch_of_all(epoch, trainer)}  {'  '.join(shown)}{star}", flush=True)


def _epoch_of_all(epoch: int, trainer: Trainer) -> str:
    """Return ``3/20``, or ``3`` if the number of epochs is not known."""
    last = trainer.max_epochs
    return f"{epoch + 1:>{len(str(last))}}/{last}" if last is not None and last > 0 else str(epoch + 1)
