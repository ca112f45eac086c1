"""The steps of scripts/fit.py before and after training: print settings, load weights, print the result."""

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.nn.parameter import is_lazy

from datamodules.files import read_csv
from datamodules.image_folder import ImageFolderDataModule
from datamodules.loading.augmentation import NAMES
from datamodules.loading.module import SplitDataModule
from datamodules.machine import available_cores
from datamodules.photos.split import describe_other_photos
from datamodules.text import command, is_rank_zero, plural, printable
from lit_models import LitBase
from lit_models.base import class_record, read_attribute
from lit_training.callbacks.best import AVERAGES, BestCheckpoint
from lit_training.errors import CheckpointError, UsageError
from lit_training.runs import checkpoints
from lit_training.runs.folder import can_resume, newest_first, relative_path
from lit_training.runs.hashes import write_hashes
from lit_training.runs.layout import BEST, HASHES, METRICS, OUT_OF_FOLD, REPORT
from lit_training.runs.lightning_internals import NullProfiler
from lit_training.runs.out_of_fold import read_out_of_fold
from lit_training.runs.own_classes import find_class, with_default_attributes
from lit_training.runs.plain import MISSING_PARTS, plain_checkpoint
from lit_training.runs.run import Run
from lit_training.statistics import wilson_interval
from lit_training.text import progress_bar
from lit_training.trained.calibrate import ValidationOutputs, calibrate
from lit_training.trained.evaluate import Evaluation
from lit_training.trained.predict import distinct_class_names
from lit_training.trained.report import write_report

RESULT_FILE_VARIABLE = "FIT_RESULT_FILE"
"""Environment variable with a file name. A successful run writes the path of its folder to this file."""


def print_start(run: Run) -> None:
    """Print data, device, batch size, model and any checkpoint to resume from, on rank 0 and without ``--quiet``."""
    trainer, model, data, start = run.trainer, run.model, run.data, run.start
    if start is not None and start.finished:
        typed = [word.partition("=")[0] for word in sys.argv[1:] if re.match("--(?!resume)", word)]
        ignored = f" (without effect: {', '.join(typed)})" if typed and run.resume != "auto" else ""
        if is_rank_zero() and not run.quiet:
            print(f"{relative_path(start.folder)} has finished: nothing to do{ignored}; for a new run: --resume never")
        return
    for part in (model, data) if trainer.checkpoint_callbacks else ():  # raises an error if it cannot be saved
        plain_checkpoint({"hyper_parameters": dict(with_default_attributes(part).hparams)})
    if not is_rank_zero() or run.quiet:
        return
    if start is not None and start.checkpoint is not None:
        print(f"resume  {relative_path(start.checkpoint)}, after step {start.step}")
    data_attributes = with_default_attributes(data)
    if report := data_attributes.report():
        print(report)
    classes, shape = read_attribute(data, "class_names"), read_attribute(data, "sample_shape")
    shape_text = f": samples of {' x '.join(map(str, shape))}" if shape else ""
    task = plural(len(classes), "class", "classes") if classes else with_default_attributes(model).task
    print(f"data    {type(data or model).__name__}{shape_text}{f', {task}' if task else ''}")
    if isinstance(data, SplitDataModule) and "augment" in data.hparams:
        print(f"augment {_describe_augmentation(data.augment)}")
    device, devices = type(trainer.accelerator).__name__.removesuffix("Accelerator"), trainer.world_size
    batch, accumulated = data_attributes.hparams.get("batch_size"), trainer.accumulate_grad_batches
    if start is not None and "batch_size" in start.kept:
        print(f"resize  {batch} samples on each device keep the global batch; the run began on {start.processes}")
    batch_text = ""
    if isinstance(batch, int):
        factors = f"{batch} x {plural(devices, 'device')} x {accumulated} accumulated"
        batch_text = f"; global batch = {batch * devices * accumulated} ({factors})"
    threads = plural(trainer.threads[0], "thread") + " each"
    if trainer.threads[0] != trainer.chosen_threads[0] and (start is None or "batch_size" not in start.kept):
        threads += f" (as the run began; a new run would use {trainer.chosen_threads[0]})"
    print(f"device  {devices} x {device}, {threads}, precision {trainer.precision}{batch_text}")
    if isinstance(data, SplitDataModule) and data.photos is not None:
        workers = data.num_workers(data.dataset("train"))
        reason = plural(available_cores(), "core") if workers else "images are in memory, or the network uses the cores"
        print(f"workers {workers} to decode images ({reason}; --data.num_workers)")
    for callback in trainer.callbacks:
        if isinstance(callback, AVERAGES):
            print(f"average the averaged weights are validated and saved in best.ckpt ({type(callback).__name__})")
    weights = f", weights {model.hparams['weights']}" if "weights" in model.hparams else ""
    if weights and (loaded := getattr(model, "loaded", "")):
        print(printable(f"weights of {model.hparams['weights']}: {loaded}"))
    sizes = [(0 if is_lazy(weight) else weight.numel(), weight.requires_grad) for weight in model.parameters()]
    parameters, trainable = sum(size for size, _ in sizes), sum(size for size, is_trained in sizes if is_trained)
    weights += ", and lazy layers" if any(map(is_lazy, model.parameters())) else ""
    print(f"model   {type(model).__name__}: {trainable:,} trainable of {parameters:,} parameters{weights}", flush=True)


