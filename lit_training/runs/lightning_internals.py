"""This module contains all uses of Lightning's private names. These names have no public replacement.

Checked with lightning 2.6.6. tests/lit_training/runs/test_lightning_internals.py fails if Lightning changes a name.
"""

import contextlib
import time
from argparse import Action, ArgumentParser
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lightning.fabric.utilities.apply_func import apply_to_collection
from lightning.fabric.utilities.data import sized_len
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.loops.optimization.automatic import ClosureResult
from lightning.pytorch.plugins import Precision
from lightning.pytorch.profilers import PassThroughProfiler, XLAProfiler
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.strategies.launchers import subprocess_script
from lightning.pytorch.trainer import call
from lightning.pytorch.trainer.connectors.logger_connector.result import _Metadata, _ResultMetric, _Sync
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, enable_grad
from torch.nn import Module
from torch.optim import Optimizer

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
ALL_STEP_HOOKS = (
    *STEP_HOOKS[:6],
    *("optimizer_step", "optimizer_zero_grad", "backward", "configure_gradient_clipping", "clip_gradients"),
    *("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer"),
)
"""Hooks of callbacks, models and data modules in a training step."""
OPTIMIZERS = Optimizer.register_step_pre_hook.__globals__
GLOBAL_HOOKS = [value for name, value in OPTIMIZERS.items() if name.endswith("_hooks")]  # of all optimizers
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


def overrides_step_hook(own: Any) -> bool:
    """Return True if a callback, a model, a data module or None does something of its own in each training step."""
    bases = [Callback, LightningModule, LightningDataModule]
    methods = [(name, getattr(own, name, None)) for name in ALL_STEP_HOOKS]
    methods = [(name, getattr(method, "__func__", method)) for name, method in methods if method is not None]
    return any(method not in [getattr(base, name, None) for base in bases] for name, method in methods)


class PlainSteps(Callback):
    """Run *plain* training steps between those that Lightning runs: the loss, its gradients, the update.

    The weights, the counters and the checkpoints are the same, but a step takes 0.4 ms less. A step is not plain if
    Lightning has more to do: in the first two steps and the last one of an epoch or a process, and before a validation.
    Our callbacks act before a plain step only if it is logged. No step is plain if a hook of the user is called in each
    step, with several processes, with gradient accumulation, or in half precision.
    """

    SECONDS = 1.0  # after this time Lightning runs a step, so that resume points are not late

    def __init__(self, own: list[Any], start: Callable[..., None], is_stopped: Callable[[], Any]) -> None:
        self.own = own  # callbacks of which plain steps need only ``start`` and what they do after a step
        self.start, self.is_stopped = start, is_stopped
        self.starts = [one.on_train_batch_start for one in own if one.on_train_batch_start is not None]
        self.ends = [one.on_train_batch_end for one in own if one.on_train_batch_end is not None]
        self.epoch, self.is_second, self.can_run = -1, True, False  # the epoch in which Lightning has run a step

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        loop = trainer.fit_loop.epoch_loop
        loop.advance = partial(self._advance, trainer, loop.advance)  # type: ignore[method-assign]

    def _advance(self, trainer: Trainer, advance: Callable[[Any], None], fetcher: Any) -> None:
        """Run plain steps, if possible, and then a step of Lightning."""
        if self.epoch != trainer.current_epoch or not trainer.fit_loop.epoch_loop.batch_progress.current.ready:
            model, callbacks = trainer.lightning_module, trainer.callbacks  # type: ignore[attr-defined]
            others = [model, trainer.datamodule, *(one for one in callbacks if one not in self.own)]  # type: ignore[attr-defined]
            is_usual = type(trainer.strategy) is SingleDeviceStrategy and type(trainer.precision_plugin) is Precision
            is_usual &= isinstance(trainer.profiler, NullProfiler)  # type: ignore[attr-defined]
            is_usual &= self in callbacks  # finders train without callbacks
            # a loader without a length could end after a plain step
            is_usual &= all(sized_len(one) is not None for one in trainer.fit_loop._combined_loader.flattened)  # type: ignore[union-attr]
            is_usual &= not is_param_in_hook_signature(model.training_step, "dataloader_iter", explicit=True)
            self.can_run = is_usual and model.automatic_optimization and not any(map(overrides_step_hook, others))
            self.epoch, self.is_second = trainer.current_epoch, True
        elif self.is_second:
            self.is_second = False  # before this step, the callback ResumePoint saves the first one
        elif self.can_run and not trainer.should_stop:
            self._run(trainer, fetcher)
        if not trainer.fit_loop.epoch_loop.done:  # a plain step can set should_stop
            advance(fetcher)

    def _run(self, trainer: Trainer, fetcher: Any) -> None:
        loop, model = trainer.fit_loop.epoch_loop, trainer.lightning_module
        progress, updates = loop.batch_progress, loop.automatic_optimization.optim_progress.optimizer
        done, step, logs = progress.current.ready, trainer.global_step, trainer._logger_connector
        every, val_every = trainer.log_every_n_steps, trainer.val_check_batch or 1  # type: ignore[attr-defined]
        to_val = val_every - (done if trainer.check_val_every_n_epoch else progress.total.ready) % val_every
        count = min(to_val, trainer.num_training_batches - done, *[trainer.max_steps - step] * (trainer.max_steps > 0))
        has_schedule = any(config.interval == "step" for config in trainer.lr_scheduler_configs)
        update = loop.update_lr_schedulers if has_schedule else lambda *_: None
        has_index = is_param_in_hook_signature(model.training_step, "batch_idx", min_args=2)
        device = trainer.strategy.root_device
        arguments: tuple[Any, ...] = ()
        outputs: dict[str, Any] = {}

        @enable_grad()
        def compute_gradients() -> Any:
            model.__dict__["_current_fx_name"] = "training_step"  # as call._call_lightning_module_hook does it
            result: Any = model.training_step(*arguments)
            model.__dict__["_current_fx_name"] = None
            loss, parts = result, trainer.accumulate_grad_batches  # the step may have changed it
            if parts != 1 or not isinstance(result, Tensor):
                loss = ClosureResult.from_training_step_output(result, parts).closure_loss
            if getattr(optimizer.zero_grad, "__func__", None) is Optimizer.zero_grad:
                for parameter in [one for group in optimizer.param_groups for one in group["params"]]:
                    parameter.grad = None  # zero_grad() does the same in 15 us
            else:
                optimizer.zero_grad()
            updates.zero_grad.increment_by(1)
            if loss is not None:
                loss.backward()
                outputs["loss"] = loss.detach().clone()
            if trainer.gradient_clip_val is not None:
                model.clip_gradients(optimizer, trainer.gradient_clip_val, trainer.gradient_clip_algorithm)
            return outputs.get("loss")

        logs._first_loop_iter, loggers = False, trainer.loggers
        optimizer = trainer.optimizers[0]
        quick_step, hooks = bare_step(optimizer)
        unsaved = [SimpleNamespace(log_metrics=one.log_metrics, save=lambda: None) for one in loggers]
        end = time.monotonic() + self.SECONDS
        while (count := count - 1) > 0 and time.monotonic() < end and not self.is_stopped():
            is_changed = trainer.accumulate_grad_batches != 1 or trainer.optimizers[0] is not optimizer
            if is_changed or trainer.should_stop:  # by a step; until --min_epochs, Lightning then logs each step
                break
            is_logged = every > 0 and (loop._batches_that_stepped + 1) % every == 0
            trainer.is_plain = not is_logged  # type: ignore[attr-defined]  # no code of the user runs before the step
            batch = next(fetcher)[0]
            is_flat = type(batch) in (tuple, list) and all(type(x) is Tensor and x.device == device for x in batch)
            batch = type(batch)(batch) if is_flat else trainer.strategy.batch_to_device(batch)  # steps may change lists
            progress.increment_ready()
            loop._results.batch, loop._results.batch_size = batch, None
            arguments = (batch, loop.batch_idx)[: 1 + has_index]
            outputs.clear()
            if batch is not None:  # Lightning skips such a batch
                for start in self.starts if is_logged else [self.start]:
                    start(trainer, model, batch, loop.batch_idx)
                progress.increment_started()
                (optimizer.step if any(hooks) else quick_step)(closure=compute_gradients)
                updates.step.increment_by(1)
            progress.increment_processed()
            update("step", False)
            for on_end in self.ends:
                on_end(trainer, model, outputs, batch, loop.batch_idx)
            progress.increment_completed()
            if is_logged or trainer.should_stop:
                trainer.loggers = unsaved  # type: ignore[assignment]  # saving 20 times per second takes time
                try:
                    logs.on_batch_end()
                    logs.update_train_step_metrics()
                finally:
                    trainer.loggers = loggers  # after an error, Lightning saves and closes them
            if trainer.should_stop and loop.done:
                break  # Lightning then does what is left
            update("step", True)
            loop._batches_that_stepped += 1
        trainer.is_plain = False  # type: ignore[attr-defined]
        for logger in loggers:
            logger.save()


