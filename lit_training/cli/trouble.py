"""Print failures of a run in one line: a deleted photo, out of memory, a full disk, another process that ended."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datamodules.photos.decode import BadPicture
from datamodules.text import plural, printable
from lit_models.base import dotted_path
from lit_training.callbacks.resume import other_optimizer_message
from lit_training.cli.usage_errors import explain_wrong_value
from lit_training.errors import OUT_OF_MEMORY, CheckpointError, TrainingError, UsageError, is_library_error
from lit_training.runs import checkpoints
from lit_training.runs.folder import resume_hint
from lit_training.runs.own_classes import with_default_attributes
from lit_training.runs.plain import MISSING_PARTS
from lit_training.runs.processes import ALREADY_REPORTED
from lit_training.runs.run import Run

KNOWN = {
    "Expected more than 1 value per channel": "BatchNorm cannot train on a batch of one image of this size: choose a "
    "--data.batch_size that does not leave a single image, a larger --data.image_size, or --model.freeze true",
    "Tried to step": "the learning rate schedule has ended ({}): give it "
    "total_steps=self.trainer.estimated_stepping_batches, or train fewer steps",
    "SyncBatchNorm layers only work with GPU": "--sync_batchnorm needs GPUs: leave it out",
    "grad can be implicitly created": "training_step must return a loss of one number, such as loss.mean()",
    "Modules with uninitialized parameters": "lazy layers (such as nn.LazyLinear) train in one process only: use "
    "--devices 1 without --strategy, or layers with an input size, such as nn.Linear(3072, 10)",
    "num_samples should be a positive integer": "a data loader that shuffles has no samples",
}
"""Begin of the text of a ValueError or RuntimeError -> the line that is printed."""
WRITE_ERROR_NUMBERS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EACCES, errno.EIO)


@contextmanager
def one_line_failures(run: Run) -> Iterator[None]:
    """Replace an exception from the ``with`` block by a one-line error if the user can fix the cause."""
    try:
        yield
    except Exception as error:
        if (one_line_error := _to_one_line_error(error, run)) is None:
            raise
        raise one_line_error from error


def _to_one_line_error(error: Exception, run: Run) -> BaseException | None:
    text, start = str(error), run.trainer.start
    resume_point = start.checkpoint if start is not None else None
    if isinstance(error, BadPicture):
        hint = resume_hint(start.folder) if start is not None else ""
        problem = f"{error.kind} ({error.reason}), but it was readable when the run started"
        return TrainingError(f"{printable(error.name)}: {problem}: restore it, then {hint or 'start again'}")
    if isinstance(error, OSError) and error.errno in WRITE_ERROR_NUMBERS:
        problem = f"cannot write {error.filename or 'to the folder of the run'} ({error.strerror})"
        fix = "free disk space and continue with --resume, or choose another folder with --default_root_dir"
        return CheckpointError(f"{problem}: {fix}")
    is_restoring = run.trainer.strategy.checkpoint_io.is_restoring
    if resume_point and is_restoring and (parts := checkpoints.read_any(resume_point).get(MISSING_PARTS)):
        return CheckpointError(f"{resume_point} cannot be restored ({type(error).__name__}: {text}){parts}")
    if isinstance(error, KeyError) and resume_point is not None and is_library_error(error):
        return CheckpointError(other_optimizer_message(run.trainer))  # for example Adam cannot load the state of SGD
    for start_of_text, message in KNOWN.items() if isinstance(error, ValueError | RuntimeError) else ():
        if text.startswith(start_of_text):
            return TrainingError(message.format(text))
    wrong_value = explain_wrong_value(error, run.config)
    other = UsageError(wrong_value) if wrong_value else None
    if not isinstance(error, RuntimeError):
        return other
    if re.search(OUT_OF_MEMORY, text):
        return TrainingError(_out_of_memory_message(run))
    if resume_point is not None and "loading state_dict" in text:
        return CheckpointError(_wrong_weights_message(resume_point, run.model, text))
    if run.trainer.world_size > 1 and re.search(r"gloo|NCCL|closed by peer|reset by peer|Socket", text):
        if run.watch.is_reported():
            return SystemExit(ALREADY_REPORTED)
        return TrainingError("another rank ended: continue with --resume auto")
    return other


def _wrong_weights_message(resume_point: Path, model: Any, error: str) -> str:
    current, saved = type(model).__name__, checkpoints.read_any(resume_point).get("lit", {}).get("model_class")
    if saved not in (None, current, dotted_path(type(model))):
        saved = saved.rpartition(".")[2] if saved.startswith("lit_models.") else saved
        return f"{resume_point} holds a {saved}, not a {current}: use --model {saved}, or --resume never for a new run"
    reason = next((line.strip(" \t.") for line in error.splitlines()[1:] if line.strip()), error)
    return f"{resume_point} does not fit this {current} ({reason}): use the settings of that run, or --resume never"


def _out_of_memory_message(run: Run) -> str:
    size = with_default_attributes(run.data).hparams.get("batch_size", 1)
    accumulated = run.trainer.accumulate_grad_batches
    if isinstance(size, int) and size > 1:
        hint = f"--data.batch_size {size // 2} --accumulate_grad_batches {accumulated * 2} gives the same global batch"
    else:
        hint = "one sample per step does not fit: choose a smaller --data.image_size, or --model LitCNN"
    return f"out of memory with {plural(size, 'sample')} per step and device: {hint}"
