"""``fit.py --folds``: measure the accuracy by repeated cross-validation, then train the run on all pictures."""

import copy
import math
import shutil
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import LambdaCallback, StochasticWeightAveraging
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from datamodules.files import atomic_write
from datamodules.loading.folds import assign_folds, join_sets, refuse_small_classes, take
from datamodules.loading.module import SplitDataModule
from datamodules.loading.seeds import combine_seeds
from datamodules.photos.find import TRAIN
from datamodules.text import plural
from lit_models import LitBase
from lit_training.callbacks.best import NeedsMetric
from lit_training.callbacks.features import FeatureCache, Features
from lit_training.cli.defaults import add_defaults
from lit_training.cli.optimizers import choose_optimizer
from lit_training.errors import CheckpointError, UsageError
from lit_training.runs.best_epoch import BestSoFar
from lit_training.runs.checkpoints import read_any
from lit_training.runs.folder import RunStart, lock_and_read_resume_point, resume_hint
from lit_training.runs.layout import FOLDS, OUT_OF_FOLD, SPLIT
from lit_training.runs.out_of_fold import OutOfFold
from lit_training.runs.processes import Stopped
from lit_training.runs.run import FitTrainer, Run
from lit_training.trained.predict import distinct_class_names

CONFLICTS = ["early_stopping", "max_steps", "max_time", "min_epochs", "min_steps", "fast_dev_run", "barebones"]
CONFLICTS += ["overfit_batches", "limit_val_batches", "val_check_interval"]  # flags that --folds refuses


def check_flags(config: Any) -> None:
    """Raise a UsageError for wrong ``folds`` or ``repeats``, or for a flag that cannot be used with them."""
    (folds, repeats), flags = (config["folds"], config["repeats"]), {**config, **config["trainer"]}
    if folds is None and repeats is not None:
        raise UsageError(f"--repeats {repeats} repeats the folds: --folds 5 --repeats {repeats}")
    if folds is None:
        return
    for name, value, usual in (("folds", folds, 2), ("max_epochs", flags["max_epochs"], 1)):
        if value is not None and value < usual:
            raise UsageError(f"--{name} {value} must be at least {usual} with --folds: --{name} 5")
    refused = [name for name in CONFLICTS if flags[name] not in (None, False, -1)]
    refused += [name for name in ("logger", "enable_checkpointing") if flags[name] in (False, [])]
    if refused := refused + ["check_val_every_n_epoch"] * (flags["check_val_every_n_epoch"] != 1):
        raise UsageError(f"--folds and --{refused[0]} cannot be used together: leave --{refused[0]} out")


def refuse_unsuited(model: Any, data: Any) -> None:
    """Raise a UsageError if the model cannot be trained on folds of the data."""
    own_loaders = any(is_overridden(f"{split}_dataloader", data, SplitDataModule) for split in ("train", "val"))
    if not isinstance(model, LitBase) or model.task != "classification":
        raise UsageError(f"--folds needs a classifier built on LitBase, not {type(model).__name__}: leave --folds out")
    if not isinstance(data, SplitDataModule) or own_loaders:
        problem = f"--folds needs a SplitDataModule without loaders of its own, not {type(data).__name__}"
        raise UsageError(f"{problem}: leave --folds out")


