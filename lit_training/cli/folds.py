"""``fit.py --folds``: measure the accuracy by repeated cross-validation, then train the run on all pictures."""

import copy
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import StochasticWeightAveraging
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from datamodules.files import atomic_write
from datamodules.loading.folds import assign_folds, join_sets, refuse_small_classes, take
from datamodules.loading.module import SplitDataModule
from datamodules.loading.seeds import combine_seeds
from datamodules.photos.find import TRAIN
from datamodules.photos.scan import first_with_same_content
from datamodules.text import plural
from lit_models import LitBase
from lit_training.callbacks.best import NeedsMetric
from lit_training.callbacks.features import FeatureCache, Features
from lit_training.cli.defaults import add_fold_defaults
from lit_training.cli.optimizers import choose_optimizer
from lit_training.errors import CheckpointError, UsageError
from lit_training.runs.best_epoch import BestSoFar
from lit_training.runs.checkpoints import read_any
from lit_training.runs.folder import RunStart, lock_and_read_resume_point, resume_hint
from lit_training.runs.layout import FOLDS, OUT_OF_FOLD, SPLIT
from lit_training.runs.lightning_internals import forget_loaders
from lit_training.runs.out_of_fold import OutOfFold
from lit_training.runs.processes import Stopped
from lit_training.runs.run import Run
from lit_training.runs.trainer import FitTrainer
from lit_training.trained.predict import distinct_class_names

CONFLICTS = ("early_stopping", "max_steps", "max_time", "min_epochs", "min_steps", "fast_dev_run", "barebones")
CONFLICTS += ("overfit_batches", "limit_val_batches", "val_check_interval")
SECONDS_WORTH_A_NOTE = 60.0  # if the folds take longer, their time is estimated after the first epoch


def check_flags(config: Any) -> None:
    """Raise a UsageError for wrong ``folds`` or ``repeats``, or for a flag that cannot be used with them."""
    folds, repeats = config["folds"], config["repeats"]
    if folds is None:
        if repeats is not None:
            raise UsageError(f"--repeats {repeats} repeats the folds: --folds 5 --repeats {repeats}")
        return
    if folds < 2:
        raise UsageError(f"--folds {folds} must be at least 2: --folds 5")
    flags = {**config["trainer"], "early_stopping": config["early_stopping"]}
    refused = [name for name in CONFLICTS if flags[name] not in (None, False, -1)]
    refused += [name for name in ("logger", "enable_checkpointing") if flags[name] in (False, [])]
    refused += ["check_val_every_n_epoch"] * (flags["check_val_every_n_epoch"] != 1)
    if refused:
        raise UsageError(f"--folds and --{refused[0]} cannot be used together: leave --{refused[0]} out")
    if (epochs := flags["max_epochs"]) is not None and epochs < 1:
        raise UsageError(f"--folds needs a number of epochs, not --max_epochs {epochs}: --max_epochs 5")


def refuse_unsuited(model: Any, data: Any) -> None:
    """Raise a UsageError if the model cannot be trained on folds of the data."""
    loaders = ("train_dataloader", "val_dataloader")
    if not isinstance(model, LitBase) or model.task != "classification":
        raise UsageError(f"--folds needs a classifier built on LitBase, not {type(model).__name__}: leave --folds out")
    if not isinstance(data, SplitDataModule) or any(is_overridden(name, data, SplitDataModule) for name in loaders):
        problem = f"--folds needs a SplitDataModule without loaders of its own, not {type(data).__name__}"
        raise UsageError(f"{problem}: leave --folds out")


