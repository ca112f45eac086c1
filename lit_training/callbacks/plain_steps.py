"""Run the training steps in which nothing else happens without the work that Lightning does around each step."""

import time
from functools import partial
from math import inf
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.plugins import Precision
from lightning.pytorch.strategies import SingleDeviceStrategy

from lit_training.callbacks.best import BestCheckpoint
from lit_training.callbacks.console import EpochLines
from lit_training.callbacks.finite import FiniteGuard
from lit_training.callbacks.resume import ResumePoint
from lit_training.callbacks.throughput import Throughput
from lit_training.runs.lightning_internals import (
    MODEL_HOOKS,
    TRAINING_HOOKS,
    NullProfiler,
    logged_steps,
    overridden_hooks,
    run_plain_steps,
)
from lit_training.runs.loaders import StepSeed
from lit_training.runs.processes import Watch

SECONDS = 0.1  # after this time Lightning runs a step, so that resume points and the progress bar are not late
NEEDED = (StepSeed, FiniteGuard, Throughput, EpochLines)  # callbacks whose hooks are called in plain steps too
NOT_NEEDED = (ResumePoint, BestCheckpoint, LearningRateMonitor)  # their hooks would do nothing there


class PlainSteps(Callback):
    """Run plain steps between those that Lightning runs. A small network then trains about twice as fast.

    A plain step computes the loss, its gradients and the update, and counts as a step of Lightning: the results, the
    checkpoints and the counters are the same. A step is not plain if it is the first or the last of an epoch or of
    this process, if something is logged, checked or saved in it, or if a validation follows. No step is plain if a
    hook of the user is called in each step, or with several processes, gradient accumulation, or half precision.
    """

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.epoch: int | None = None  # in which Lightning has run a step
        self.callbacks: list[Any] | None = None  # those that count or note each step; None: no step is plain

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        loop = trainer.fit_loop.epoch_loop
        if stage == "fit" and not isinstance(loop.advance, partial):
            loop.advance = partial(self._advance, trainer, loop.advance)  # type: ignore[method-assign]

    def _advance(self, trainer: Trainer, advance: Any, fetcher: Any) -> None:
        """Run plain steps, if any can be run now, and then a step of Lightning."""
        if self.epoch != trainer.current_epoch or not trainer.fit_loop.epoch_loop.batch_progress.current.ready:
            self.epoch, self.callbacks = trainer.current_epoch, _callbacks_to_call(trainer)
        elif self.callbacks is not None:
            end, count = time.monotonic() + SECONDS, _count_plain_steps(trainer)
            run_plain_steps(
                trainer, fetcher, self.callbacks, count, lambda: self.watch.signum or time.monotonic() > end
            )
        advance(fetcher)


def _callbacks_to_call(trainer: Trainer) -> list[Any] | None:
    """Return the callbacks whose hooks are needed in plain steps, or None if no step of this epoch can be plain."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    known = [one for one in callbacks if type(one) in (*NEEDED, *NOT_NEEDED)]
    is_usual = (
        type(trainer.strategy) is SingleDeviceStrategy
        and type(trainer.precision_plugin) is Precision
        and isinstance(trainer.profiler, NullProfiler)
        and trainer.lightning_module.automatic_optimization
        and not overridden_hooks(trainer.lightning_module, MODEL_HOOKS)
        and not any(overridden_hooks(one, TRAINING_HOOKS) for one in callbacks if one not in known)
    )
    return [one for one in known if type(one) in NEEDED] if is_usual else None


def _count_plain_steps(trainer: Trainer) -> int:
    """Return the number of steps before the next one that Lightning must run."""
    loop, every = trainer.fit_loop.epoch_loop, trainer.log_every_n_steps or 50  # type: ignore[attr-defined]
    done, done_in_epoch, steps = loop.batch_progress.total.ready, loop.batch_progress.current.ready, trainer.global_step
    validated = done_in_epoch if trainer.check_val_every_n_epoch else done
    cycles = [(every, done), (every, steps), (every, logged_steps(trainer)), (trainer.val_check_batch or 1, validated)]
    ends = [trainer.num_training_batches - done_in_epoch, trainer.max_steps - steps if trainer.max_steps >= 0 else inf]
    counts = [cycle - count % cycle for cycle, count in cycles] + ends
    if trainer.should_stop or trainer.accumulate_grad_batches > 1 or trainer.num_training_batches == inf:
        return 0
    return int(min(counts)) - 1
