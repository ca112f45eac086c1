"""This module contains all uses of Lightning's private names. These names have no public replacement.

Checked with lightning 2.6.6. tests/lit_training/runs/test_lightning_internals.py fails if Lightning changes a name.
"""

import contextlib
from argparse import Action, ArgumentParser
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.apply_func import apply_to_collection
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.loops.optimization.automatic import ClosureResult
from lightning.pytorch.profilers import PassThroughProfiler, XLAProfiler
from lightning.pytorch.strategies.launchers import subprocess_script
from lightning.pytorch.trainer import call
from lightning.pytorch.trainer.connectors.logger_connector.result import _Metadata, _ResultMetric, _Sync
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor
from torch.optim import Optimizer

from lit_models import LitBase

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
TRAINING_HOOKS = STEP_HOOKS[:6]
MODEL_HOOKS = (*TRAINING_HOOKS, "optimizer_step", "optimizer_zero_grad", "backward", "configure_gradient_clipping")
TRANSFER_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
XLAProfiler.__del__ = lambda profiler: None  # type: ignore[method-assign]  # of a half-made one it prints a traceback


class ConnectedTrainer(Trainer):
    """A Trainer that connects its processes, and then chooses the checkpoint to resume from."""

    def choose_checkpoint(self) -> Path | None:
        """Return the checkpoint to resume from, or None. Subclasses override this method. All ranks call it."""
        return None

    def _run(self, model: Any, ckpt_path: Any = None, weights_only: bool | None = None) -> Any:
        if self.state.fn == TrainerFn.FITTING:
            self.strategy.setup_environment()  # connects the ranks; the Trainer's own call then does nothing
            if (checkpoint := self.choose_checkpoint()) is not None:
                self.ckpt_path = ckpt_path = checkpoint  # a model's setup() can read ckpt_path
                self.precision_plugin.convert_module(model)  # Lightning does it after loading: 64-bit weights are cut
        seed_everything(workers=True, verbose=False)  # setup() then draws the same split in each resume and evaluation
        return super()._run(model, ckpt_path, weights_only)


class NullProfiler(PassThroughProfiler):
    """A profiler that does nothing. It saves time, because Lightning opens about 30 profiling contexts per step."""

    empty_context: contextlib.AbstractContextManager = contextlib.nullcontext()

    def profile(self, action_name: str) -> Any:
        return self.empty_context


def drop_empty_hooks(callbacks: list[Callback]) -> None:
    """Set the step hooks that a callback does not override to None. Lightning skips them: 0.2 ms less per step."""
    for callback in callbacks:
        for hook in STEP_HOOKS:
            if getattr(type(callback), hook) is getattr(Callback, hook):
                setattr(callback, hook, None)  # Lightning skips a hook that is not callable


def overridden_hooks(own: Any, names: Sequence[str]) -> list[str]:
    """Return those hooks of a model, a data module or a callback that do something."""
    bases = [base for base in (LitBase, LightningModule, LightningDataModule, Callback) if isinstance(own, base)]
    methods = {name: getattr(own, name, None) for name in names}
    own_methods = {name: getattr(method, "__func__", method) for name, method in methods.items() if callable(method)}
    return [name for name, method in own_methods.items() if method not in [getattr(base, name, None) for base in bases]]


def run_plain_steps(
    trainer: Trainer, fetcher: Any, callbacks: list[Any], count: int, is_due: Callable[[], Any]
) -> None:
    """Run up to ``count`` training steps as Lightning does, but without its calls of hooks, until ``is_due()``.

    Call the hooks of ``callbacks`` only. The step of a model without overridden hooks has the same result.
    """
    model, optimizer, loop = trainer.lightning_module, trainer.optimizers[0], trainer.fit_loop.epoch_loop
    progress, results = loop.batch_progress, loop._results
    updates = loop.automatic_optimization.optim_progress.optimizer
    starts, ends = ([getattr(one, f"on_train_batch_{when}") for one in callbacks] for when in ("start", "end"))
    starts, ends = [hook for hook in starts if hook is not None], [hook for hook in ends if hook is not None]
    has_index = is_param_in_hook_signature(model.training_step, "batch_idx", min_args=2)
    clipping: Any = trainer.gradient_clip_val, trainer.gradient_clip_algorithm
    has_schedule = any(config.interval == "step" for config in trainer.lr_scheduler_configs)
    clears_gradients = type(optimizer).zero_grad is Optimizer.zero_grad  # directly, it takes 10 us less
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    own_transfer = any(overridden_hooks(one, TRANSFER_HOOKS) for one in (model, trainer.datamodule) if one is not None)
    stays = trainer.strategy.root_device.type == "cpu" and not own_transfer
    loss: Tensor | None = None
    arguments: tuple[Any, ...] = ()

    @torch.enable_grad()
    def compute_gradients() -> Tensor | None:
        nonlocal loss
        output = model.training_step(*arguments)
        loss = output if isinstance(output, Tensor) else ClosureResult.from_training_step_output(output).closure_loss
        updates.zero_grad.increment_ready()
        updates.zero_grad.increment_started()
        if clears_gradients:
            for weight in weights:
                weight.grad = None
        else:
            optimizer.zero_grad()
        updates.zero_grad.increment_completed()
        if loss is not None:
            loss.backward()
            loss = loss.detach()
        model.configure_gradient_clipping(optimizer, *clipping)
        return loss

    trainer._logger_connector._first_loop_iter = False
    model._current_fx_name = "training_step"
    while count > 0 and not is_due():
        count -= 1
        batch = next(fetcher)[0]
        if not (stays and isinstance(batch, tuple | list) and all(type(one) is Tensor for one in batch)):
            batch = model._on_before_batch_transfer(batch, dataloader_idx=0)
            batch = trainer.strategy.batch_to_device(batch, dataloader_idx=0)
        progress.increment_ready()
        index = progress.current.ready - 1
        results.batch, results.batch_size, results.dataloader_idx = batch, None, None
        for start in starts:
            start(trainer, model, batch, index)
        progress.increment_started()
        arguments = (batch, index) if has_index else (batch,)
        updates.step.increment_ready()
        optimizer.step(compute_gradients)
        updates.step.increment_completed()
        progress.increment_processed()
        if has_schedule:
            loop.update_lr_schedulers("step", update_plateau_schedulers=False)
        for end in ends:
            end(trainer, model, {} if loss is None else {"loss": loss}, batch, index)
        progress.increment_completed()
        if has_schedule:
            loop.update_lr_schedulers("step", update_plateau_schedulers=True)
        loop._batches_that_stepped += 1
    model._current_fx_name = None


