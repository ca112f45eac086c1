"""Trouble in the middle of a run, said in one line: numbers that are none, memory or disk that is full, a lost rank."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from datamodules.examination import BadPicture
from datamodules.listing import counted, shown
from datamodules.loading import TrainSampler
from lit_training import checkpoints
from lit_training.checkpoints import CheckpointError
from lit_training.messages import UsageError, refused_by_library
from lit_training.resume import FitTrainer, how_to_go_on, of_another_optimizer
from lit_training.rundir import Start
from lit_training.signals import SAID

if TYPE_CHECKING:
    from lit_training.cli import FitCLI


class TrainingError(UsageError):
    """A run that cannot go on."""


class FiniteGuard(Callback):
    """Stops a run whose loss or weights are NaN or infinite, and lets no checkpoint be written of them.

    The losses of the steps are looked at together, every ``log_every_n_steps`` and before each checkpoint, so that
    a GPU is not waited for at each step.
    """

    def __init__(self) -> None:
        self._losses: list[Tensor] = []
        self._steps: list[tuple[int, int, int]] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not isinstance(outputs, dict) or not isinstance(outputs.get("loss"), Tensor):
            return  # a model with a loop of its own
        self._losses.append(outputs["loss"].detach())
        self._steps.append((trainer.global_step, trainer.current_epoch, batch_idx))
        if (trainer.fit_loop.total_batch_idx + 1) % (trainer.log_every_n_steps or 50) == 0:  # type: ignore[attr-defined]
            self.check(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.check(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.training or trainer.validating:
            self.check(trainer, pl_module)

    def check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the steps since the last look; all ranks call it at the same step.

        Raises:
            TrainingError: naming step, batch and learning rate.
        """
        losses, steps = self._losses, self._steps
        self._losses, self._steps = [], []
        weights = [
            p.detach() for p in pl_module.parameters() if p.requires_grad and p.is_floating_point() and p.numel()
        ]
        # One number for all weights: a sum of squares may overflow where each weight is finite, a maximum not.
        sizes = torch._foreach_norm(weights, float("inf")) if weights else []
        finite = torch.stack([*losses, *sizes]).isfinite() if losses or sizes else torch.ones(1, dtype=torch.bool)
        bad = (~finite.all()).int().to(trainer.strategy.root_device)
        if trainer.world_size > 1:
            torch.distributed.all_reduce(bad, torch.distributed.ReduceOp.MAX)
        if not bad.item():
            return
        reason = _describe(trainer, [float(loss) for loss in losses], steps)
        if trainer.world_size > 1:
            reasons: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(reasons, reason)
            reason = min(reasons)
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        raise TrainingError(
            f"{reason[1]}, learning rate {rate:.3g}; the last good checkpoint is kept. "
            f"Try --model.lr {rate / 10:.3g}, or --gradient_clip_val 1"
        )


def _describe(trainer: Trainer, losses: list[float], steps: list[tuple[int, int, int]]) -> tuple[int, str]:
    """The first step whose loss is no number, and its batch."""
    for loss, (step, epoch, batch_idx) in zip(losses, steps, strict=True):
        if loss - loss != 0:  # NaN or infinite
            return (
                step,
                f"the loss became {loss} at step {step} (epoch {epoch + 1}, {_batch(trainer, epoch, batch_idx)})",
            )
    last = steps[-1][0] if steps else trainer.global_step
    return last + 1, f"the weights became NaN or infinite at step {last} or up to {len(steps)} before"


def _batch(trainer: Trainer, epoch: int, batch_idx: int) -> str:
    """What the batch held: files where the data has files, else indices."""
    loader: Any = trainer.train_dataloader
    sampler = getattr(loader, "sampler", None)
    if not isinstance(sampler, TrainSampler):
        return f"batch {batch_idx}"
    sampler = TrainSampler(sampler.length, sampler.num_replicas, sampler.rank, sampler.seed, sampler.shuffle)
    sampler.set_epoch(epoch)
    keys = list(sampler)[batch_idx * loader.batch_size : (batch_idx + 1) * loader.batch_size]
    indices = [key % sampler.length for key in keys]
    paths = getattr(loader.dataset, "paths", None)
    names = [str(index) if paths is None else shown(paths[index]) for index in indices]
    named = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return f"batch {batch_idx}: {'samples' if paths is None else 'files'} {named}"


@contextmanager
def explained(cli: "FitCLI") -> Iterator[None]:
    """Turn what ends a run from outside into one line that says what to do.

    Raises:
        TrainingError: a photo that was whole cannot be read any more; out of memory; or another process of the run is
            gone.
        CheckpointError: the disk is full, or cannot be written; or the resume point is of another network.
        SystemExit: another process of the run has said why it ended.
    """
    try:
        yield
    except BadPicture as bad:
        start = _start_of(cli)
        hint = how_to_go_on(start.run) if start is not None else ""
        raise TrainingError(
            f"{shown(bad.name)}: {bad.kind} ({bad.reason}), though it was whole when the run began: "
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
        start = _start_of(cli)
        if start is None or start.checkpoint is None or not refused_by_library(error):
            raise
        raise CheckpointError(of_another_optimizer(cli.trainer)) from error  # Adam misses what SGD did not keep
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise TrainingError(
            "BatchNorm cannot learn from a batch of one picture of this size: choose a --data.batch_size that leaves "
            "no single picture over, a larger --data.image_size, or --model.freeze true"
        ) from error
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise TrainingError(_out_of_memory(cli)) from error
        start = _start_of(cli)
        if start is not None and start.checkpoint is not None and "loading state_dict" in str(error):
            raise CheckpointError(_does_not_fit(start.checkpoint, cli.model, str(error))) from error
        if cli.trainer.world_size > 1 and re.search(r"gloo|NCCL|closed by peer|reset by peer|Socket", str(error)):
            if cli.watch.has_been_said():
                raise SystemExit(SAID) from error
            raise TrainingError("another training process ended; the last resume point is whole") from error
        raise


def _start_of(cli: "FitCLI") -> Start | None:
    """What rank 0 has chosen, on whichever rank this is."""
    return cli.trainer.start if isinstance(cli.trainer, FitTrainer) else None


def _does_not_fit(point: Path, model: Any, error: str) -> str:
    """Why a resume point's weights are not this model's, and what to type."""
    holds, here = checkpoints.read_any(point).get("lit", {}).get("model_class"), type(model).__name__
    if holds not in (None, here):
        return f"{point} holds a {holds}, not a {here}: --model {holds}, or --resume never to train anew"
    first = next((line.strip(" \t.") for line in error.splitlines()[1:] if line.strip()), error)
    return f"{point} does not fit this {here} ({first}): give it the settings it was begun with, or --resume never"


def _out_of_memory(cli: "FitCLI") -> str:
    size = cli.datamodule.hparams.get("batch_size", 1)
    accumulated = cli.trainer.accumulate_grad_batches
    if size > 1:
        hint = f"--data.batch_size {size // 2} --accumulate_grad_batches {accumulated * 2} gives the same global batch"
    else:
        hint = "one sample a step is too much already: a smaller --data.image_size, or --model LitCNN"
    return f"out of memory with {counted(size, 'sample')} per step and device: {hint}"
