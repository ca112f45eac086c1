"""Private names of Lightning that have no public way; all others of this project are public.

Each was read on lightning 2.6.6. tests/lit_training/runs/test_lightning_internals.py fails when one changes.
"""

import contextlib
from argparse import Action, ArgumentParser
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies.launchers import subprocess_script
from lightning.pytorch.trainer import call
from lightning.pytorch.trainer.states import TrainerFn

STEP_HOOKS = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
    "on_validation_batch_start",
    "on_validation_batch_end",
)


class ConnectedTrainer(Trainer):
    """A Trainer that chooses a fit's checkpoint once its processes can talk; the public ``fit`` asks before."""

    def choose_checkpoint(self) -> Path | None:
        """What to go on from; called on every rank. A subclass overrides it."""
        return None

    def _run(self, model: Any, ckpt_path: Any = None, weights_only: bool | None = None) -> Any:
        if self.state.fn == TrainerFn.FITTING:
            self.strategy.setup_environment()  # connects the ranks; the Trainer's own call then finds it done
            if (chosen := self.choose_checkpoint()) is not None:
                self.ckpt_path = ckpt_path = chosen  # setup() of a model reads no pretrained weights then
        return super()._run(model, ckpt_path, weights_only)


class NullProfiler(PassThroughProfiler):
    """Lightning opens some 30 profiling contexts a step; this makes them all the same empty one."""

    nothing: contextlib.AbstractContextManager = contextlib.nullcontext()

    def profile(self, action_name: str) -> Any:
        return self.nothing


def drop_empty_hooks(callbacks: list[Callback]) -> None:
    """Take the empty hooks of a step off these callbacks: Lightning would call some 70 of them, 0.2 ms a step."""
    for callback in callbacks:
        for hook in STEP_HOOKS:
            if getattr(type(callback), hook) is getattr(Callback, hook):
                setattr(callback, hook, None)  # Lightning calls what is callable


def logged_steps(trainer: Trainer) -> int:
    """The number of steps that Lightning gives to loggers; a resumed run would count one too many."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def set_logged_steps(trainer: Trainer, steps: int) -> None:
    trainer.fit_loop.epoch_loop._batches_that_stepped = steps


def restore_loaders(trainer: Trainer) -> None:
    """Give the loaders their saved state again: a schedule that asks for the run's length makes them too early."""
    trainer.fit_loop._load_combined_loader_states()


def forget_loaders(trainer: Trainer) -> None:
    """Have the fit's loaders made again, after their data was replaced."""
    trainer.fit_loop._combined_loader = None


def count_epoch_as_whole(trainer: Trainer) -> None:
    """Else Lightning leaves out ReduceLROnPlateau's update in the epoch that was resumed."""
    trainer.fit_loop._restarting = False


def start_resumed_epoch(trainer: Trainer, model: LightningModule) -> None:
    """Call the hooks ``on_train_epoch_start``: Lightning leaves them out in a resumed epoch, and a frozen backbone
    would be trained. What they log is logged already."""
    loggers, trainer.loggers = trainer.loggers, []
    call._call_callback_hooks(trainer, "on_train_epoch_start")
    call._call_lightning_module_hook(trainer, "on_train_epoch_start")
    trainer.loggers = loggers


def stop_process_observer() -> None:
    """Lightning's observer kills this process when another one dies; its exit code and last words would be lost."""
    subprocess_script._launch_process_observer = lambda child_processes: None


def actions_of(parser: ArgumentParser) -> list[Action]:
    """The arguments that a parser of jsonargparse has; their ``option_strings`` may be changed."""
    return parser._actions