def logged_steps(trainer: Trainer) -> int:
    """Return the step number that Lightning passes to loggers. After a resume it is one too large."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def set_logged_steps(trainer: Trainer, steps: int) -> None:
    trainer.fit_loop.epoch_loop._batches_that_stepped = steps


def epoch_results(trainer: Trainer) -> dict[str, Any]:
    """Return what ``self.log`` has collected in this epoch, as plain values: Lightning does not save it."""

    def plain(part: Any) -> dict[str, Any]:
        kinds = (type(None), bool, int, float, str, Tensor)
        return {name: value for name, value in vars(part).items() if type(value) in kinds}

    connector, collected = trainer._logger_connector, {}
    for key, result in trainer.fit_loop.epoch_loop._results.items():
        if not result.has_reset:
            meta = plain(result.meta) | {"reduce_fx": result.meta.reduce_fx.__name__}
            sync, values = plain(result.meta.sync), plain(result)
            collected[key] = {"meta": meta, "sync": sync, "values": values}
    return {"first": connector._first_loop_iter, "fx": connector._current_fx, "collected": collected}


def restore_epoch_results(trainer: Trainer, saved: dict[str, Any]) -> None:
    """Restore what :func:`epoch_results` returned."""
    trainer._logger_connector._first_loop_iter, trainer._logger_connector._current_fx = saved["first"], saved["fx"]
    model, device = trainer.lightning_module, trainer.strategy.root_device
    results = trainer.fit_loop.epoch_loop._results
    results.clear()
    for key, one in saved["collected"].items():
        meta = _Metadata(**one["meta"])
        meta.sync = _Sync(fn=trainer.strategy.reduce, **one["sync"])
        results[key] = result = _ResultMetric(meta, is_tensor="value" in one["values"])
        vars(result).update(apply_to_collection(one["values"], Tensor, Tensor.to, device))
        if meta.metric_attribute is not None:
            result.value = model.get_submodule(meta.metric_attribute)


def restore_loaders(trainer: Trainer) -> None:
    """Load the data loaders' state from the checkpoint. Lightning skips this if it has already created the loaders."""
    trainer.fit_loop._load_combined_loader_states()


def last_reload_epoch(trainer: Trainer) -> int:
    """Return the epoch in which Lightning called ``train_dataloader`` last."""
    return int(max(trainer.fit_loop._last_train_dl_reload_epoch, 0))  # -inf before the first call


def set_last_reload_epoch(trainer: Trainer, epoch: int) -> None:
    trainer.fit_loop._last_train_dl_reload_epoch = epoch


def forget_loaders(trainer: Trainer) -> None:
    """Make Lightning create the training data loaders again. Call this after replacing the training data."""
    trainer.fit_loop._combined_loader = None


def count_epoch_as_complete(trainer: Trainer) -> None:
    """Mark a resumed epoch as complete. Otherwise Lightning skips the ReduceLROnPlateau update of this epoch.

    With ``max_steps``, Lightning would go on in a complete epoch after a resume.
    """
    trainer.fit_loop._restarting = trainer.fit_loop.epoch_loop._restarting = False


def start_resumed_epoch(trainer: Trainer) -> None:
    """Call the hooks ``on_train_epoch_start``, which keep a backbone frozen. After a resume Lightning skips them."""
    loggers, trainer.loggers = trainer.loggers, [DummyLogger()]  # the hooks logged the same values before the resume
    call._call_callback_hooks(trainer, "on_train_epoch_start")
    call._call_lightning_module_hook(trainer, "on_train_epoch_start")
    trainer.loggers = loggers


def stop_process_observer() -> None:
    """Turn off a thread of Lightning that kills this process without an error message if another process fails."""
    subprocess_script._launch_process_observer = lambda child_processes: None


def actions_of(parser: ArgumentParser) -> list[Action]:
    """Return the arguments of a jsonargparse parser. The caller may change their ``option_strings``."""
    return parser._actions
