"""Stop a run whose loss or weights are NaN or infinite."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn.utils import get_total_norm

from datamodules.loading.order import TrainSampler
from datamodules.text import printable
from lit_training.errors import TrainingError


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
        sizes = [get_total_norm(weights, float("inf"))] if weights else []
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
    names = [str(index) if paths is None else printable(paths[index]) for index in indices]
    named = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return f"batch {batch_idx}: {'samples' if paths is None else 'files'} {named}"
