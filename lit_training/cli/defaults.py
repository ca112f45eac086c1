"""The default loggers, callbacks and plugins of scripts/fit.py."""

import inspect
import itertools
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback, Checkpoint, LearningRateMonitor, ProgressBar, WeightAveraging
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.plugins import CheckpointIO
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry

from datamodules.text import is_rank_zero, print_note
from lit_training.callbacks.best import AVERAGES, BestCheckpoint, StopEarly
from lit_training.callbacks.compiled import CompileForward
from lit_training.callbacks.console import EpochLines
from lit_training.callbacks.dashboard import Dashboard
from lit_training.callbacks.features import FeatureCache
from lit_training.callbacks.finite import FiniteGuard
from lit_training.callbacks.records import RunRecords
from lit_training.callbacks.resume import ResumePoint
from lit_training.callbacks.throughput import Throughput
from lit_training.errors import UsageError
from lit_training.runs.checkpoints import FitCheckpointIO
from lit_training.runs.folder import RunStart, prepare_start
from lit_training.runs.layout import CHECKPOINTS, LOGS, METRICS
from lit_training.runs.lightning_internals import NullProfiler, PlainSteps, drop_empty_hooks
from lit_training.runs.loaders import StepSeed
from lit_training.runs.metrics_csv import MetricsCSV
from lit_training.runs.own_classes import known_metrics
from lit_training.runs.run import Run
from lit_training.runs.tensorboard import BufferedTensorBoard

LIGHTNING_STRATEGIES = {name: dict(StrategyRegistry[name]) for name in StrategyRegistry.available_strategies()}
"""Strategy name -> Lightning's original entry. :func:`register_strategies` replaces the entries in the registry."""


def add_defaults(
    arguments: dict[str, Any], run: Run, dump_config: Callable[[], str], fold: Callback | None = None
) -> dict[str, Any]:
    """Return the Trainer's arguments with this project's loggers, callbacks and plugins added; set ``run.start``.

    Keep those of the user. ``dump_config`` returns the text of config.yaml. With the callback of a ``fold``, only
    resume points are written. Raise a UsageError if two flags contradict each other, or like :func:`prepare_start`.
    """
    config = dict(arguments)
    _refuse_contradictions(config, run)
    plugins, own = _as_list(config["plugins"]), _as_list(config["callbacks"])
    users_io = next((plugin for plugin in plugins if isinstance(plugin, CheckpointIO)), None)
    config["plugins"] = [*(plugin for plugin in plugins if plugin is not users_io), FitCheckpointIO(users_io)]
    config["num_sanity_val_steps"] = config["num_sanity_val_steps"] or 0
    own += [CompileForward(run.config["compile"])] if run.config["compile"] else []
    if config["barebones"]:
        return config | {"callbacks": own}
    config["profiler"] = config["profiler"] or NullProfiler()
    config["enable_model_summary"] = bool(config["enable_model_summary"])  # off by default: print_start() prints one
    writes_logs = config["logger"] not in (False, []) and not config["fast_dev_run"] and fold is None
    if writes_logs:
        root = config["default_root_dir"] or "."
        placeholder = RunStart(Path(root) / LOGS / "version_0")  # the other ranks get the real one from rank 0 later
        is_first = is_rank_zero()
        run.start = start = prepare_start(run.resume, root, dump_config(), run.photos) if is_first else placeholder
        logs = start.folder.parent
        options: dict[str, Any] = {"name": logs.name, "version": start.version, "purge_step": start.step}
        tensorboard = BufferedTensorBoard(str(logs.parent), default_hp_metric=False, **options)
        loggers = [tensorboard] if config["logger"] in (None, True) else _as_list(config["logger"])
        for logger in loggers:
            if isinstance(logger, CSVLogger) and is_first and not start.finished:
                _keep_files(Path(logger.log_dir))
        config["logger"] = [*loggers, MetricsCSV(start)]  # the first one is self.logger of the model
    monitor, mode = run.monitor
    seed = StepSeed(run.config["seed_everything"])
    callbacks: list[Callback] = [seed, FiniteGuard(run.config), Throughput()]
    bars = [type(one).__name__ for one in own if isinstance(one, ProgressBar)]
    config["enable_progress_bar"] = config["enable_progress_bar"] is not False and bool(bars or not run.quiet)
    if bars:
        print_note(f"the lines of fit.py are off, because {bars[0]} shows the progress")
    elif config["enable_progress_bar"]:
        callbacks += [EpochLines(monitor, mode)]
    callbacks += [FeatureCache()]
    if writes_logs:
        callbacks += [RunRecords(dump_config), LearningRateMonitor()]
        callbacks += [Dashboard(monitor, mode)] if run.config["dashboard"] else []
    if fold is not None:
        config |= {"logger": DummyLogger(), "enable_checkpointing": any(isinstance(one, Checkpoint) for one in own)}
        seed.resume_point = point = ResumePoint(run.watch)
        point.on_fit_end = None  # type: ignore[assignment]  # the end of a fold needs no resume point
        callbacks = [point, *callbacks, fold]
    elif config["enable_checkpointing"] is not False and not config["fast_dev_run"]:
        folder = None if run.start is None else run.start.folder / CHECKPOINTS
        averages = any(isinstance(one, WeightAveraging) for one in own)
        at_end = False if averages and run.validates else None  # averages may change after their validation
        is_typed = bool(run.config["monitor"])
        callbacks += [BestCheckpoint(monitor, mode, is_typed, folder, save_on_train_epoch_end=at_end)]
        if run.start is not None:
            seed.resume_point = ResumePoint(run.watch)
            callbacks[:0] = [seed.resume_point]  # first: it saves the state before other callbacks change it
    if (patience := run.config.get("early_stopping")) is not None:
        callbacks += [StopEarly(monitor or "train_loss", mode, int(patience))]
    drop_empty_hooks(callbacks)
    if not config["fast_dev_run"]:
        callbacks += [PlainSteps(callbacks, seed.on_train_batch_start, lambda: run.watch.signum)]
    first = callbacks.index(seed) + 1  # the user's callbacks may draw random numbers
    config["callbacks"] = [*callbacks[:first], *own, *callbacks[first:]]
    return config


