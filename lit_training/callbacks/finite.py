"""Stop a run whose loss or weights are NaN or infinite."""

import math
import re
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.nn.utils import get_total_norm

from datamodules.loading.order import TrainSampler
from datamodules.text import first_names
from lit_training.errors import TrainingError
from lit_training.runs.processes import gather_objects


class FiniteGuard(Callback):
    """Stop a run whose loss or weights are NaN or infinite, before the weights are saved in a checkpoint.

    In a check the CPU waits for the GPU, so only every ``log_every_n_steps``-th batch, epochs and checkpoints have one.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config
        self._unchecked_steps: list[tuple[Tensor, int, int, int]] = []
        """Loss, step, epoch and batch number of each batch since the last check."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not isinstance(outputs, dict) or not isinstance(outputs.get("loss"), Tensor):
            return  # the model has its own optimization loop and returns no loss
        self._unchecked_steps.append((outputs["loss"], trainer.global_step, trainer.current_epoch, batch_idx))
        if (trainer.fit_loop.total_batch_idx + 1) % (trainer.log_every_n_steps or 50) == 0:  # type: ignore[attr-defined]
            groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
            self.check(trainer, [parameter for group in groups for parameter in group["params"]])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.check(trainer, pl_module.parameters())

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.training or trainer.validating:
            self.check(trainer, pl_module.parameters())

    def check(self, trainer: Trainer, parameters: Iterable[Tensor]) -> None:
        """Raise a TrainingError if a weight or a loss since the last check is not finite. Call it on all ranks."""
        steps, self._unchecked_steps = self._unchecked_steps, []
        losses = [loss.squeeze() if loss.ndim else loss for loss, *_ in steps]
        trained = (p for p in parameters if p.requires_grad)
        weights = [p.detach() for p in trained if not is_lazy(p) and p.is_floating_point() and p.numel()]
        # Use the largest weight: a sum of squares may overflow although each weight is finite.
        largest_weight = [get_total_norm(weights, float("inf"))] if weights else []
        is_bad = bool(losses or largest_weight) and not torch.stack([*losses, *largest_weight]).isfinite().all().item()
        if not trainer.strategy.reduce_boolean_decision(is_bad, all=False):
            return
        _, reason = min(gather_objects(trainer, _describe_failure(trainer, steps)))
        if trainer.optimizers:
            reason += f", learning rate {trainer.optimizers[0].param_groups[0]['lr']:.3g}"
        advice = _smaller_rates(self.config)
        if trainer.lightning_module.automatic_optimization and (trainer.gradient_clip_val or math.inf) > 1:
            advice += ["--gradient_clip_val 1"]
        hint = f" Try {', or '.join(advice)}" if advice else ""
        raise TrainingError(f"{reason}; the last good checkpoint is kept.{hint}")


def _smaller_rates(config: Mapping[str, Any]) -> list[str]:
    """Return flags with a tenth of the learning rate of the run. It is that of ``--optimizer`` if there is one."""
    key = "optimizer" if config.get("optimizer") else "model"
    rates = (config[key].get("init_args") or {}).items()
    rates = [(name, rate) for name, rate in rates if re.search("(^|_)(lr|learning_rate)$", name)]
    return [f"--{key}.{name} {min(rate / 10, 0.1):.3g}" for name, rate in rates if isinstance(rate, float) and rate > 0]


def _describe_failure(trainer: Trainer, steps: list[tuple[Tensor, int, int, int]]) -> tuple[int, str]:
    """Return the first step with a bad loss and a message; if only weights are bad, the step after the last one."""
    for loss, step, epoch, batch_idx in steps:
        if not loss.isfinite():
            batch = _describe_batch(trainer, epoch, batch_idx)
            return step, f"the loss became {float(loss)} at step {step} (epoch {epoch + 1}, {batch})"
    last_step = steps[-1][1] if steps else trainer.global_step
    return last_step + 1, f"the weights became NaN or infinite at step {last_step} or up to {len(steps)} steps before"


def _describe_batch(trainer: Trainer, epoch: int, batch_idx: int) -> str:
    """Return text with the number of a batch, and the names of its files or the indices of its samples."""
    loader: Any = trainer.train_dataloader
    sampler = getattr(loader, "sampler", None)
    if not isinstance(sampler, TrainSampler):
        return f"batch {batch_idx}"
    sampler.set_epoch(epoch)
    sampler.start = batch_idx * loader.batch_size
    indices = [key % sampler.length for key in islice(sampler, loader.batch_size)]
    paths = getattr(loader.dataset, "paths", None)
    names = [str(index) if paths is None else paths[index] for index in indices]
    return f"batch {batch_idx}: {'samples' if paths is None else 'files'} {first_names(names, 8)}"