class FoldOutputs(NeedsMetric):
    """Keep the outputs for the held-out samples after each epoch, and the number of the best epoch, from 0."""

    def __init__(self, monitor: tuple[str, str], start: Callable[..., None], report: Callable[[float], None]) -> None:
        self.monitor, self.best = monitor[0], BestSoFar(*monitor)
        self.start, self.report, self.start_time = start, report, time.monotonic()
        self.epochs: list[Tensor] = []  # for each epoch (n, K) float32
        self.best_epoch = 0
        self._batches: list[Tensor] = []

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": self.epochs, "best_epoch": self.best_epoch, "best": self.best.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epochs, self.best_epoch = list(state_dict["epochs"]), state_dict["best_epoch"]
        self.best.load_state_dict(state_dict["best"])

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.start(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raise a UsageError for what would fail or differ in the last training, which has no validation."""
        self.start_time = time.monotonic()
        others: list[Any] = [one for one in trainer.callbacks if one is not self]  # type: ignore[attr-defined]
        watched = {type(one).__name__: getattr(one, "monitor", None) for one in others}
        watched |= {"the schedule": one.monitor for one in trainer.lr_scheduler_configs if one.reduce_on_plateau}
        watched |= {type(one).__name__: "val_loss" for one in others if isinstance(one, StochasticWeightAveraging)}
        for name, metric in watched.items():
            if metric and not metric.startswith("train_"):
                raise UsageError(f"{name} needs a validation, but --folds trains on all pictures at the end: remove it")

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        if not isinstance(outputs, dict) or "output" not in outputs:
            problem = f"validation_step of {type(pl_module).__name__} returns no dict with output"
            raise UsageError(f"{problem}: return super().validation_step(batch, batch_idx)")
        self._batches.append(outputs["output"].detach().float().cpu())

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.monitor not in trainer.callback_metrics:
            raise UsageError(self.describe_missing(trainer))
        if self.best.improved(trainer.callback_metrics):
            self.best_epoch = trainer.current_epoch
        self.epochs, self._batches = [*self.epochs, torch.cat(self._batches)], []
        if len(self.epochs) == 1:
            self.report(time.monotonic() - self.start_time)


class StopAfter(Callback):
    """Stop after this number of epochs. The schedules keep the length of ``max_epochs``."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.should_stop |= trainer.current_epoch + 1 >= self.epochs


def train_folds(cli: Any) -> None:
    """Train the folds that are not trained yet, write out_of_fold.csv, and prepare the last training of the run.

    That training uses all pictures. It ends after the median of the folds' best epochs. ``cli`` is a FitCLI.
    """
    run, count, repeats = cli.run, cli.config["folds"], cli.config["repeats"] or 1
    if count is None or run.start.finished:
        return
    say: Callable[[str], None] = (lambda text: None) if run.quiet else lambda text: print(text, flush=True)
    plain, paths, groups = _use_all_samples(run)
    labels, epochs, total = np.asarray(plain.labels), run.trainer.max_epochs, count * repeats
    refuse_small_classes(labels, groups, count, run.data.class_names)
    work = f"{count} folds x {plural(repeats, 'repeat')} x {plural(epochs, 'epoch')} = {plural(total * epochs, 'epoch')}"
    say(f"folds   {work} on {1 - 1 / count:.0%} of {plural(len(labels), 'sample')}; then at most {epochs} on all")
    parts, results, seconds = list[np.ndarray](), list[dict[str, Any]](), list[float]()
    for repeat in range(repeats):
        fold_of = assign_folds(labels, groups, count, combine_seeds(cli.config["seed_everything"], repeat))
        for fold in range(count):
            started, left = time.monotonic(), total - len(results)
            file = run.start.folder / FOLDS / f"repeat_{repeat + 1}_fold_{fold + 1}.pt"
            parts.append(np.flatnonzero(fold_of == fold))
            if is_new := not file.is_file():
                seed = combine_seeds(cli.config["seed_everything"], repeat, fold) % 2**32
                _train_fold(cli, plain, np.flatnonzero(fold_of != fold), parts[-1], file, seed, lambda seconds: None)
                seconds.append(time.monotonic() - started)
            results.append(read_any(file, mmap=True))
            if not np.array_equal(results[-1]["labels"], labels[parts[-1]]):
                raise CheckpointError(f"the training data has changed since {file} was written: use --resume never")
            best = f"{results[-1]['metric']} in epoch {results[-1]['best_epoch'] + 1}"
            time_left = f"about {_duration(np.mean(seconds) * left)} left" if is_new else "trained before"
            say(f"fold {len(results):>{len(str(total))}}/{total}  {best}  {time_left}")
    epoch = math.ceil(np.median([result["best_epoch"] for result in results]))
    outputs = [result["epochs"][min(epoch, len(result["epochs"]) - 1)].double().softmax(1) for result in results]
    numbers = np.repeat(np.arange(total), [len(rows) for rows in parts])
    OutOfFold(
        tuple(distinct_class_names(run.data.class_names, outputs[0].shape[1])),
        paths[np.concatenate(parts)],
        numbers // count + 1,
        numbers % count + 1,
        labels[np.concatenate(parts)],
        torch.cat(outputs).numpy(),
    ).write(run.start.folder / OUT_OF_FOLD)
    seed_everything(cli.config["seed_everything"], workers=True, verbose=False)
    run.trainer.callbacks.append(StopAfter(epoch + 1))
    say(f"all     {plural(epoch + 1, 'epoch')} on {plural(len(labels), 'sample')}: the median of the best epochs")


def remove_folds(run: Run) -> None:
    """Remove the files that the folds of a finished run needed to resume."""
    if run.start is not None:
        shutil.rmtree(run.start.folder / FOLDS, ignore_errors=True)


def _use_all_samples(run: Run) -> tuple[Any, np.ndarray, np.ndarray]:
    """Let the run train on train and val. Return a dataset of all samples without augmentation, names and groups."""
    data, photos = run.data, run.data.photos
    run.trainer.strategy.connect(run.model)  # the data module's setup() may read trainer.lightning_module
    data.trainer = run.trainer
    data.prepare_data()
    data.setup("fit")
    data.sets["train"], plain = join_sets(data)
    data.sets["val"] = take(plain, np.arange(0))
    data.prepare_data = data.setup = lambda *_, **__: None  # it must not restore the sets
    if photos is None:
        return plain, np.arange(len(plain)).astype(str), np.arange(len(plain))
    rows, groups, split_file = photos.select(TRAIN), getattr(photos, "groups", None), run.start.folder / SPLIT
    if not split_file.is_file():  # a resumed run compares its photos with this file
        photos.write_split(split_file)
    return plain, photos.paths[rows], (first_with_same_content(photos.sha256) if groups is None else groups)[rows]


def _train_fold(
    cli: Any, plain: Any, others: np.ndarray, rows: np.ndarray, file: Path, seed: int, report: Callable[[float], None]
) -> None:
    """Train a new model on the samples ``others``, and write its outputs for the samples ``rows`` to ``file``."""
    run, data, view = cli.run, cli.run.data, copy.copy(cli.run.data)
    view.photos = None  # else a resume point would be written after the first step

    def select() -> None:
        train = data.sets["train"]
        view.sets = {"train": take(train, others), "val": take(train if isinstance(train, Features) else plain, rows)}

    def use_features(trainer: Trainer, model: LightningModule) -> None:
        data.trainer = trainer
        FeatureCache().replace_pictures(trainer, model, data)
        if isinstance(data.sets["train"], Features):
            select()
            forget_loaders(trainer)

    select()
    seed_everything(seed, workers=True, verbose=False)
    fold = Run(cli.config, cli.build("model"), view, run.watch, resume="folds", quiet=True)
    choose_optimizer(fold, cli.parser, cli.typed)
    folder = file.with_suffix("")
    start = lock_and_read_resume_point(folder, {}) if folder.is_dir() else RunStart(folder)
    name, _, mode = (cli.config["monitor"] or "val_acc:max").rpartition(":")
    outputs = FoldOutputs((name, mode), use_features, report)
    trainer: Any = FitTrainer(**add_fold_defaults(cli.build("trainer"), fold, seed, outputs, folder))
    trainer.start, trainer.threads = replace(start, processes=1), run.trainer.threads
    trainer.fit(fold.model, view, weights_only=True)
    result = {"epochs": torch.stack(outputs.epochs), "best_epoch": outputs.best_epoch}
    result |= {"labels": torch.from_numpy(np.asarray(plain.labels)[rows]), "metric": f"{name} {outputs.best.value:.4f}"}
    with atomic_write(file) as out:
        torch.save(result, out)
    shutil.rmtree(folder, ignore_errors=True)
    run.watch.stepping = False
    if run.watch.signum:
        print(f"stopped after a fold; {resume_hint(run.start.folder)}", flush=True)
        raise Stopped(128 + run.watch.signum)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
