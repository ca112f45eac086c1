"""What scripts/fit.py does before and after training."""

import contextlib
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datamodules.loading.module import SplitDataModule
from datamodules.machine import available_cores
from datamodules.text import plural
from lit_models import LitBase
from lit_training.errors import is_rank_zero
from lit_training.runs.folder import relative_path
from lit_training.runs.foreign import promises
from lit_training.runs.layout import LOGS
from lit_training.runs.run import Run
from lit_training.statistics import wilson_interval

RESULT_FILE_VARIABLE = "FIT_RESULT_FILE"
"""Environment variable: a file to which a successful run writes its folder."""


def print_start(run: Run) -> None:
    """Print the data, device, batch size and model before training."""
    if not is_rank_zero() or run.quiet:
        return
    trainer, model, data, start = run.trainer, run.model, run.data, run.start
    if start is not None and start.finished:
        print(f"{relative_path(start.run)} is at its end: nothing to do; for a new run: --resume never", flush=True)
        return
    if start is not None and start.checkpoint is not None:
        print(f"resume  {relative_path(start.checkpoint)}, after step {start.step}")
    about = promises(data)
    if report := about.report():
        print(report)
    name, classes = type(data).__name__, about.class_names
    shape = f": samples of {' x '.join(map(str, about.sample_shape))}" if about.sample_shape else ""
    task = plural(len(classes), "class", "classes") if classes else promises(model).task
    print(f"data    {', '.join(filter(None, (name + shape, task)))}")
    device, count = type(trainer.accelerator).__name__.removesuffix("Accelerator"), trainer.world_size
    batch = data.hparams.get("batch_size", 0)
    accumulate, devices = trainer.accumulate_grad_batches, plural(count, "device")
    total = f"; global batch = {batch * count * accumulate} ({batch} x {devices} x {accumulate} accumulated)"
    print(f"device  {count} x {device}, precision {trainer.precision}{total if batch else ''}")
    if isinstance(data, SplitDataModule) and data.photos is not None:
        workers = data.num_workers(data.dataset("train"))
        why = plural(available_cores(), "core") if workers else "images are in memory, or the network uses the cores"
        print(f"workers {workers} to decode images ({why}; --data.num_workers)")
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    trainable, parameters = sum(size for size, trained in sizes if trained), sum(size for size, _ in sizes)
    weights = f", weights {model.hparams['weights']}" if "weights" in model.hparams else ""
    print(f"model   {type(model).__name__}: {trainable:,} trainable of {parameters:,} parameters{weights}", flush=True)


def load_weights(run: Run) -> None:
    """Read pretrained weights first, so that a missing file is reported at once; a resumed run has them already.

    Raises:
        ModelError: see :func:`lit_models.backbones.load`.
    """
    if isinstance(run.model, LitBase) and is_rank_zero() and not run.is_resumed:
        run.model.load_pretrained()


@contextlib.contextmanager
def remove_unstarted_run(run: Run) -> Iterator[None]:
    """Remove the run's new folder if training fails before the first step."""
    try:
        yield
    except Exception:
        if run.start is not None and is_rank_zero() and run.trainer.global_step <= run.start.step:
            run.start.undo()
        raise


def print_result(run: Run) -> None:
    """Evaluate the best checkpoint; print the result, the run's folder and the next commands."""
    trainer, model = run.trainer, run.model
    paths = [getattr(callback, "best_model_path", "") for callback in trainer.checkpoint_callbacks]
    best = next((path for path in paths if path), "")
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    skipped = trainer.barebones or trainer.fast_dev_run
    if isinstance(model, LitBase) and run.validates and not skipped:
        trainer.ckpt_path = None  # else Lightning reads the checkpoint that training resumed from
        loggers, trainer.loggers = trainer.loggers, []  # the evaluation must not add points to the curves
        options: dict[str, Any] = {"ckpt_path": best, "weights_only": True} if best else {}
        metrics |= trainer.validate(model, run.data, verbose=False, **options)[0]
        trainer.loggers = loggers
    folder = trainer.log_dir  # every rank must call this
    if not trainer.is_global_zero:
        return
    print()
    if "val_acc" in metrics:
        accuracy, n = metrics["val_acc"], promises(model).samples_evaluated
        interval = ""
        if n is not None:  # a custom model may not count its samples
            low, high = wilson_interval(round(accuracy * n), n)
            interval = f"  (95 % interval {low:.3f} to {high:.3f}, n = {n})"
        print(f"val_acc     {accuracy:.4f}{interval}")
    for name in ("val_loss", "train_loss"):
        if name in metrics:
            print(f"{name:<10}  {metrics[name]:.4g}")
    if not metrics:
        print("nothing was measured")
    if trainer.loggers and folder is not None:
        print(f"run         {relative_path(Path(folder))}")
        if result := os.environ.get(RESULT_FILE_VARIABLE):
            Path(result).write_text(folder, encoding="utf-8", errors="surrogateescape")
    if best and not run.quiet:
        _print_next(model, Path(best), bool(trainer.loggers))


def _print_next(model: Any, best: Path, logged: bool) -> None:
    """Print commands to paste."""
    print(f"checkpoint  {relative_path(best)}\n\nnext:")
    run = best.parent.parent
    name = "latest" if run.parent.resolve() == Path(LOGS).resolve() else shlex.quote(str(relative_path(run)))
    if isinstance(model, LitBase):
        inputs = "IMAGE_OR_FOLDER..." if model.sample_ndim == 3 else "ROWS.csv"
        print(f"  python scripts/evaluate.py {name}\n  python scripts/predict.py {name} {inputs}")
    if logged:
        print(f"  tensorboard --logdir {shlex.quote(str(relative_path(run.parent)))}", flush=True)