class FoldOutputs(NeedsMetric):
    """Keep the outputs for the held-out samples after each epoch, and the number of the best epoch, from 0.

    After the first epoch, print how long ``left`` epochs of all folds will take, if ``left`` is not 0.
    """

    def __init__(self, monitor: str, mode: str, left: int) -> None:
        self.monitor, self.best, self.best_epoch = monitor, BestSoFar(monitor, mode), 0
        self.left, self.started = left, math.nan
        self.epochs: list[Tensor] = []  # for each epoch (n, K) float32
        self._batches: list[Tensor] = []

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": self.epochs, "best_epoch": self.best_epoch, "best": self.best.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epochs, self.best_epoch = list(state_dict["epochs"]), state_dict["best_epoch"]
        self.best.load_state_dict(state_dict["best"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if any(isinstance(one, StochasticWeightAveraging) for one in trainer.callbacks):  # type: ignore[attr-defined]
            raise UsageError("--folds and StochasticWeightAveraging cannot be used together: use EMAWeightAveraging")
        monitors = [one.monitor for one in trainer.lr_scheduler_configs if one.reduce_on_plateau]
        monitors += [getattr(one, "monitor", None) for one in trainer.callbacks if one is not self]  # type: ignore[attr-defined]
        if lost := [name for name in monitors if name and not name.startswith("train_")]:
            problem = f"--folds trains on all pictures at the end, where {lost[0]} does not exist"
            raise UsageError(f"{problem}: remove the schedule or callback that needs it, or use its train_loss")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.started = time.monotonic()

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any, **__: Any) -> None:
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
        if self.left and math.isfinite(seconds := time.monotonic() - self.started):  # a resumed epoch has no start
            left = timedelta(seconds=round(seconds * (self.left - len(self.epochs))))
            print(f"epoch   the first one took {seconds:.1f} s: about {left} left for all folds (h:mm:ss)", flush=True)
            self.left = 0


def train_folds(cli: Any) -> None:
    """Train the folds that are not trained yet, write out_of_fold.csv, and prepare the last training of the run.

    That training uses all samples, for the median of the folds' best epochs. ``cli`` is a FitCLI.
    """
    run, count, repeats, seed = cli.run, *(cli.config[name] for name in ("folds", "repeats", "seed_everything"))
    if count is None or run.start.finished:
        return remove_folds(run)
    repeats, epochs = repeats or 1, run.trainer.max_epochs
    total = count * repeats
    plain, paths, groups = _use_all_samples(run)
    labels = np.asarray(plain.labels)
    refuse_small_classes(labels, groups, count, run.data.class_names)
    how = f"{count} folds x {plural(repeats, 'repeat')} = {total} networks x {plural(epochs, 'epoch')}"
    how += f" = {plural(total * epochs, 'epoch')} on {1 - 1 / count:.0%} of {plural(len(labels), 'sample')}"
    _say(run, f"folds   {how}; then up to {epochs} on all")
    rows, found, seconds = list[np.ndarray](), list[dict[str, Any]](), list[float]()
    for number in range(total):
        repeat, fold = divmod(number, count)
        fold_of = assign_folds(labels, groups, count, combine_seeds(seed, repeat))
        rows.append(np.flatnonzero(fold_of == fold))
        file, started, left = run.start.folder / FOLDS / f"{repeat + 1}_{fold + 1}.pt", time.monotonic(), ""
        if not file.is_file():
            others = np.flatnonzero(fold_of != fold)
            epochs_left = 0 if seconds or run.quiet else epochs * (total - number)
            _train_fold(cli, plain, others, rows[-1], file, combine_seeds(seed, repeat, fold) % 2**32, epochs_left)
            seconds.append(time.monotonic() - started)
            left = f"{seconds[-1]:.1f} s, {timedelta(seconds=round(np.mean(seconds) * (total - number - 1)))} left"
        found.append(read_any(file, mmap=True))
        if not np.array_equal(found[-1]["labels"], labels[rows[-1]]):
            raise CheckpointError(f"the data has changed since {file} was written: use --resume never")
        best = f"{found[-1]['metric']} in epoch {found[-1]['best_epoch'] + 1}"
        _say(run, f"fold {number + 1:>{len(str(total))}}/{total}  {best}  {left or 'trained before'}")
    epoch = math.ceil(np.median([one["best_epoch"] for one in found]))
    outputs = torch.cat([one["epochs"][min(epoch, len(one["epochs"]) - 1)] for one in found])
    numbers, order = np.repeat(np.arange(total), list(map(len, rows))), np.concatenate(rows)
    names, shares = distinct_class_names(run.data.class_names, outputs.shape[1]), outputs.double().softmax(1).numpy()
    table = OutOfFold(tuple(names), paths[order], numbers // count + 1, numbers % count + 1, labels[order], shares)
    table.write(run.start.folder / OUT_OF_FOLD)
    seed_everything(seed, workers=True, verbose=False)

    def stop(trainer: Trainer, model: Any) -> None:  # the schedules keep the length of max_epochs
        trainer.should_stop |= trainer.current_epoch >= epoch

    run.trainer.callbacks.append(LambdaCallback(on_train_epoch_end=stop))
    _say(run, f"all     {plural(epoch + 1, 'epoch')} on all samples: the median of the folds' best epochs")


def remove_folds(run: Run) -> None:
    """Remove what the folds of a finished run needed to resume."""
    if run.start is not None:
        shutil.rmtree(run.start.folder / FOLDS, ignore_errors=True)


def _say(run: Run, text: str) -> None:
    if not run.quiet:
        print(text, flush=True)


def _use_all_samples(run: Any) -> tuple[Any, np.ndarray, np.ndarray]:
    """Let the run train on train and val, or on their features. Return them as in an evaluation, names and groups."""
    data, trainer, model = run.data, run.trainer, run.model
    trainer.strategy.connect(model)  # setup() and the features use the Trainer as in a fit
    trainer.datamodule, data.trainer, model.trainer = data, trainer, trainer
    data.prepare_data()
    data.setup("fit")
    data.sets["train"], plain = join_sets(data)
    data.sets["val"] = take(plain, np.arange(0))
    data.prepare_data = data.setup = lambda *_, **__: None  # it must not restore the sets
    paths = groups = np.arange(len(plain))
    if photos := data.photos:
        rows, split_file = photos.select(TRAIN), Path(run.start.folder, SPLIT)
        paths, groups = photos.paths[rows], photos.groups[rows]
        if not split_file.is_file():  # a resumed run compares its photos with this file
            photos.write_split(split_file)
    trainer.precision_plugin.convert_module(model)
    trainer.strategy.model_to_device()
    FeatureCache().on_fit_start(trainer, model)
    is_features = isinstance(data.sets["train"], Features)
    return data.sets["train"] if is_features else plain, paths.astype(str), groups


def _train_fold(cli: Any, plain: Any, others: np.ndarray, rows: np.ndarray, file: Path, seed: int, left: int) -> None:
    """Train a new model on the samples ``others``, and write its outputs for the samples ``rows`` to ``file``.

    ``left`` is as in :class:`FoldOutputs`.
    """
    config, view, watch, folder = cli.config.clone(), copy.copy(cli.run.data), cli.run.watch, file.with_suffix("")
    view.sets = {"train": take(view.sets["train"], others), "val": take(plain, rows)}
    view.photos = None  # with photos, a resume point is written after the first step
    config["seed_everything"] = seed_everything(seed, workers=True, verbose=False)
    start = lock_and_read_resume_point(folder, {}) if folder.is_dir() else RunStart(folder)
    fold = Run(config, cli.build("model"), view, watch, resume="folds", quiet=True, start=replace(start, processes=1))
    choose_optimizer(fold, cli.parser, cli.typed)
    name, _, mode = (config["monitor"] or "val_acc:max").rpartition(":")
    outputs = FoldOutputs(name, mode, left)
    arguments = {**cli.build("trainer"), "default_root_dir": str(folder)}
    trainer = FitTrainer(**add_defaults(arguments, fold, str, outputs))
    trainer.start, trainer.threads = fold.start, cli.run.trainer.threads
    trainer.fit(fold.model, view, weights_only=True)
    metric, labels = f"{name} {outputs.best.value:.4f}", torch.from_numpy(np.asarray(plain.labels)[rows])
    with atomic_write(file) as out:
        result = {"epochs": torch.stack(outputs.epochs), "best_epoch": outputs.best_epoch}
        torch.save({**result, "metric": metric, "labels": labels}, out)
    shutil.rmtree(folder, ignore_errors=True)
    watch.stepping = False
    if watch.signum:
        print(f"stopped after a fold; {resume_hint(cli.run.start.folder)}", flush=True)
        raise Stopped(128 + watch.signum)
