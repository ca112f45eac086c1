"""Resume points: a run that is killed at any moment and resumed gives the same result as an uninterrupted run.

All randomness of a step is a function of the seed and the step's number: the order and augmentation of the data
(datamodules/loading) and what the network draws (:class:`StepSeed`). A resume point is therefore Lightning's checkpoint
plus a few numbers. It is written *between* two steps. Lightning writes its own checkpoints inside its loop, so a run
that resumes from them repeats or skips a step, a validation or a schedule update.
"""

import signal
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from datamodules.text import plural
from lit_models import LitBase
from lit_training.callbacks.records import fingerprint
from lit_training.errors import CheckpointError
from lit_training.runs.folder import resume_hint
from lit_training.runs.foreign import data_of, with_default_attributes
from lit_training.runs.layout import CHECKPOINTS, LAST
from lit_training.runs.lightning_internals import (
    count_epoch_as_complete,
    logged_steps,
    restore_loaders,
    set_logged_steps,
    start_resumed_epoch,
)
from lit_training.runs.metrics_csv import MetricsCSV
from lit_training.runs.processes import Stopped, Watch, gather_objects, is_child, requeue_slurm_job


class StepSeed(Callback):
    """Seed torch before each training step with (seed, step number, rank), for dropout, random depth and noise.

    If the model draws once per batch (``draws_per_batch``), all ranks draw the same.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        rank = 0 if with_default_attributes(pl_module).draws_per_batch else trainer.global_rank
        seed = (self.seed * 1_000_003 + trainer.fit_loop.total_batch_idx) * 4096 + rank
        torch.default_generator.manual_seed(seed)  # torch.manual_seed seeds every device and takes 290 us
        device = trainer.strategy.root_device
        if device.type == "cuda":
            torch.cuda.default_generators[device.index or 0].manual_seed(seed)
        elif device.type == "mps":
            torch.mps.manual_seed(seed)


class ResumePoint(Callback):
    """Write resume points to ``last.ckpt`` between two steps, keep the one before as ``previous.ckpt``, and resume.

    The interval adapts to how long one takes to write, so that they cost the share :attr:`TIME_SHARE` of the run. With
    several processes the clock of rank 0 decides. All ranks share their signals and that decision in one reduction
    about every :attr:`SECONDS_BETWEEN_EXCHANGES` seconds.
    """

    TIME_SHARE = 0.01
    SECONDS_BETWEEN_EXCHANGES = 0.5
    FIRST = 0.1
    """Expected seconds for the first one."""
    PATIENCE = 5.0
    """Seconds after a signal in which a validation may end, so that a resume point can still be written."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.resumed: dict[str, Any] = {}
        self._state: dict[str, Any] = {}
        self._took = self.FIRST
        self._data = ""
        self._signaled: float | None = None
        self._first = True
        self._calls = self._calls_between_talks = 0

    # --- what is saved --------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return self._state  # empty except while save() runs

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.resumed = state_dict
        self._first = False

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Update the paths in ModelCheckpoint's state: it forgets its best score if the run's folder was moved."""
        folder = str(_run_of(trainer) / CHECKPOINTS)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            state = checkpoint["callbacks"].get(callback.state_key)
            if isinstance(callback, ModelCheckpoint) and state is not None:
                moved = _replace_prefix(state, state["dirpath"], str(callback.dirpath or folder))
                checkpoint["callbacks"][callback.state_key] = moved

    def save(self, trainer: Trainer, finished: bool = False, fetched: bool = True) -> None:
        """Write a resume point. All ranks call it, between two steps or at the end.

        Args:
            finished: training is over.
            fetched: the batch of the next step is already fetched.
        """
        began = time.monotonic()
        rows = 0
        for logger in trainer.loggers:
            logger.save()
            if isinstance(logger, MetricsCSV) and trainer.is_global_zero:
                logger.sync()
                rows = logger.rows
        self._state = {
            "finished": finished,
            "epoch": trainer.current_epoch,
            "logged": logged_steps(trainer),
            "rows": rows,
            "losses": gather_objects(trainer, with_default_attributes(trainer.lightning_module).epoch_losses),
            "metrics": {name: value.detach().cpu() for name, value in trainer.callback_metrics.items()},
            "shape": _shape(trainer),
            "data": self._data,
        }
        progress = trainer.fit_loop.epoch_loop.batch_progress
        ready, is_last = int(fetched and not finished), progress.is_last_batch
        # A resumed run fetches the next batch again.
        progress.current.ready -= ready
        progress.total.ready -= ready
        progress.is_last_batch = is_last and finished
        try:
            trainer.save_checkpoint(_run_of(trainer) / CHECKPOINTS / LAST)
        finally:
            progress.current.ready += ready
            progress.total.ready += ready
            progress.is_last_batch = is_last
            self._state = {}
        self._saved = time.monotonic()
        self._took = self._saved - began
        self._first &= trainer.global_step == 0

    # --- when -----------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved = self._talked = time.monotonic()
        self._data = fingerprint(trainer.train_dataloader)
        self.watch.set_signal_handlers()
        self.watch.stepping = True
        if not self.resumed:
            return
        if self.resumed["shape"] != _shape(trainer):
            raise CheckpointError(
                f"the resume point has {_describe_shape(*self.resumed['shape'])}, but this command has "
                f"{_describe_shape(*_shape(trainer))}: use the same --devices, --data.batch_size and "
                "--accumulate_grad_batches"
            )
        for optimizer in trainer.optimizers:  # some load the state of another optimizer without an error
            if optimizer.defaults.keys() - optimizer.param_groups[0].keys():
                raise CheckpointError(other_optimizer_message(trainer))
        if self.resumed["data"] != self._data:
            raise CheckpointError("the training data has changed since the run began: use --resume never")
        if self.resumed["finished"]:  # this command adds epochs
            self.resumed = {}
            return
        restore_loaders(trainer)
        metrics = {name: value.to(pl_module.device) for name, value in self.resumed["metrics"].items()}
        trainer.callback_metrics.update(metrics)
        if isinstance(pl_module, LitBase):
            pl_module.epoch_losses = self.resumed["losses"][trainer.global_rank]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.watch.note_progress()
        if self.resumed:
            set_logged_steps(trainer, self.resumed["logged"])
            self.resumed = {}
            start_resumed_epoch(trainer, pl_module)
            return
        if batch_idx % trainer.accumulate_grad_batches:  # checkpoints do not hold accumulated gradients
            return
        if batch_idx == 0:  # the time between two epochs may be that of many steps
            self._calls_between_talks = 0
        signum, due = self._agree(trainer)
        if due or signum or self._needs_early_save(trainer):
            self.save(trainer)
        if signum:
            self._stop(trainer, signum)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.watch.note_progress()

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if trainer.sanity_checking:
            return
        self.watch.note_progress()  # also in the evaluation after training, which may take longer than --timeout
        if self.watch.stepping:
            signum, late = self._agree(trainer)
            if signum and late:
                self._stop(trainer, signum)  # without a new resume point: validation is not between two steps

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        count_epoch_as_complete(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.save(trainer, finished=True)  # here, because all callbacks have finished on_train_end
        self.watch.stepping = False
        self._calls_between_talks = 0
        if signum := self._agree(trainer)[0]:
            self._stop(trainer, signum)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, Exception) and self._failed_while_fetching(trainer):
            self.save(trainer, fetched=False)
        self.watch.ending, self.watch.stepping = True, False

    def _needs_early_save(self, trainer: Trainer) -> bool:
        """Return True after the first step on photos: a file that disappears may end the run where it cannot save."""
        return self._first and trainer.global_step > 0 and data_of(trainer).photos is not None

    def _failed_while_fetching(self, trainer: Trainer) -> bool:
        """Return True if fetching the next batch failed after a complete step, in a run without other ranks."""
        progress = trainer.fit_loop.epoch_loop.batch_progress
        return (
            self.watch.stepping
            and trainer.training
            and trainer.world_size == 1
            and trainer.global_step > 0
            and not self.resumed  # no step since the resume point
            and not progress.is_last_batch
            and progress.current.ready == progress.current.completed
            and progress.current.ready % trainer.accumulate_grad_batches == 0
        )

    def _agree(self, trainer: Trainer) -> tuple[int, bool]:
        """Return the signal that stops all ranks, or 0, and True if it is time for a resume point.

        After a signal the second value is True once :attr:`PATIENCE` is over.
        """
        now = time.monotonic()
        if self.watch.signum and self._signaled is None:
            self._signaled = now
        if self._signaled is None:
            due = now - self._saved > self._took / self.TIME_SHARE
        else:
            due = now - self._signaled > self.PATIENCE
        if trainer.world_size == 1:
            return self.watch.signum, due
        self._calls += 1
        if self._calls < self._calls_between_talks:
            return 0, False
        gap = min(1000, max(1, round(self._calls * self.SECONDS_BETWEEN_EXCHANGES / max(now - self._talked, 1e-6))))
        self._calls, self._talked = 0, now
        mine = [self.watch.signum, int(due), gap] if trainer.is_global_zero else [self.watch.signum, 0, 0]
        ours = torch.tensor(mine, device=trainer.strategy.root_device)
        torch.distributed.all_reduce(ours, torch.distributed.ReduceOp.MAX)
        signum, agreed, self._calls_between_talks = ours.tolist()
        if signum and self._signaled is None:
            self._signaled = now
        return signum, bool(agreed)

    def _stop(self, trainer: Trainer, signum: int) -> None:
        if trainer.is_global_zero:
            hint = resume_hint(_run_of(trainer)) or "no resume point yet"
            print(f"stopped by {signal.Signals(signum).name} after step {trainer.global_step}; {hint}", flush=True)
            requeue_slurm_job(signum)
        # Lightning kills rank 0 when a process that it launched ends with a code other than 0.
        raise Stopped(0 if is_child(trainer) else 128 + signum)


def other_optimizer_message(trainer: Trainer) -> str:
    """Return the error message for a resume point of another optimizer."""
    name = type(trainer.optimizers[0]).__name__
    return f"the resume point is of another optimizer than {name}: leave --optimizer as it was, or use --resume never"


def _run_of(trainer: Any) -> Path:
    return trainer.start.folder  # a FitTrainer


def _shape(trainer: Trainer) -> list[Any]:
    return [trainer.world_size, trainer.num_training_batches, trainer.accumulate_grad_batches]


def _describe_shape(processes: int, batches: int, accumulated: int) -> str:
    return f"{plural(processes, 'process', 'processes')} with {batches} batches per epoch and {accumulated} accumulated"


def _replace_prefix(value: Any, old: str, new: str) -> Any:
    if isinstance(value, dict):
        return {_replace_prefix(key, old, new): _replace_prefix(item, old, new) for key, item in value.items()}
    return new + value.removeprefix(old) if isinstance(value, str) and value.startswith(old) else value
