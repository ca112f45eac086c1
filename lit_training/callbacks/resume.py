"""Write resume points: checkpoints from which a killed run continues with the same result as an uninterrupted run.

The random numbers of the data (datamodules/loading) and of the network (runs/loaders) depend only on the seed,
the step and the rank. So the state of the generators is not saved. A resume point is a Lightning checkpoint with a few
more values, written *between* two steps. A run that resumes from Lightning's own checkpoints, which are written inside
its loop, may repeat or skip a step, a validation or a schedule update.
"""

import contextlib
import math
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder, ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.parsing import lightning_setattr

from datamodules.text import plural, print_note, print_once
from lit_models import LitBase
from lit_training.callbacks.best import other_writers
from lit_training.callbacks.records import fingerprint, fingerprint_batch
from lit_training.errors import CheckpointError
from lit_training.runs import lightning_internals
from lit_training.runs.checkpoints import RESUME_STATE, copy_resume_point, read_any
from lit_training.runs.folder import resume_hint
from lit_training.runs.layout import CHECKPOINTS, LAST, RESUME
from lit_training.runs.loaders import repeatable_loaders, shuffled
from lit_training.runs.metrics_csv import MetricsCSV
from lit_training.runs.own_classes import data_of
from lit_training.runs.own_state import own_states, to_value, weights_restorer
from lit_training.runs.processes import Stopped, Watch, gather_objects, is_child, requeue_slurm_job