def _describe_augmentation(names: tuple[str, ...]) -> str:
    if not names:
        return f"off (--data.augment true, or some of {','.join(NAMES)})"
    others = ",".join(name for name in names if name in NAMES and name != "flip") or "crop"
    hint = f"; if a mirrored picture is another class: --data.augment {others}" if "flip" in names else ""
    return f"{','.join(names)} (--data.augment false turns it off{hint})"


def prepare(run: Run) -> None:
    """Load the pretrained weights of a new run and examine the photos, on rank 0. Writes nothing.

    Raise a UsageError if the photos of a resumed run are not those that it began with.
    """
    start, data = run.start, run.data
    if not is_rank_zero() or (start is not None and start.finished):
        return
    if start is not None:
        start.apply_to(data)
    is_resumed = start is not None and (start.checkpoint or can_resume(start.folder))
    if isinstance(run.model, LitBase) and not is_resumed:
        run.model.load_pretrained()
    if isinstance(data, ImageFolderDataModule):
        with progress_bar("examined photos", show=not run.quiet) as progress:
            photos = data.examine(progress)
        if data.began and (difference := describe_other_photos(photos, data.began)):
            problem = f"{relative_path(Path(data.began).parent)} was started with other photos or fixes: {difference}"
            raise UsageError(f"{problem}: restore them, or train a new run with --resume never")


@contextlib.contextmanager
def undo_failed_start(run: Run) -> Iterator[None]:
    """If training fails before its first step, remove a new run, or restore the files of a resumed run."""
    undo = run.start.remember() if run.start is not None and is_rank_zero() else None
    if undo and run.start and not run.start.finished:
        (run.start.folder / HASHES).unlink(missing_ok=True)
    elif undo and run.start and run.start.folder.is_dir() and not (run.start.folder / HASHES).is_file():
        write_hashes(run.start.folder)  # the run was killed before it could
    try:
        yield
    except Exception:
        loop = run.trainer.fit_loop.epoch_loop
        if undo and run.start and loop.batch_progress.total.completed <= run.start.batches:
            undo()
        raise


