"""The private names of libraries that this project uses still exist and do what it needs.

A test that fails after an update of a library shows what changed, or which workaround is no longer needed.
"""

import functools
import inspect
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.strategies.launchers import subprocess_script
from lightning.pytorch.trainer import call
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data import DataLoader

from lit_training.runs import lightning_internals
from lit_training.runs.lightning_internals import (
    ALL_STEP_HOOKS,
    STEP_HOOKS,
    ConnectedTrainer,
    NullProfiler,
    actions_of,
    bare_step,
    compile_error,
    compile_in_place,
    count_epoch_as_complete,
    drop_empty_hooks,
    epoch_results,
    forget_loaders,
    last_reload_epoch,
    logged_steps,
    overrides_step_hook,
    restore_epoch_results,
    restore_loaders,
    set_last_reload_epoch,
    set_logged_steps,
    start_resumed_epoch,
    stop_process_observer,
)
from tests.support.commands import ROOT
from tests.support.fits import SHAPES, assert_same_end, fit, fit_run, parse
from tests.support.private_names import private_names, private_names_in

HOME = "lit_training/runs/lightning_internals.py"
MAX_PRIVATE_NAMES = 20
"""Maximum number of private names of libraries in this project."""

BareTrainer = Callable[..., Trainer]
QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Steps(Logger):
    """Keeps the names and steps of logged metrics."""

    name, version = "steps", 0

    def __init__(self) -> None:
        super().__init__()
        self.logged: list[tuple[str, int | None]] = []

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.logged += [(name, step) for name in metrics if name != "epoch"]