class ResumePoint(Callback):
    """Write resume points between two steps, and restore the run from a resume point.

    With several processes, rank 0 decides when to write. The ranks regularly exchange this decision and their signals.
    """

    TIME_SHARE = 0.01  # about this share of the run's time is used to write resume points
    SECONDS_BETWEEN_EXCHANGES = 0.5
    SECONDS_TO_END_VALIDATION = 5.0
    """If a validation does not end within this time after a signal, the run stops without a new resume point.
    So a resume point is written before the step before a longer validation, if the last point is older than this."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.loaded: dict[str, Any] = {}  # this callback's state from the resume point, until the first step
        self._state_to_save: dict[str, Any] = {}
        self._save_seconds = 0.1  # assumed time to write the first resume point
        self._step_end_time, self._validation_seconds = 0.0, math.inf  # inf: the first validation may be long
        self._restore_weights: Callable[[], None] = lambda: None
        """Undoes what hooks that run again after a resume change. It holds a copy of the weights to the first step."""
        self._first_own_states: dict[str, Any] = {}
        """For each object of the user, hashes of its state before the first step of this process."""
        self._data_fingerprint = ""
        self._accumulated = 0  # of the command: a GradientAccumulationScheduler changes that of the Trainer
        self._signal_time: float | None = None  # when this rank learned that it, or another rank, got a stop signal
        self._next_is_step = False  # True if the batch that follows begins a step of the same epoch
        self._no_step_saved = True  # True until a resume point is written after the first step
        self._calls_since_exchange = self._calls_between_exchanges = 0  # calls of _agree_on_stop_and_save

    # --- what is saved --------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return self._state_to_save  # empty, except while save() runs

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.loaded = state_dict
        self._no_step_saved = False

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """If the run's folder was moved, correct the paths of ModelCheckpoint. Else its best score is lost."""
        if checkpoint["callbacks"].get(RESUME_STATE, {}).get("finished"):
            checkpoint["loops"]["fit_loop"]["state_dict"].pop("combined_loader", None)  # no position inside an epoch
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        if RESUME_STATE in checkpoint["callbacks"]:  # it has what these callbacks found
            trainer.callbacks = [one for one in callbacks if not isinstance(one, LearningRateFinder | BatchSizeFinder)]  # type: ignore[attr-defined]
        checkpoint["callbacks"].pop("SpikeDetection", None)  # Lightning 2.6 cannot load its state
        for callback in callbacks:
            state = checkpoint["callbacks"].get(callback.state_key)
            if isinstance(callback, ModelCheckpoint) and state is not None:
                callback.file_exists = _is_earlier  # type: ignore[method-assign, assignment]
                folder = str(callback.dirpath or trainer.start.folder / CHECKPOINTS)  # type: ignore[attr-defined]
                checkpoint["callbacks"][callback.state_key] = _replace_prefix(state, state["dirpath"], folder)
        # A copy of a resume point outside of its run has no config.yaml that could be compared before.
        own = checkpoint.get("datamodule_hyper_parameters", {}) | checkpoint.get("hyper_parameters", {})
        for name, saved in own.items():
            if len(trainer.callbacks) < len(callbacks) and isinstance(saved, int | float):  # type: ignore[attr-defined]
                lightning_setattr(pl_module, name, saved)
        # Steps may change hyper-parameters, so compare the arguments of the constructor. Older versions saved none.
        arguments, current = checkpoint.get("hyper_parameters", {}), pl_module.hparams
        if (of_constructor := checkpoint.get("lit", {}).get("model_arguments")) is not None:
            arguments, current = of_constructor, getattr(pl_module, "constructor_arguments", {})
        for name, saved in arguments.items():
            if isinstance(saved, int | float) and (new := current.get(name, saved)) != saved:
                problem = f"the resume point was written with --model.{name} {saved}, not {new}"
                raise CheckpointError(f"{problem}: give the settings of that run, or use --resume never")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Do not count the batch of the next step as fetched: a resumed run fetches it again."""
        if state := self._state_to_save:
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
            for counts in (progress["current"], progress["total"]):
                counts["ready"] -= state["batch"] is not None
            progress["is_last_batch"] &= state["finished"]

    def save(self, trainer: Trainer, finished: bool = False, batch: Any = None) -> None:
        """Write a resume point, at the end of an epoch also last.ckpt. All ranks must call this method.

        ``batch`` is that of the next step, if Lightning has already fetched it.
        """
        start_time, metrics_rows = time.monotonic(), 0
        batches = trainer.fit_loop.epoch_loop.batch_progress.current.ready - (batch is not None)
        if firsts := self._first_own_states:
            own = {name: one.changed(firsts.get(name, {})) for name, one in own_states(trainer).items()}
        else:  # no step since the start or the resume
            own = self.loaded["own"][trainer.global_rank] if self.loaded.get("own") else {}
        for logger in trainer.loggers:
            logger.save()
            if isinstance(logger, MetricsCSV) and trainer.is_global_zero:
                logger.sync()
                metrics_rows = logger.rows
        self._state_to_save = {
            "finished": finished,
            "limits": trainer.start.limits,  # type: ignore[attr-defined]
            "threads": trainer.start.threads or trainer.threads,  # type: ignore[attr-defined]
            "epoch": trainer.current_epoch,
            "logged": lightning_internals.logged_steps(trainer),
            "rows": metrics_rows,
            "metrics": {name: value.detach().cpu() for name, value in trainer.callback_metrics.items()},
            "shape": self._batch_layout(trainer),
            "shuffled": shuffled(trainer),
            "planned": trainer.estimated_stepping_batches,
            "should_stop": trainer.should_stop,
            "data": self._data_fingerprint,
            "batches": 0 if finished else batches,
            "batch": fingerprint_batch(batch) if batch is not None else None,
            "reload_epoch": lightning_internals.last_reload_epoch(trainer),
            "results": gather_objects(trainer, lightning_internals.epoch_results(trainer)),
            "own": gather_objects(trainer, own),
            "loaders": gather_objects(trainer, [one.changed_state(finished) for one in repeatable_loaders(trainer)]),
        }
        ends_epoch = finished or (trainer.global_step > 0 and batches == 0)
        run: Path = trainer.start.folder  # type: ignore[attr-defined]
        point, last = run / RESUME / LAST, run / CHECKPOINTS / LAST
        try:
            trainer.save_checkpoint(point)
            if ends_epoch and trainer.is_global_zero and not other_writers(trainer, last):
                copy_resume_point(point, last)
        finally:
            self._state_to_save = {}
        self._last_save_time = time.monotonic()
        self._save_seconds = self._last_save_time - start_time
        self._no_step_saved &= trainer.global_step == 0

    # --- when to save ----------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.start.trained:  # type: ignore[attr-defined]
            trainer.fit_loop.max_epochs = trainer.start.epoch  # type: ignore[attr-defined]  # it then trains nothing

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last_save_time = self._last_exchange_time = time.monotonic()
        self._data_fingerprint = fingerprint(trainer.train_dataloader)
        self.watch.set_signal_handlers()
        self.watch.stepping = True
        self._accumulated = trainer.accumulate_grad_batches
        trainer.strategy.checkpoint_io.is_restoring = False  # type: ignore[attr-defined]
        if not self.loaded:
            return
        self._restore_weights = weights_restorer(trainer)
        if (saved := self.loaded["shape"]) != (own := self._batch_layout(trainer)):
            before, now = (
                f"{plural(ranks, 'process', 'processes')} with {batches} batches per epoch and {accumulated} per step"
                for ranks, batches, accumulated in (saved, [trainer.world_size, *own[1:]])
            )
            fix = "use the same --devices, --data.batch_size and --accumulate_grad_batches"
            raise CheckpointError(f"the resume point has {before}, but this command has {now}: {fix}")
        self._resize(trainer, pl_module)
        for optimizer in trainer.optimizers:  # torch may load the state of another optimizer without an error
            if any(optimizer.defaults.keys() - {"differentiable"} - group.keys() for group in optimizer.param_groups):
                raise CheckpointError(other_optimizer_message(trainer))
        if self.loaded["data"] != self._data_fingerprint:
            raise CheckpointError("the training data has changed since the run began: use --resume never")
        self._refuse_ended_schedule(trainer)
        if self.loaded["finished"]:  # this command goes on with a finished run
            lightning_internals.count_epoch_as_complete(trainer)
            return
        lightning_internals.restore_loaders(trainer)
        trainer.should_stop = self.loaded.get("should_stop", False)  # early stopping waits for --min_epochs
        metrics = {name: value.to(pl_module.device) for name, value in self.loaded["metrics"].items()}
        trainer.callback_metrics.update(metrics)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore_weights()

    def _resize(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Share the saved losses among another number of processes. Raise a CheckpointError if it must not change."""
        own = self.loaded.get("own", [{}] * self.loaded["shape"][0])  # older versions saved none
        ranks, first = trainer.world_size, len(own)
        if first == ranks:
            return
        is_known = isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy)
        if not is_known or shuffled(trainer) != self.loaded.get("shuffled"):
            problem = f"with its loader and this strategy, a run of {plural(first, 'process', 'processes')}"
            fix = "--strategy ddp" if ranks == 1 else f"--devices {first}"  # ddp chooses the order of the samples
            raise CheckpointError(f"{problem} cannot go on with {ranks}: {fix}, or --resume never")
        if any(len(one.dataset) % number for one in repeatable_loaders(trainer) for number in (first, ranks)):
            print_note("the processes cannot share the last batch of an epoch equally: the result will differ")
        self.loaded["batch"] = None  # it was another part of the global batch
        for name, saved in ((name, self.loaded[name]) for name in ("loaders", "own", "results")):
            self.loaded[name] = [saved[rank * first // ranks] for rank in range(ranks)]
        way = ("epoch_losses",)
        models = [one.get("model", {}) for one in own]
        losses = [to_value(model[way], torch.device("cpu")) for model in models if way in model]
        if losses and isinstance(pl_module, LitBase):
            share = ranks if pl_module.reduction == "sum" else first  # keeps the sum, or the mean
            shared = sum(float(loss) for loss, _ in losses) / share, losses[0][1]
            self.loaded["own"] = [{**one, "model": {**one["model"], way: shared}} for one in self.loaded["own"]]

    def _restore_own_state(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the first step of this process, restore what the steps before it changed in the user's objects."""
        is_inside_epoch = self.loaded and not self.loaded["finished"]
        if is_inside_epoch:
            lightning_internals.start_resumed_epoch(trainer, is_start=not self.loaded["batches"])
            self._restore_weights()
        self._restore_weights = lambda: None
        states = own_states(trainer)
        self._first_own_states = {name: one.digests() for name, one in states.items()}
        if iterators := [name for one in states.values() for name in one.iterators]:
            reason = f"the position of {', '.join(iterators)} cannot be saved"
            print_once(f"the run may be different after an interruption: {reason}")
        if self.loaded.get("own"):
            for name in states.keys() & (saved := self.loaded["own"][trainer.global_rank]):
                states[name].restore(saved[name], pl_module.device)
        if is_inside_epoch and isinstance(pl_module, LitBase) and "losses" in self.loaded:  # from an older version
            pl_module.epoch_losses = self.loaded["losses"][trainer.global_rank]
        if is_inside_epoch and self.loaded.get("results"):
            lightning_internals.restore_epoch_results(trainer, self.loaded["results"][trainer.global_rank])

    def _batch_layout(self, trainer: Trainer) -> list[Any]:
        """Return the first number of processes, and the number of batches per epoch and per optimizer step."""
        return [trainer.start.processes, trainer.num_training_batches, self._accumulated]  # type: ignore[attr-defined]

    def _refuse_ended_schedule(self, trainer: Trainer) -> None:
        """Raise a CheckpointError if a schedule ends where the run was to end, and this command trains longer."""
        before, now = self.loaded.get("planned", trainer.global_step), trainer.estimated_stepping_batches
        for config in trainer.lr_scheduler_configs:
            end: Any = getattr(config.scheduler, "total_steps", None) or getattr(config.scheduler, "T_max", math.inf)
            batches = trainer.num_training_batches if config.interval == "epoch" else 1
            unit = -(-batches // trainer.accumulate_grad_batches)  # the number of steps
            if before <= end * unit < min(now, before + unit):
                ended = f"the {type(config.scheduler).__name__} of this run ends after {end * unit} steps"
                hint = "leave --max_epochs and --max_steps out, or train a new run with --resume never"
                raise CheckpointError(f"{ended}, but this command trains {now}: {hint}")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.watch.note_progress()
        if self.loaded:
            lightning_internals.set_logged_steps(trainer, self.loaded["logged"])
        if not self._first_own_states:
            self._restore_own_state(trainer, pl_module)
        if self.loaded:
            if trainer.is_global_zero and self.loaded.get("batch") not in (None, fingerprint_batch(batch)):
                problem = "the training data gave another batch than before the interruption"
                print(f"warning: {problem}: the result differs from that of an uninterrupted run", file=sys.stderr)
            self.loaded = {}
            return
        if batch_idx % trainer.accumulate_grad_batches:  # checkpoints do not contain accumulated gradients
            return
        validation_follows = self._validation_follows(trainer, batch_idx)
        if batch_idx == 0 or validation_follows:  # a validation may be long, so exchange now
            self._calls_between_exchanges = 0
        signum, save_is_due = self._agree_on_stop_and_save(trainer, validation_follows)
        # With photos, save the first step at once, because an unreadable photo could soon end the run.
        is_first = self._no_step_saved and trainer.global_step > 0 and data_of(trainer).photos is not None
        if save_is_due or signum or is_first:
            self.save(trainer, batch=batch)
        if signum:
            self._stop(trainer, signum)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.watch.note_progress()
        self._step_end_time = time.monotonic()
        self._next_is_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0 and not trainer.is_last_batch

    def _validation_follows(self, trainer: Trainer, batch_idx: int) -> bool:
        """Return True if a validation follows the optimizer step that begins with this batch."""
        epochs, every = trainer.check_val_every_n_epoch, trainer.val_check_batch or math.inf
        if not trainer.enable_validation or (trainer.current_epoch + 1) % (epochs or 1):
            return False
        batches = batch_idx if epochs else trainer.fit_loop.total_batch_idx  # before this step
        is_check = batches // every < (batches + trainer.accumulate_grad_batches) // every
        return is_check or (every == math.inf and trainer.is_last_batch)

    def on_validation_batch_start(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        if trainer.sanity_checking:
            return
        self.watch.note_progress()  # so that a validation longer than --timeout does not end the run
        self._validation_seconds = time.monotonic() - self._step_end_time
        if self.watch.stepping:
            signum, time_is_up = self._agree_on_stop_and_save(trainer)
            if signum and time_is_up:
                self._stop(trainer, signum)  # without a resume point: a run cannot resume inside a validation

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        lightning_internals.count_epoch_as_complete(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.watch.stepping:  # a limit was reached before the first step
            return
        self.save(trainer, finished=True)  # all callbacks have completed on_train_end
        self.watch.stepping = False
        self._calls_between_exchanges = 0
        if signum := self._agree_on_stop_and_save(trainer)[0]:
            self._stop(trainer, signum)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        is_fetching = self._next_is_step and all(one.own.is_fetching for one in repeatable_loaders(trainer))
        if isinstance(exception, Exception) and is_fetching and trainer.world_size == 1:
            self.save(trainer)
        self.watch.ending, self.watch.stepping = True, False

    def _agree_on_stop_and_save(self, trainer: Trainer, validation_follows: bool = False) -> tuple[int, bool]:
        """Return the number of the signal that stops the run (or 0), and whether to write a resume point now.

        After a signal, the second value is True if :attr:`SECONDS_TO_END_VALIDATION` seconds have passed since it came.
        All ranks get the same values. To save time, most calls with several processes return (0, False) at once.
        """
        now = time.monotonic()
        if self.watch.signum and self._signal_time is None:
            self._signal_time = now
        if self._signal_time is None:
            seconds, limit = self._save_seconds / self.TIME_SHARE, self.SECONDS_TO_END_VALIDATION
            if validation_follows and self._validation_seconds > limit:
                seconds = min(seconds, limit)
            is_time = now - self._last_save_time > seconds
        else:
            is_time = now - self._signal_time > self.SECONDS_TO_END_VALIDATION
        if trainer.world_size == 1:
            return self.watch.signum, is_time
        self._calls_since_exchange += 1
        if self._calls_since_exchange < self._calls_between_exchanges:
            return 0, False
        calls_per_second = self._calls_since_exchange / max(now - self._last_exchange_time, 1e-6)
        calls_to_next = min(1000, max(1, round(self.SECONDS_BETWEEN_EXCHANGES * calls_per_second)))
        self._calls_since_exchange, self._last_exchange_time = 0, now
        values = [self.watch.signum, int(is_time), calls_to_next]
        if not trainer.is_global_zero:  # from the other ranks, only the signals count
            values[1:] = 0, 0
        maxima = torch.tensor(values, device=trainer.strategy.root_device)
        torch.distributed.all_reduce(maxima, torch.distributed.ReduceOp.MAX)
        signum, is_time_on_rank_zero, self._calls_between_exchanges = maxima.tolist()
        if signum and self._signal_time is None:
            self._signal_time = now
        return signum, bool(is_time_on_rank_zero)

    def _stop(self, trainer: Any, signum: int) -> None:
        """Print how to resume, requeue the SLURM job if the signal is SIGUSR1, and raise Stopped."""
        if trainer.is_global_zero:
            hint = resume_hint(trainer.start.folder) or "no resume point yet"
            print(f"stopped by {signal.Signals(signum).name} after step {trainer.global_step}; {hint}", flush=True)
            requeue_slurm_job(signum)
        # A process that rank 0 launched must end with code 0: Watch on rank 0 treats other codes as a failure.
        raise Stopped(0 if is_child(trainer) else 128 + signum)


def other_optimizer_message(trainer: Trainer) -> str:
    """Return the error message for a resume point that was written with another optimizer."""
    name = type(trainer.optimizers[0]).__name__
    return f"the resume point is of another optimizer than {name}: do not change --optimizer, or use --resume never"


def _is_earlier(path: Any, trainer: Trainer) -> bool:
    """Return True if a checkpoint of an earlier step exists. One of this step or later is from before the resume."""
    exists = trainer.is_global_zero and Path(path).is_file()
    with contextlib.suppress(CheckpointError):
        exists = exists and read_any(Path(path), mmap=True).get("global_step", 0) < trainer.global_step
    return trainer.strategy.reduce_boolean_decision(exists, all=False)


def _replace_prefix(value: Any, old: str, new: str) -> Any:
    """Return a copy of nested dicts, with the prefix ``old`` of all strings and keys replaced by ``new``."""
    if isinstance(value, dict):
        return {_replace_prefix(key, old, new): _replace_prefix(item, old, new) for key, item in value.items()}
    return new + value.removeprefix(old) if isinstance(value, str) and value.startswith(old) else value
