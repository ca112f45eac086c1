"""Trouble during a run, said in one line: a lost photo, out of memory, disk full, lost rank."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from datamodules.photos.decode import BadPicture
from datamodules.text import plural, printable
from lit_training.callbacks.resume import other_optimizer_message
from lit_training.errors import CheckpointError, TrainingError, refused_by_library
from lit_training.runs import checkpoints
from lit_training.runs.folder import resume_hint
from lit_training.runs.processes import ALREADY_REPORTED
from lit_training.runs.run import Run


@contextmanager
def one_line_failures(run: Run) -> Iterator[None]:
    """Turn what ends a run from outside into an error of one line that says what to do.

    Raises:
        TrainingError: a photo that was whole cannot be read any more; out of memory; or another process of the run is
            gone.
        CheckpointError: the disk is full, or cannot be written; or the resume point is of another network.
        SystemExit: another process of the run has said why it ended.
    """
    try:
        yield
    except BadPicture as bad:
        start = run.trainer.start
        hint = resume_hint(start.run) if start is not None else ""
        raise TrainingError(
            f"{printable(bad.name)}: {bad.kind} ({bad.reason}), though it was whole when the run began: "
            f"bring it back, then {hint or 'start again'}"
        ) from bad
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EACCES, errno.EIO):
            raise
        where = f" {error.filename}" if error.filename else " the run's folder"
        raise CheckpointError(
            f"cannot write{where} ({error.strerror}): free the place, then go on with --resume, "
            "or choose another with --default_root_dir"
        ) from error
    except KeyError as error:
        start = run.trainer.start
        if start is None or start.checkpoint is None or not refused_by_library(error):
            raise
        raise CheckpointError(other_optimizer_message(run.trainer)) from error  # Adam misses what SGD did not keep
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise TrainingError(
            "BatchNorm cannot learn from a batch of one picture of this size: choose a --data.batch_size that leaves "
            "no single picture over, a larger --data.image_size, or --model.freeze true"
        ) from error
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise TrainingError(_out_of_memory(run)) from error
        start = run.trainer.start
        if start is not None and start.checkpoint is not None and "loading state_dict" in str(error):
            raise CheckpointError(_does_not_fit(start.checkpoint, run.model, str(error))) from error
        if run.trainer.world_size > 1 and re.search(r"gloo|NCCL|closed by peer|reset by peer|Socket", str(error)):
            if run.watch.is_reported():
                raise SystemExit(ALREADY_REPORTED) from error
            raise TrainingError("another training process ended; the last resume point is whole") from error
        raise


def _does_not_fit(point: Path, model: Any, error: str) -> str:
    """Why a resume point's weights are not this model's, and what to type."""
    holds, here = checkpoints.read_any(point).get("lit", {}).get("model_class"), type(model).__name__
    if holds not in (None, here):
        return f"{point} holds a {holds}, not a {here}: --model {holds}, or --resume never to train anew"
    first = next((line.strip(" \t.") for line in error.splitlines()[1:] if line.strip()), error)
    return f"{point} does not fit this {here} ({first}): give it the settings it was begun with, or --resume never"


def _out_of_memory(run: Run) -> str:
    size = run.data.hparams.get("batch_size", 1)
    accumulated = run.trainer.accumulate_grad_batches
    if size > 1:
        hint = f"--data.batch_size {size // 2} --accumulate_grad_batches {accumulated * 2} gives the same global batch"
    else:
        hint = "one sample a step is too much already: a smaller --data.image_size, or --model LitCNN"
    return f"out of memory with {plural(size, 'sample')} per step and device: {hint}"
