"""Resume points: a run that is killed at any moment and started again ends as if nothing had happened.

What a step does is a function of the seed and of the step's number: the order of the data and its augmentation
(datamodules/loading), and what the network draws (:class:`StepSeed`). A resume point therefore holds Lightning's
checkpoint and few numbers more. It is taken *between* two steps: Lightning's own checkpoints, taken inside its loop,
resume with a repeated or a missing step, validation or schedule update.
"""

import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from datamodules.machine import SIGNALS
from datamodules.text import plural
from lit_models import LitBase
from lit_training.callbacks.records import fingerprint
from lit_training.errors import CheckpointError
from lit_training.runs.folder import resume_hint
from lit_training.runs.foreign import data_of, promises
from lit_training.runs.layout import CHECKPOINTS, LAST
from lit_training.runs.lightning_internals import (
    count_epoch_as_whole,
    logged_steps,
    restore_loaders,
    set_logged_steps,
    start_resumed_epoch,
)
from lit_training.runs.metrics_csv import MetricsCSV
from lit_training.runs.processes import Stopped, Watch, is_child, requeue_slurm_job
from lit_training.runs.trainer import FitTrainer


class StepSeed(Callback):
    """Seeds torch before each training step by (seed, number of the step, rank): dropout, random depth, noise.

    All ranks draw what rank 0 does where the model's draws hold for a whole batch (``draws_per_batch``).

    Args:
        seed: the run's.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        rank = 0 if promises(pl_module).draws_per_batch else trainer.global_rank
        seed = (self.seed * 1_000_003 + trainer.fit_loop.total_batch_idx) * 4096 + rank
        torch.default_generator.manual_seed(seed)  # torch.manual_seed, which asks for every device, takes 290 us
        device = trainer.strategy.root_device
        if device.type == "cuda":
            torch.cuda.default_generators[device.index or 0].manual_seed(seed)
        elif device.type == "mps":
            torch.mps.manual_seed(seed)


class ResumePoint(Callback):
    """Writes ``last.ckpt`` between two steps, keeps the one before as ``previous.ckpt``, and goes on from them.

    The time between two of them follows what one takes, so that all together cost :attr:`COST` of the run. On several
    processes rank 0's clock decides; they all agree in one reduction about every :attr:`TALK` seconds, in which they
    also learn of a signal that any of them has got.

    Args:
        watch: knows of signals.
    """

    COST = 0.01
    TALK = 0.5
    FIRST = 0.1
    """Seconds that the first one is expected to take."""
    PATIENCE = 5.0
    """Seconds that a validation has left to end after a signal, so that a resume point can still be taken."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.resumed: dict[str, Any] = {}
        self._state: dict[str, Any] = {}
        self._takes = self.FIRST
        self._data = ""
        self._asked: float | None = None
        self._first = True
        self._calls = self._next_talk = self._last_calls = 0

    # --- what is saved --------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return self._state  # empty but in a resume point

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.resumed = state_dict
        self._first = False

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """ModelCheckpoint forgets its best score where the run's folder is spelled in another way, or was moved."""
        folder = str(_run_of(trainer) / CHECKPOINTS)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            state = checkpoint["callbacks"].get(callback.state_key)
            if isinstance(callback, ModelCheckpoint) and state is not None:
                checkpoint["callbacks"][callback.state_key] = _moved(
                    state, state["dirpath"], str(callback.dirpath or folder)
                )

    def save(self, trainer: Trainer, finished: bool = False, fetched: bool = True) -> None:
        """Write a resume point; all ranks call it, between two steps or at the end.

        Args:
            finished: no step is to come.
            fetched: the next step has its batch already.
        """
        began = time.monotonic()
        loop = trainer.fit_loop.epoch_loop
        for logger in trainer.loggers:
            logger.save()
        table = next((logger for logger in trainer.loggers if isinstance(logger, MetricsCSV)), None)
        if table is not None:
            table.sync()
        self._state = {
            "finished": finished,
            "epoch": trainer.current_epoch,
            "logged": logged_steps(trainer),
            "rows": table.rows if table is not None and trainer.is_global_zero else 0,
            "losses": _gather(trainer, promises(trainer.lightning_module).epoch_losses),
            "metrics": {name: value.detach().cpu() for name, value in trainer.callback_metrics.items()},
            "shape": _shape(trainer),
            "data": self._data,
        }
        progress = loop.batch_progress
        ready, is_last = int(fetched and not finished), progress.is_last_batch
        # The next batch is fetched, but to a resumed run it is still to come.
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
        self._takes = self._saved - began
        self._first &= trainer.global_step == 0

    # --- when -----------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved = self._talked = time.monotonic()
        self._data = fingerprint(trainer.train_dataloader)
        self.watch.take_signals()
        self.watch.stepping = True
        if not self.resumed:
            return
        if self.resumed["shape"] != _shape(trainer):
            raise CheckpointError(
                f"the resume point is of {_shape_in_words(*self.resumed['shape'])}, now it would be "
                f"{_shape_in_words(*_shape(trainer))}: use the same --devices, --data.batch_size and "
                "--accumulate_grad_batches"
            )
        for optimizer in trainer.optimizers:  # some load another one's state without a word
            if optimizer.defaults.keys() - optimizer.param_groups[0].keys():
                raise CheckpointError(other_optimizer_message(trainer))
        if self.resumed["data"] != self._data:
            raise CheckpointError("the training data is not what it was when the run began: use --resume never")
        if self.resumed["finished"]:  # with more epochs to go
            self.resumed = {}
            return
        # A schedule that asks for the run's length has the loaders made before their state is there to be loaded.
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
        if batch_idx % trainer.accumulate_grad_batches:  # partial gradients are in no checkpoint
            return
        if batch_idx == 0:  # what stands between two epochs may take longer than many steps
            self._next_talk = 0
        signum, due = self._agree(trainer)
        if due or signum or self._files_may_vanish(trainer):
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
        if not self.watch.stepping:
            return
        signum, late = self._agree(trainer)
        if signum and late:
            self._stop(trainer, signum)  # without a new resume point, which validation does not allow

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        count_epoch_as_whole(trainer)

    def on_fit_end(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> None:  # all callbacks have ended their training
        self.save(trainer, finished=True)
        self.watch.stepping = False
        self._next_talk = 0
        if signum := self._agree(trainer)[0]:
            self._stop(trainer, signum)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, Exception) and self._was_fetching(trainer):
            self.save(trainer, fetched=False)
        self.watch.ending, self.watch.stepping = True, False

    def _files_may_vanish(self, trainer: Trainer) -> bool:
        """Save early: a failure in validation, mid-accumulation or on another rank cannot save."""
        return self._first and trainer.global_step > 0 and data_of(trainer).photos is not None

    def _was_fetching(self, trainer: Trainer) -> bool:
        """Whether the trouble is with the next batch: all steps before it are whole. Other ranks do not know of it."""
        progress = trainer.fit_loop.epoch_loop.batch_progress
        return (
            self.watch.stepping
            and trainer.training
            and trainer.world_size == 1
            and trainer.global_step > 0
            and not self.resumed  # no step since the point that the run went on from
            and not progress.is_last_batch
            and progress.current.ready == progress.current.completed
            and progress.current.ready % trainer.accumulate_grad_batches == 0
        )

    def _agree(self, trainer: Trainer) -> tuple[int, bool]:
        """The signal that stops all ranks, or 0, and whether a resume point is due (or has been waited for enough)."""
        now = time.monotonic()
        if self.watch.signum and self._asked is None:
            self._asked = now
        due = now - self._saved > self._takes / self.COST if self._asked is None else now - self._asked > self.PATIENCE
        if trainer.world_size == 1:
            return self.watch.signum, due
        self._calls += 1
        if self._calls < self._next_talk:
            return 0, False
        calls, self._last_calls = self._calls - self._last_calls, self._calls
        gap = min(1000, max(1, round(calls * self.TALK / max(now - self._talked, 1e-6))))
        self._talked = now
        mine = [self.watch.signum, int(due), gap] if trainer.is_global_zero else [self.watch.signum, 0, 0]
        ours = torch.tensor(mine, device=trainer.strategy.root_device)
        torch.distributed.all_reduce(ours, torch.distributed.ReduceOp.MAX)
        signum, agreed, gap = ours.tolist()
        self._next_talk = self._calls + gap
        if signum and self._asked is None:
            self._asked = now
        return signum, bool(agreed)

    def _stop(self, trainer: Trainer, signum: int) -> None:
        if trainer.is_global_zero:
            name = next(number.name for number in SIGNALS if number == signum)
            hint = resume_hint(_run_of(trainer)) or "no resume point yet"
            print(f"stopped by {name} after step {trainer.global_step}; {hint}", flush=True)
            requeue_slurm_job(signum)
        # Lightning kills rank 0 when a process that it launched ends with another code than 0.
        raise Stopped(0 if is_child(trainer) else 128 + signum)


def other_optimizer_message(trainer: Trainer) -> str:
    """What to say of a resume point whose optimizer's state is not that of this run's."""
    name = type(trainer.optimizers[0]).__name__
    return f"the resume point is of another optimizer than {name}: leave --optimizer as it was, or use --resume never"


def _run_of(trainer: Trainer) -> Path:
    assert isinstance(trainer, FitTrainer)
    assert trainer.start is not None
    return trainer.start.run


def _shape(trainer: Trainer) -> list[Any]:
    return [trainer.world_size, trainer.num_training_batches, trainer.accumulate_grad_batches]


def _shape_in_words(processes: int, batches: int, accumulated: int) -> str:
    return f"{plural(processes, 'process', 'processes')} with {batches} batches an epoch and {accumulated} accumulated"


def _moved(value: Any, old: str, new: str) -> Any:
    if isinstance(value, dict):
        return {_moved(key, old, new): _moved(item, old, new) for key, item in value.items()}
    return new + value.removeprefix(old) if isinstance(value, str) and value.startswith(old) else value


def _gather(trainer: Trainer, value: Any) -> list[Any]:
    """The value of each rank."""
    values = [value] * trainer.world_size
    if trainer.world_size > 1:
        torch.distributed.all_gather_object(values, value)
    return values