def print_result(run: Run) -> None:
    """Validate with the best checkpoint, then print the result and the next commands. All ranks must call it.

    Otherwise print the logged metrics: of a test run, without validation data, or if the model is not a LitBase or
    the checkpoint does not hold all its parts.
    """
    trainer, model = run.trainer, run.model
    best = "".join(saver.best_model_path for saver in trainer.callbacks if isinstance(saver, BestCheckpoint))
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    checkpoint = checkpoints.read_any(Path(best), mmap=True) if best else {}
    is_complete = isinstance(model, LitBase) and MISSING_PARTS not in checkpoint
    outputs = ValidationOutputs()
    if is_complete and run.validates and not (trainer.barebones or trainer.fast_dev_run):
        trainer.ckpt_path = None  # otherwise validate() loads the checkpoint that training resumed from
        loggers, trainer.loggers = trainer.loggers, []  # this validation must not add points to the curves
        trainer.callbacks.append(outputs)
        trainer.profiler = NullProfiler()  # nor write a second report
        options: dict[str, Any] = {"ckpt_path": best, "weights_only": True} if best else {}
        for results in trainer.validate(model, run.data, verbose=False, **options):  # none if there are no samples
            metrics |= results
        trainer.loggers = loggers
    folder = trainer.log_dir  # all ranks must read log_dir, because it sends a value to all ranks
    of_validation = outputs.gather(trainer)
    if not trainer.is_global_zero:
        return
    calibration, is_unknown = None, bool(outputs.batches) and of_validation is None and trainer.world_size > 1
    if best and is_complete and model.task == "classification" and not is_unknown:
        device, progress = trainer.strategy.root_device, run.watch.note_progress
        calibration = calibrate(Path(best), run.data, of_validation, device, progress)
    print()
    if best and (table := Path(folder or "", METRICS)).is_file():
        metrics.pop("train_loss", None)  # it is that of the last epoch
        epoch = min(checkpoint["epoch"], trainer.current_epoch - 1)  # that of StochasticWeightAveraging is one more
        names = ["train_loss", *({} if is_complete else metrics)]
        for row in [row for row in read_csv(table) if row.get("epoch") == str(epoch)]:
            is_before = int(row["step"]) <= checkpoint["global_step"]  # later ones are of another validation
            metrics |= {n: float(row[n]) for n in names if row.get(n) and (is_before or n == "train_loss")}
        print(f"epoch       {epoch + 1} of {max(epoch + 1, trainer.current_epoch)}")
    if "val_acc" in metrics:
        accuracy, count = metrics["val_acc"], with_default_attributes(model).samples_evaluated
        interval = ""
        if count and 0 <= accuracy <= 1:  # a custom model may not count its samples, or log percents
            low, high = wilson_interval(round(accuracy * count), count)
            interval = f"  (95 % interval {low:.3f} to {high:.3f}, n = {count})"
        print(f"val_acc     {accuracy:.4f}{interval}")
    if run.config["folds"]:
        print(f"fold_acc    {read_out_of_fold(Path(str(folder)) / OUT_OF_FOLD).summary()}")
    for name in dict.fromkeys((run.monitor[0], "val_loss", "train_loss")):
        if name in metrics.keys() - {"val_acc"}:
            print(f"{name:<10}  {metrics[name]:.4g}")
    if not metrics:
        print("nothing was measured")
    if calibration is not None and not run.quiet:
        print(calibration.report())
    elif best and is_unknown and model.task == "classification":
        fix = command("fit.py", "--resume", relative_path(Path(best).parents[1]), "--devices", 1)
        print(f"temperature none: several devices may repeat samples of your loaders; {fix} fits it")
    if trainer.loggers and folder is not None:
        print(f"run         {relative_path(Path(folder))}")
        if result_file := os.environ.get(RESULT_FILE_VARIABLE):
            Path(result_file).write_text(folder, encoding="utf-8", errors="surrogateescape")
    if run.report and run.start is not None:
        evaluation = None
        if of_validation is not None and (trainer.world_size == 1 or isinstance(run.data, SplitDataModule)):
            shown = tuple(distinct_class_names(model.class_names, of_validation[0].shape[1]))
            loss = float(trainer.callback_metrics.get("val_loss", float("nan")))
            evaluation = Evaluation(Path(best), "", "val", loss, *of_validation, None, shown, calibration=calibration)
        write_report(run.start.folder, model, run.data, evaluation)
        if (file := run.start.folder / REPORT).is_file() and not run.quiet:
            print(f"report      {relative_path(file)}")
    if best and not run.quiet:
        _print_next_commands(model, run.data, Path(best), run.config["trainer"]["logger"] in (None, True))


def _print_next_commands(model: Any, data: Any, checkpoint: Path, has_curves: bool) -> None:
    print(f"checkpoint  {relative_path(checkpoint)}", flush=True)
    folder = checkpoint.parent.parent
    is_newest = any(newest.resolve() == folder.resolve() for newest in newest_first(".")[:1])
    run = "latest" if is_newest else relative_path(folder if checkpoint.name == BEST else checkpoint)
    record, lines = class_record(model, data), []
    with contextlib.suppress(CheckpointError):  # of a class that the commands cannot open
        find_class(record["model_class"], LitBase)
        takes_rows = model.sample_ndim == 1
        if "in_features" in model.hparams if takes_rows else record["preprocessing"]:
            lines.append(command("predict.py", run, "ROWS.csv" if takes_rows else "IMAGE_OR_FOLDER..."))
        find_class(record["data_class"], LightningDataModule)
        if is_overridden("test_dataloader", data) or is_overridden("val_dataloader", data):
            lines.insert(0, command("evaluate.py", run))
    if has_curves:
        lines.append(command("tensorboard", "--logdir", relative_path(folder.parent)))
    if lines:
        print("\nnext:", *lines, sep="\n  ", flush=True)