class Model(LightningModule):
    """Six steps per epoch; logs its loss at each step, and how many epochs have started."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(2, 1)
        self.starts = 0
        self.resumed_from: Any = None

    def setup(self, stage: str) -> None:
        self.resumed_from = self.trainer.ckpt_path

    def on_train_epoch_start(self) -> None:
        self.starts += 1
        self.log("starts", float(self.starts))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = self.net(batch).square().mean()
        self.log("loss", loss, on_step=True, on_epoch=False)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None: ...

    def train_dataloader(self) -> DataLoader:
        return DataLoader(torch.ones(6, 2))  # type: ignore[arg-type]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


class At(Callback):
    """Calls ``action`` before the batch with this number."""

    def __init__(self, batch: int, action: Callable[[Trainer, Any], None]) -> None:
        self.batch, self.action = batch, action

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.batch:
            self.action(trainer, pl_module)


# --- Trainer._run ---------------------------------------------------------------------------------------------------


def test_run_has_the_arguments_that_we_override() -> None:
    assert list(inspect.signature(Trainer._run).parameters) == ["self", "model", "ckpt_path", "weights_only"]


def test_fit_calls_run_and_resumes_from_the_chosen_checkpoint(tmp_path: Path, bare: BareTrainer) -> None:
    point = tmp_path / "point.ckpt"
    first = bare(max_steps=4)
    first.fit(Model())
    first.save_checkpoint(point)
    asked: list[bool] = []

    class Chosen(ConnectedTrainer):
        def choose_checkpoint(self) -> Path:
            asked.append(self.strategy.root_device is not None)
            return point

    model = Model()
    trainer = Chosen(max_steps=5, **QUIET)
    trainer.fit(model, weights_only=True)
    assert asked == [True]  # once
    assert model.resumed_from == point  # set before setup(), which then reads no pretrained weights
    assert trainer.global_step == 5
    trainer.validate(model, DataLoader(torch.ones(2, 2)), verbose=False)  # type: ignore[arg-type]
    assert asked == [True]  # only a fit chooses a checkpoint


# --- the loops ------------------------------------------------------------------------------------------------------


def test_the_step_number_of_loggers_can_be_read_and_set(bare: BareTrainer) -> None:
    logger, seen = Steps(), []

    def read_and_set(trainer: Trainer, model: Any) -> None:
        seen.append(logged_steps(trainer))
        set_logged_steps(trainer, 100)

    trainer = bare(max_epochs=1, logger=logger, log_every_n_steps=1, callbacks=[At(3, read_and_set)])
    trainer.fit(Model())
    assert seen == [3]
    assert [step for name, step in logger.logged if name == "loss"] == [0, 1, 2, 100, 101, 102]
    assert logged_steps(trainer) == 103


class Stateful(DataLoader):
    """A loader with a state."""

    state = 0

    def state_dict(self) -> dict[str, Any]:
        return {"number": 7}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.state = state_dict["number"]


class NeedsRunLength(Model):
    """Needs the number of steps when the optimizer is created, as OneCycleLR does."""

    def train_dataloader(self) -> DataLoader:
        self.loader = Stateful(torch.ones(6, 2))  # type: ignore[arg-type]
        return self.loader

    def configure_optimizers(self) -> torch.optim.Optimizer:
        assert self.trainer.estimated_stepping_batches > 0
        return super().configure_optimizers()


def test_what_was_logged_in_an_epoch_can_be_read_and_restored(bare: BareTrainer) -> None:
    saved: list[Any] = []

    class Averages(Model):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            self.log("index", float(batch_idx), on_step=False, on_epoch=True, reduce_fx="sum", sync_dist=True)
            return super().training_step(batch, batch_idx)

    first = bare(max_epochs=1, callbacks=[At(4, lambda trainer, _: saved.append(epoch_results(trainer)))])
    first.fit(Averages())
    assert first.callback_metrics["index"] == sum(range(6))
    second = bare(max_epochs=1, callbacks=[At(0, lambda trainer, _: restore_epoch_results(trainer, saved[0]))])
    second.fit(Averages())
    assert second.callback_metrics["index"] == sum(range(4)) + sum(range(6))


def test_the_epoch_of_the_last_reload_can_be_read_and_set(bare: BareTrainer) -> None:
    epochs = []

    def read_and_set(trainer: Trainer, model: Any) -> None:
        epochs.append(last_reload_epoch(trainer))
        if trainer.current_epoch == 1:  # as if the loader had been made in epoch 1
            set_last_reload_epoch(trainer, 1)

    bare(max_epochs=5, reload_dataloaders_every_n_epochs=2, callbacks=[At(0, read_and_set)]).fit(Model())
    assert epochs == [0, 0, 1, 3, 3]


@pytest.mark.parametrize(("restores", "state"), [(True, 7), (False, 0)])
def test_loaders_that_were_built_too_early_get_their_state(
    restores: bool, state: int, tmp_path: Path, bare: BareTrainer
) -> None:
    point = tmp_path / "point.ckpt"
    first = bare(max_epochs=1, callbacks=[At(3, lambda trainer, _: trainer.save_checkpoint(point))])
    first.fit(NeedsRunLength())

    class Restore(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if restores:
                restore_loaders(trainer)

    model = NeedsRunLength()
    bare(max_epochs=1, callbacks=[Restore()]).fit(model, ckpt_path=point, weights_only=False)
    assert model.loader.state == state, "Lightning restores the loaders itself: remove restore_loaders"


@pytest.mark.parametrize("forgets", [True, False])
def test_forgotten_loaders_are_built_again(forgets: bool, bare: BareTrainer) -> None:
    made: list[int] = []

    class Counting(NeedsRunLength):
        def train_dataloader(self) -> DataLoader:
            made.append(1)
            return super().train_dataloader()

    class Forget(Callback):
        def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            assert trainer.train_dataloader is not None  # built early for a schedule
            if forgets:
                forget_loaders(trainer)

    trainer = bare(max_epochs=2, callbacks=[Forget()])
    trainer.fit(Counting())
    assert len(made) == 1 + forgets
    assert trainer.global_step == 12


def test_a_resumed_epoch_can_be_marked_as_complete(bare: BareTrainer) -> None:
    trainer = bare(max_epochs=1)
    trainer.fit_loop._restarting = True
    assert trainer.fit_loop.restarting
    count_epoch_as_complete(trainer)
    assert not trainer.fit_loop.restarting


@pytest.mark.usefixtures("at_every_step")
@pytest.mark.parametrize("helper", ["count_epoch_as_complete", "set_logged_steps"])
def test_a_resumed_run_needs_each_workaround(helper: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """callbacks/test_resume.py shows that with all workarounds a resumed run equals the uninterrupted one."""
    plateau = "--lr_scheduler ReduceLROnPlateau --lr_scheduler.patience 0 --lr_scheduler.threshold 0.9"
    line = f"{SHAPES} --max_epochs 3 {plateau}"
    uninterrupted = fit_run(f"{line} --default_root_dir uninterrupted")
    line += " --default_root_dir killed --resume auto"
    monkeypatch.setattr(f"lit_training.runs.lightning_internals.{helper}", lambda *_: None)
    for step in (6, 13):
        fit(line, kill_at=step)
    run = fit_run(line)
    with pytest.raises(AssertionError):  # otherwise Lightning no longer needs this helper: remove it
        assert_same_end(uninterrupted, run)


# --- hooks ----------------------------------------------------------------------------------------------------------


def test_the_hooks_of_a_resumed_epoch_are_called_without_loggers(bare: BareTrainer) -> None:
    logger, order = Steps(), []

    class Starts(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            order.append(pl_module.starts)

    def call_hooks(trainer: Trainer, model: Any) -> None:
        before = len(logger.logged)
        start_resumed_epoch(trainer, is_start=True)
        assert trainer.loggers == [logger]
        assert len(logger.logged) == before

    model = Model()
    trainer = bare(max_epochs=1, logger=logger, log_every_n_steps=1, callbacks=[Starts(), At(3, call_hooks)])
    trainer.fit(model)
    assert (order, model.starts) == ([0, 1], 2)  # each time before the hook of the model
    assert float(trainer.callback_metrics["starts"]) in (1.5, 2.0)  # the model logged twice


@pytest.mark.parametrize("name", ["_call_callback_hooks", "_call_lightning_module_hook"])
def test_hooks_are_called_with_the_trainer_and_a_name(name: str) -> None:
    parameters = list(inspect.signature(getattr(call, name)).parameters)
    assert parameters[:2] == ["trainer", "hook_name"]


def test_lightning_skips_the_start_hooks_of_a_resumed_epoch(tmp_path: Path, bare: BareTrainer) -> None:
    point = tmp_path / "point.ckpt"
    first = bare(max_epochs=1, callbacks=[At(3, lambda trainer, _: trainer.save_checkpoint(point))])
    first.fit(Model())
    model = Model()
    bare(max_epochs=1).fit(model, ckpt_path=point, weights_only=False)
    assert model.starts == 0, "Lightning calls these hooks itself: remove start_resumed_epoch"


def test_empty_hooks_are_removed_and_others_are_called(bare: BareTrainer) -> None:
    class Busy(Callback):
        steps = 0

        def on_train_batch_end(self, *args: Any) -> None:
            self.steps += 1

    for hook in STEP_HOOKS:
        assert callable(getattr(Callback, hook)), f"Lightning has no hook {hook} any more"
    busy = Busy()
    drop_empty_hooks([busy])
    assert busy.on_train_batch_start is None
    trainer = bare(max_epochs=1, callbacks=[busy])
    trainer.fit(Model())
    assert busy.steps == trainer.global_step == 6


def test_a_hook_of_a_step_is_found_in_callbacks_models_and_data_modules() -> None:
    for hook in ALL_STEP_HOOKS:
        kinds = [kind for kind in (Callback, LightningModule, LightningDataModule) if hasattr(kind, hook)]
        assert kinds, f"Lightning has no hook {hook} any more"
        for kind in kinds:
            own = type("Own", (kind,), {hook: lambda *_: None})()
            assert overrides_step_hook(own), f"{kind.__name__}.{hook}"
            assert not overrides_step_hook(kind())
    assert overrides_step_hook(LambdaCallback(on_train_batch_end=lambda *_: None))
    assert not overrides_step_hook(None)


def test_the_profiler_always_returns_the_same_empty_context(bare: BareTrainer) -> None:
    profiler = NullProfiler()
    assert profiler.profile("a") is profiler.profile("b")
    trainer: Any = bare(max_epochs=1, profiler=profiler)
    trainer.fit(Model())
    assert trainer.profiler is profiler
    assert trainer.global_step == 6


# --- processes ------------------------------------------------------------------------------------------------------


def test_the_process_observer_is_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[Any] = []
    observed: list[Any] = []
    kind = subprocess_script._SubprocessScriptLauncher
    monkeypatch.setattr(kind, "_call_children_scripts", lambda self: launched.append(self))
    monkeypatch.setattr(subprocess_script, "_launch_process_observer", observed.append)
    environment: Any = SimpleNamespace(creates_processes_externally=False, validate_settings=lambda **_: None)
    launcher = kind(environment, num_processes=1, num_nodes=1)
    assert launcher.launch(lambda: 5) == 5
    assert observed == [launcher.procs], "the launcher does not call this function"
    threads = threading.active_count()
    stop_process_observer()
    assert launcher.launch(lambda: 5) == 5
    assert len(launched) == 2
    assert len(observed) == 1
    assert threading.active_count() == threads


# --- jsonargparse ---------------------------------------------------------------------------------------------------


def test_a_flag_of_a_parser_can_get_a_second_name() -> None:
    parser = LightningArgumentParser()
    parser.add_argument("--outer.inner", type=int)
    [action] = [action for action in actions_of(parser) if action.dest == "outer.inner"]
    assert list(action.option_strings) == ["--outer.inner"]
    action.option_strings = [*action.option_strings, "--short"]
    assert "--short" in parser.format_help()
    flags = {option for action in actions_of(parse("--logger false").parser) for option in action.option_strings}
    assert {"--model", "--data", "--seeds", "--trainer.max_epochs", "--max_epochs"} <= flags


# --- no other names -------------------------------------------------------------------------------------------------


def test_calls_of_a_compiled_module_can_be_changed() -> None:
    net = nn.Linear(2, 2)
    seen: list[int] = []

    def call(compiled: Any, eager: Any, x: Tensor) -> Tensor:
        seen.append(len(x))
        torch.testing.assert_close(compiled(x), eager(x))
        return eager(x) + 1

    names = list(net.state_dict())
    compile_in_place(net, call, backend="eager")
    x = torch.ones(3, 2)
    assert torch.equal(net(x), net.forward(x) + 1)
    assert (seen, list(net.state_dict())) == ([3], names)

    def give_up(graph: Any, inputs: Any) -> Any:
        raise ValueError("no")

    with pytest.raises(compile_error()):
        torch.compile(nn.Linear(2, 2), backend=give_up)(x)


def test_an_optimizer_without_profiling_does_the_same_unless_it_has_a_hook_or_an_own_step() -> None:
    def optimizer(scheduled: bool = True) -> torch.optim.Optimizer:
        made = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
        torch.optim.lr_scheduler.StepLR(made, 1) if scheduled else None
        return made

    for one in (optimizer(), optimizer(False)):
        (step, hooks), calls = bare_step(one), list[int]()
        assert not any(hooks)
        assert step.func is torch.optim.SGD.step.__wrapped__  # type: ignore[attr-defined]
        step(closure=lambda calls=calls: calls.append(1))
        assert calls == [1]
    hooked, patched = optimizer(), optimizer()
    hooked.register_step_post_hook(lambda *_: None)
    patched.step = functools.wraps(torch.optim.SGD.step)(lambda closure: closure())  # type: ignore
    assert any(bare_step(hooked)[1])
    assert bare_step(patched)[0] == patched.step
    _, hooks = bare_step(optimizer())
    handle = register_optimizer_step_pre_hook(lambda *_: None)
    assert any(hooks)
    handle.remove()
    assert not any(hooks)


def test_all_private_names_of_libraries_are_in_one_file() -> None:
    folders = ("scripts", "datamodules", "lit_models", "lit_training")
    found = [name for folder in folders for path in (ROOT / folder).rglob("*.py") for name in private_names(path)]
    elsewhere = sorted(str(name) for name in found if name.file != HOME)
    assert not elsewhere, f"private names of libraries belong in {HOME}:\n" + "\n".join(elsewhere)
    names = sorted({name.name for name in found})
    assert len(names) <= MAX_PRIVATE_NAMES, (
        f"{len(names)} private names of libraries, more than {MAX_PRIVATE_NAMES}: {', '.join(names)}"
    )


def test_each_private_name_has_a_test_here() -> None:
    source = Path(__file__).read_text()
    functions = {name: value for name, value in vars(lightning_internals).items() if inspect.isfunction(value)}
    helpers = {name for name, value in functions.items() if value.__module__ == lightning_internals.__name__}
    assert [name for name in sorted(helpers) if f"{name}(" not in source] == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import torch._dynamo", ["_dynamo"]),
        ("def f():\n    from lightning.pytorch.trainer.call import _call_teardown_hook", ["_call_teardown_hook"]),
        ("trainer._active_loop", ["_active_loop"]),
        ("trainer.fit_loop._restarting = False", ["_restarting"]),
        ("getattr(trainer, '_loggers', None)", ["_loggers"]),
        ("class Mine:\n    def f(self):\n        self._own = 1\n        return other._own", []),
        ("from __future__ import annotations\nimport os\nos._exit(1)", []),
        ("from collections import namedtuple\nrow._replace(a=1)", []),
        ("_cache = {}\nfolder._cache", []),
        ("_, x = pair", []),
    ],
)
def test_private_names_are_found(source: str, found: list[str]) -> None:
    assert [name for name, _, _ in private_names_in(source)] == found


def test_private_names_that_a_subclass_overrides_are_found() -> None:
    class Mine(Trainer):
        def _run_stage(self) -> None:
            self._callback_connector: Any = None
            self._mine = self._data_connector

    module: Any = SimpleNamespace(Mine=Mine)
    source = (
        "class Mine(Trainer):\n"
        "    def _run_stage(self):\n"
        "        self._callback_connector = None\n"
        "        self._mine = self._data_connector\n"
    )
    assert [(name, how) for name, _, how in private_names_in(source, module)] == [
        ("_callback_connector", "Mine redefines a name of Trainer"),
        ("_data_connector", "read from self"),
        ("_run_stage", "Mine redefines a name of Trainer"),
    ]