def bare_step(optimizer: Any) -> tuple[Callable[..., Any], list[Any]]:
    """Return ``optimizer.step`` without profiling (30 us) and hooks, and the dictionaries that have its hooks."""
    own, step = vars(optimizer).get("step"), type(optimizer).step
    names = getattr(getattr(own, "__code__", None), "co_names", ())  # a schedule's wrapper notes the calls
    is_usual = own is None or ("_opt_called" in names and own.__wrapped__ is step)
    is_usual &= getattr(step, "__globals__", None) is OPTIMIZERS
    hooks = [*GLOBAL_HOOKS, *(value for name, value in vars(optimizer).items() if name.endswith("_hooks"))]
    return partial(step.__wrapped__, optimizer) if is_usual else optimizer.step, hooks


def compile_in_place(module: Module, call: Callable[..., Any], **options: Any) -> None:
    """Compile ``module``. Its calls become ``call(compiled, eager, *args, **kwargs)``, so that they can be changed."""
    module.compile(**options)
    module._compiled_call_impl = partial(call, module._compiled_call_impl, module._call_impl)


def compile_error() -> type[Exception]:
    """Return the class of the errors of torch's compiler. Importing it is slow."""
    from torch._dynamo.exc import TorchDynamoException

    return TorchDynamoException


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


def start_resumed_epoch(trainer: Trainer, is_start: bool) -> None:
    """Call the hooks ``on_train_epoch_start``, which keep a backbone frozen. After a resume Lightning skips them.

    What they log is in the logs of the killed run, but TensorBoard has removed it if this is the start of the epoch.
    """
    loggers, removed = trainer.loggers, [one for one in trainer.loggers if isinstance(one, TensorBoardLogger)]
    trainer.loggers = removed[: len(removed) * is_start] or [DummyLogger()]  # type: ignore[assignment]
    call._call_callback_hooks(trainer, "on_train_epoch_start")
    call._call_lightning_module_hook(trainer, "on_train_epoch_start")
    trainer.loggers = loggers


def stop_process_observer() -> None:
    """Turn off a thread of Lightning that kills this process without an error message if another process fails."""
    subprocess_script._launch_process_observer = lambda child_processes: None


def actions_of(parser: ArgumentParser) -> list[Action]:
    """Return the arguments of a jsonargparse parser. The caller may change their ``option_strings``."""
    return parser._actions
