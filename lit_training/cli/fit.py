"""What scripts/fit.py does and prints before and after training."""

import contextlib
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from datamodules.loading.module import SplitDataModule
from datamodules.machine import available_cores
from datamodules.text import plural
from lit_models import LitBase
from lit_training.errors import is_rank_zero
from lit_training.runs.folder import relative_path
from lit_training.runs.foreign import promises
from lit_training.runs.layout import LOGS
from lit_training.runs.run import Run
from lit_training.statistics import wilson

RESULT_FILE = "FIT_RESULT_FILE"
"""Environment variable: the file that a run writes its folder into when it has ended well."""


def print_start(run: Run) -> None:
    """Data, device, batch and model, before anything is trained."""
    if not is_rank_zero() or run.quiet:
        return
    trainer, model, data = run.trainer, run.model, run.data
    if run.start is not None and run.start.finished:
        print(f"{relative_path(run.start.run)} is at its end: nothing to do (--resume never trains anew)", flush=True)
        return
    if run.start is not None and run.start.checkpoint is not None:
        print(f"resume  {relative_path(run.start.checkpoint)}, after step {run.start.step}")
    about = promises(data)
    if report := about.report():
        print(report)
    name, classes = type(data).__name__, about.class_names
    shape = f": samples of {' x '.join(map(str, about.sample_shape))}" if about.sample_shape else ""
    what = plural(len(classes), "class", "classes") if classes else promises(model).task
    print(f"data    {', '.join(filter(None, (name + shape, what)))}")
    device, count = type(trainer.accelerator).__name__.removesuffix("Accelerator"), trainer.world_size
    batch = data.hparams.get("batch_size", 0)
    accumulate, devices = trainer.accumulate_grad_batches, plural(count, "device")
    together = f"; global batch = {batch * count * accumulate} ({batch} x {devices} x {accumulate} accumulated)"
    print(f"device  {count} x {device}, precision {trainer.precision}{together if batch else ''}")
    if isinstance(data, SplitDataModule) and data.photos is not None:
        workers = data.num_workers(data.dataset("train"))
        idle = "the pictures are in memory, or the network has the cores"
        why = plural(available_cores(), "core") if workers else idle
        print(f"workers {workers} to decode pictures ({why}; --data.num_workers)")
    total = sum(parameter.numel() for parameter in model.parameters())
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    weights = f", weights {model.hparams['weights']}" if "weights" in model.hparams else ""
    print(f"model   {type(model).__name__}: {trainable:,} trainable of {total:,} parameters{weights}", flush=True)


def load_weights(run: Run) -> None:
    """Read pretrained weights before anything that takes long, so that a missing file is said at once.

    A run that goes on has them in its checkpoint.

    Raises:
        ModelError: see :func:`lit_models.backbones.load`.
    """
    if isinstance(run.model, LitBase) and is_rank_zero() and not run.goes_on:
        run.model.load_pretrained()


@contextlib.contextmanager
def remove_unstarted_run(run: Run) -> Iterator[None]:
    """Remove the run's directory, made on the way, when it fails before its first step."""
    try:
        yield
    except Exception:
        if run.start is not None and is_rank_zero() and run.trainer.global_step <= run.start.step:
            run.start.undo()
        raise


def print_result(run: Run) -> None:
    """Evaluate the best checkpoint; print the result, where the run lies and what to type next."""
    trainer, model = run.trainer, run.model
    paths = [getattr(callback, "best_model_path", "") for callback in trainer.checkpoint_callbacks]
    best = next((path for path in paths if path), "")
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    skipped = trainer.barebones or trainer.fast_dev_run
    if isinstance(model, LitBase) and run.validates and not skipped:
        trainer.ckpt_path = None  # of the fit: else a validation without a path would read it
        with _without_loggers(trainer):  # the evaluation is no point of the curves
            # Without a checkpoint it is the weights as they are now.
            options: dict[str, Any] = {"ckpt_path": best, "weights_only": True} if best else {}
            metrics |= trainer.validate(model, run.data, verbose=False, **options)[0]
    folder = trainer.log_dir  # asks all ranks
    if not trainer.is_global_zero:
        return
    print()
    if "val_acc" in metrics:
        accuracy, n = metrics["val_acc"], promises(model).samples_evaluated
        if n is None:  # a model of your own: of how many samples is not known
            print(f"val_acc     {accuracy:.4f}")
        else:
            low, high = wilson(round(accuracy * n), n)
            print(f"val_acc     {accuracy:.4f}  (95 % interval {low:.3f} to {high:.3f}, n = {n})")
    for name in ("val_loss", "train_loss"):
        if name in metrics:
            print(f"{name:<10}  {metrics[name]:.4g}")
    if not metrics:
        print("nothing was measured")
    if trainer.loggers and folder is not None:
        print(f"run         {relative_path(Path(folder))}")
        if result := os.environ.get(RESULT_FILE):
            Path(result).write_text(folder, encoding="utf-8", errors="surrogateescape")
    if best and not run.quiet:
        _print_next(model, Path(best), bool(trainer.loggers))


def _print_next(model: Any, best: Path, logged: bool) -> None:
    """What to type next, ready to paste."""
    print(f"checkpoint  {relative_path(best)}\n\nnext:")
    run = best.parent.parent
    name = "latest" if run.parent.resolve() == Path(LOGS).resolve() else shlex.quote(str(relative_path(run)))
    if isinstance(model, LitBase):
        inputs = "PICTURE_OR_FOLDER..." if model.sample_ndim == 3 else "ROWS.csv"
        print(f"  python scripts/evaluate.py {name}\n  python scripts/predict.py {name} {inputs}")
    if logged:
        print(f"  tensorboard --logdir {shlex.quote(str(relative_path(run.parent)))}", flush=True)


@contextlib.contextmanager
def _without_loggers(trainer: Trainer) -> Iterator[None]:
    loggers, trainer.loggers = trainer.loggers, []
    try:
        yield
    finally:
        trainer.loggers = loggers
