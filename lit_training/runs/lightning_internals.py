"""Private names of Lightning for which there is no public one. All other code uses public names only.

Checked with lightning 2.6.6. tests/lit_training/runs/test_lightning_internals.py fails if one changes.
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
    """A Trainer that chooses a fit's checkpoint after its processes are connected; ``fit`` needs it before."""

    def choose_checkpoint(self) -> Path | None:
        """Return the checkpoint to resume from, or None. Called on every rank; a subclass overrides it."""
        return None

    def _run(self, model: Any, ckpt_path: Any = None, weights_only: bool | None = None) -> Any:
        if self.state.fn == TrainerFn.FITTING:
            self.strategy.setup_environment()  # connects the ranks; the Trainer's own call then does nothing
            if (chosen := self.choose_checkpoint()) is not None:
                self.ckpt_path = ckpt_path = chosen  # a model's setup() then loads no pretrained weights
        return super()._run(model, ckpt_path, weights_only)


class NullProfiler(PassThroughProfiler):
    """Use one empty context for the about 30 profiling contexts that Lightning opens per step."""

    nothing: contextlib.AbstractContextManager = contextlib.nullcontext()

    def profile(self, action_name: str) -> Any:
        return self.nothing


def drop_empty_hooks(callbacks: list[Callback]) -> None:
    """Remove the empty hooks of a step from these callbacks. Lightning would call about 70 of them, 0.2 ms per step."""
    for callback in callbacks:
        for hook in STEP_HOOKS:
            if getattr(type(callback), hook) is getattr(Callback, hook):
                setattr(callback, hook, None)  # Lightning skips a hook that is not callable


def logged_steps(trainer: Trainer) -> int:
    """Return the step number that loggers get. In a resumed run Lightning counts one too many."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def set_logged_steps(trainer: Trainer, steps: int) -> None:
    trainer.fit_loop.epoch_loop._batches_that_stepped = steps


def restore_loaders(trainer: Trainer) -> None:
    """Restore the state of the loaders, which Lightning builds too early for a schedule that needs the run's length."""
    trainer.fit_loop._load_combined_loader_states()


def forget_loaders(trainer: Trainer) -> None:
    """Let Lightning build the fit's loaders again, after their data was replaced."""
    trainer.fit_loop._combined_loader = None


def count_epoch_as_complete(trainer: Trainer) -> None:
    """Mark a resumed epoch as complete: Lightning would skip its ReduceLROnPlateau update."""
    trainer.fit_loop._restarting = False


def start_resumed_epoch(trainer: Trainer, model: LightningModule) -> None:
    """Call the hooks ``on_train_epoch_start``, which Lightning skips in a resumed epoch: a frozen backbone would be
    trained. The loggers are removed meanwhile, because they already have what the hooks log."""
    loggers, trainer.loggers = trainer.loggers, []
    call._call_callback_hooks(trainer, "on_train_epoch_start")
    call._call_lightning_module_hook(trainer, "on_train_epoch_start")
    trainer.loggers = loggers


def stop_process_observer() -> None:
    """Turn off Lightning's observer. It kills this process when another one dies, so exit code and message get lost."""
    subprocess_script._launch_process_observer = lambda child_processes: None


def actions_of(parser: ArgumentParser) -> list[Action]:
    """Return the arguments of a jsonargparse parser. Their ``option_strings`` may be changed."""
    return parser._actions