def register_strategies(skips_layers: bool) -> None:
    """Give Lightning's strategies a process group timeout of one day, because ``--timeout`` already ends hanging runs.

    If a training step may skip layers (``skips_layers``), DDP also searches for unused parameters.
    """
    for name, entry in LIGHTNING_STRATEGIES.items():
        if "timeout" not in inspect.signature(entry["strategy"]).parameters:
            continue
        parameters = {**entry["init_params"], "timeout": timedelta(days=1)}
        if skips_layers and issubclass(entry["strategy"], DDPStrategy):
            parameters.setdefault("find_unused_parameters", True)
        StrategyRegistry.register(name, entry["strategy"], entry["description"], override=True, **parameters)


def _refuse_contradictions(config: dict[str, Any], run: Run) -> None:
    conflicts = [flag for flag in ("barebones", "fast_dev_run") if config[flag]]
    conflicts += [flag for flag in ("logger", "enable_checkpointing") if config[flag] in (False, [])]
    if run.resume != "never" and conflicts:
        raise UsageError(f"--resume {run.resume} needs a run's folder and its checkpoints: leave --{conflicts[0]} out")
    own, typed = _as_list(config["callbacks"]), {**config, "early_stopping": run.config.get("early_stopping")}
    limits = "limit_train_batches", "limit_val_batches"  # --overfit_batches sets both
    pairs = [("barebones", "early_stopping"), *(("overfit_batches", limit) for limit in limits)]
    names = [(f"--{one}", f"--{other}") for one, other in pairs if typed[one] and typed[other] is not None]
    names += itertools.combinations([type(one).__name__ for one in own if isinstance(one, AVERAGES)], 2)
    if names and run.resume in ("never", "auto"):
        raise UsageError(f"{' and '.join(names[0])} cannot be used together: remove one of the two")
    for unit in ("epochs", "steps"):
        least, most = config[f"min_{unit}"] or 0, config[f"max_{unit}"]
        if most not in (None, -1) and least > most:
            raise UsageError(f"--min_{unit} {least} is more than --max_{unit} {most}: --max_{unit} {least}")
    known = known_metrics(run.model, own, run.validates)
    for name in (run.monitor[0], *(getattr(one, "monitor", None) for one in own)):
        if known and name not in (None, *known):
            raise UsageError(f"the model logs no {name}, only {', '.join(known)}: choose one of these")


def _keep_files(folder: Path) -> None:
    """Rename the files of an earlier start, because a CSVLogger with a fixed version replaces them."""
    number = len(list(folder.glob("metrics-*.csv"))) + 1
    for file in [*folder.glob(METRICS), *folder.glob("hparams.yaml")]:
        file.rename(file.with_stem(f"{file.stem}-{number}"))


def _as_list(value: Any) -> list[Any]:
    if isinstance(value, list | tuple):
        return list(value)
    return [] if value is None else [value]
