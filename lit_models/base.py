"""The base class of all models: training and evaluation steps, metrics, checkpoint contents.

Shapes, here and in the model files: B batch, C channels, H height, W width, F features, K classes or outputs.
"""

import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.utilities import dim_zero_cat

PLAIN = (str, int, float, Tensor)
"""Types of attribute values that ``nn.Module`` does not have to register."""
PADDING = -1
"""Class index of a padding row, which is ignored by loss and metrics; float targets are padded with NaN."""


class ModelError(ValueError):
    """The model cannot be built or does not fit the data. The message is one line that ends with what to type."""


class EvaluationLoss(Metric):
    """Mean or sum of the losses of all samples, bit-identical on any number of devices.

    Each batch is summed on its own; :func:`math.fsum` then adds the batch sums without rounding, in any order. This
    needs batches that do not depend on the number of devices, such as those of this project's data modules.
    """

    full_state_update = False
    sums: list[Tensor] | Tensor
    rows: Tensor

    def __init__(self, reduction: str) -> None:
        super().__init__()
        self.reduction = reduction
        self.add_state("sums", [], dist_reduce_fx="cat")
        self.add_state("rows", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, losses: Tensor) -> None:
        """Add the losses of one batch, (n,) float; n may be 0."""
        assert isinstance(self.sums, list)
        self.sums.append(losses.sum(dtype=self.dtype).view(1))
        self.rows += len(losses)

    def compute(self) -> Tensor:
        """Return a scalar. It is NaN if a loss is NaN, or for the mean of no samples."""
        total = math.fsum(dim_zero_cat(self.sums).tolist())
        value = torch.tensor(total, dtype=self.dtype, device=self.device)
        return value / self.rows if self.reduction == "mean" else value


class LitBase(LightningModule):
    """Training, validation, test and prediction steps of a classifier or a regression network.

    A subclass sets ``task`` and ``reduction``, and defines ``__init__``, ``forward`` and ``configure_optimizers``.

    Logged: ``train_loss`` (mean of the epoch's batch losses), ``train_loss_step`` (one batch, every
    ``log_every_n_steps``), ``val_loss``, ``test_loss`` and, for classifiers, ``val_acc`` and ``test_acc`` (accuracy,
    0 to 1). With ``reduction = "sum"`` a loss is the sum over all samples instead of their mean.
    """

    task: Literal["classification", "regression"] = "classification"
    reduction: Literal["mean", "sum"] = "mean"
    samples_evaluated: int | None = None
    """Number of samples in the last validation, over all devices; classifiers only."""
    default_data = "ShapesDataModule"
    """Data module that ``scripts/fit.py`` uses without ``--data``."""
    default_epochs = 5
    """Epochs of ``scripts/fit.py`` without ``--max_epochs``, ``--max_steps`` and ``--max_time``."""
    sample_ndim = 3
    """Number of dimensions of one sample: 3 for a picture (C, H, W), 1 for a row of features (F,)."""
    skips_layers = False
    """True if a step may leave layers unused, so that DDP needs ``find_unused_parameters``."""
    same_random_numbers_on_all_ranks = False
    """True if a training step draws random numbers per batch, not per sample: all devices then draw the same ones."""
    preprocessing: dict[str, Any] | None = None
    """How a picture becomes an input, saved in the checkpoint: ``image_size``, ``resize_size`` (pixels), ``mean``,
    ``std`` (per channel, for pixels in [0, 1]), ``interpolation``."""
    class_names: tuple[str, ...] | None = None
    fixed_features = False
    """True if ``features`` of a picture are the same in each epoch, so that they can be computed once."""
    wants_augmentation = False
    """True if photos are augmented when ``--data.augment`` is not given."""

    chosen_optimizer: Callable[..., Optimizer] | None = None
    """Called with the parameters or parameter groups; replaces the model's optimizer (``--optimizer``)."""
    chosen_schedule: Callable[[Optimizer], dict[str, Any]] | None = None
    """Called with the optimizer; returns Lightning's ``lr_scheduler`` dictionary (``--lr_scheduler``)."""

    class_weights: Tensor | None

    def make_metrics(self, num_classes: int | None = None) -> None:
        """Create the metrics; call it at the end of ``__init__``. Classifiers pass ``num_classes``."""
        self.val_loss = EvaluationLoss(self.reduction)
        self.test_loss = EvaluationLoss(self.reduction)
        if num_classes is not None:
            self.val_acc = MulticlassAccuracy(num_classes, average="micro", ignore_index=PADDING, validate_args=False)
            self.test_acc = self.val_acc.clone()
        self.register_buffer("class_weights", None, persistent=False)  # (K,) float32, for imbalanced data
        self._train_loss_sum: Tensor | float = 0.0
        self._train_batches = 0

    def __setattr__(self, name: str, value: Any) -> None:
        # torch's __setattr__ takes 8 us, and Lightning sets 45 plain attributes in each step.
        if name in self.__dict__ and (value is None or type(value) in PLAIN):
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    # --- the loss -------------------------------------------------------------------------------------------------

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the training loss, a scalar: cross-entropy for classification, squared error for regression.

        Args:
            output: (B, K) float.
            target: (B,) int64 class indices, or (B, K) float.
        """
        if self.task == "classification":
            return F.cross_entropy(output, target, weight=self.class_weights, reduction=self.reduction)
        return F.mse_loss(output, target, reduction=self.reduction)

    def loss_per_sample(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the unweighted loss of each row, (B,); padding rows have loss 0."""
        if self.task == "classification":
            return F.cross_entropy(output, target, reduction="none", ignore_index=PADDING)
        rows = F.mse_loss(output, target, reduction="none").masked_fill(target.isnan(), 0).flatten(1)  # (B, K)
        return rows.sum(1) if self.reduction == "sum" else rows.mean(1)

    # --- the steps ------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        data = getattr(self.trainer, "datamodule", None)
        self.check_data(data)
        if (weights := getattr(data, "class_weights", None)) is not None:
            self.class_weights = weights.to(self.device)
        if self.trainer.strategy.root_device.type != "mps":  # MPS has no float64; self.device is still the CPU
            self.val_loss.set_dtype(torch.float64)
            self.test_loss.set_dtype(torch.float64)
        for metric in self.children():
            if isinstance(metric, Metric):  # it holds inference tensors after an earlier validation
                metric.reset()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = self.loss(self(x), y)
        self._train_loss_sum = self._train_loss_sum + loss.detach()
        self._train_batches += 1
        # self.log takes longer than a step of a small network, so it is only called when the value is written.
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # 0 if barebones
        if every and (self.global_step + 1) % every == 0:
            self.log("train_loss_step", loss.detach(), on_step=True, on_epoch=False)
        # DDP and gradient accumulation average the gradients; this factor makes the average a sum again.
        factor = self.trainer.world_size * self.trainer.accumulate_grad_batches if self.reduction == "sum" else 1
        return loss if factor == 1 else loss * factor

    # Lightning reads the signature in each step; inspecting the function each time takes 30 us.
    training_step.__signature__ = inspect.signature(training_step)  # type: ignore[attr-defined]

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        if gradient_clip_val is not None:  # Lightning's own check takes 20 us
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    @property
    def epoch_loss_sum_and_count(self) -> tuple[float, int]:
        """Sum and number of this epoch's batch losses so far, on this rank; a resumed run sets it."""
        return float(self._train_loss_sum), self._train_batches

    @epoch_loss_sum_and_count.setter
    def epoch_loss_sum_and_count(self, value: tuple[float, int]) -> None:
        self._train_loss_sum, self._train_batches = value

    def on_train_epoch_end(self) -> None:
        if self._train_batches:
            mean = torch.as_tensor(self._train_loss_sum, device=self.device) / self._train_batches
            ranks = self.trainer.world_size
            self.log("train_loss", mean * ranks if self.reduction == "sum" else mean, sync_dist=ranks > 1)
        self._train_loss_sum, self._train_batches = 0.0, 0

    def _evaluate(self, batch: tuple[Tensor, Tensor], stage: str) -> dict[str, Tensor]:
        """Update the metrics and return ``output`` (B, K), ``target`` and ``loss`` (B,) for callbacks."""
        x, y = batch
        output = self(x)
        rows = self.loss_per_sample(output, y)
        counted = y != PADDING if self.task == "classification" else ~y.flatten(1).isnan().any(1)  # (B,)
        loss = getattr(self, f"{stage}_loss")
        loss.update(rows[counted])
        self.log(f"{stage}_loss", loss, on_step=False, on_epoch=True)
        if self.task == "classification":
            accuracy = getattr(self, f"{stage}_acc")
            accuracy.update(output, y)
            self.log(f"{stage}_acc", accuracy, on_step=False, on_epoch=True)
        return {"output": output, "target": y, "loss": rows}

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        return self._evaluate(batch, "val")

    def on_validation_epoch_end(self) -> None:
        if self.task == "classification":
            rows: Any = self.val_loss.rows  # on this rank
            self.samples_evaluated = int(self.trainer.strategy.reduce(rows.clone(), reduce_op="sum"))

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        return self._evaluate(batch, "test")

    def predict_step(self, batch: Any, batch_idx: int = 0) -> Tensor:
        """Return class probabilities (B, K), or the outputs (B, K) of a regression.

        Args:
            batch: inputs, or a tuple whose first element is the inputs. A single sample needs no batch dimension.
        """
        x = batch[0] if isinstance(batch, (tuple, list)) else batch
        output = self(x.unsqueeze(0) if x.ndim == self.sample_ndim else x)
        return output.softmax(-1) if self.task == "classification" else output

    # --- the optimizer --------------------------------------------------------------------------------------------

    def build_optimizers(
        self,
        optimizer: Callable[..., Optimizer],
        parameters: Iterable[nn.Parameter] | list[dict[str, Any]],
        schedule: Callable[[Optimizer], Any] | None = None,
    ) -> dict[str, Any]:
        """Return the value of ``configure_optimizers``; the user's choice replaces this optimizer and schedule.

        A parameter group may have an ``lr_factor``, by which its learning rate is multiplied.
        """
        chosen = (self.chosen_optimizer or optimizer)(parameters)
        for group in chosen.param_groups:
            group["lr"] = group["lr"] * group.get("lr_factor", 1.0)
        configured: dict[str, Any] = {"optimizer": chosen}
        schedule = self.chosen_schedule or schedule
        if schedule is not None:
            configured["lr_scheduler"] = schedule(chosen)
        return configured

    # --- pretrained networks override these -----------------------------------------------------------------------

    def load_pretrained(self) -> None:
        """Read the pretrained weights, if the model has any."""

    def features(self, x: Tensor) -> Tensor | None:
        """Return the inputs of the last layer for a batch of pictures, (B, F), or None if they are not available."""
        return None

    # --- data and checkpoint --------------------------------------------------------------------------------------

    def shape_error(self, shape: tuple[int, ...]) -> str | None:
        """Return why the model cannot use samples of this shape (without batch dimension), or None if it can."""
        expected = (self.hparams["in_features"],) if self.sample_ndim == 1 else shape
        return None if shape == expected else f"it takes rows of {expected}, not {shape} (--model.in_features)"

    def check_data(self, data: Any) -> None:
        """Check that the data module has the model's task and sample shape, if it defines them.

        Raises:
            ModelError: the data do not fit the model.
        """
        model_name, data_name = type(self).__name__, type(data).__name__
        task = getattr(data, "task", self.task)
        if task != self.task:
            raise ModelError(
                f"{model_name} is a {self.task} network, but {data_name} has {task} data: "
                "choose another --model or --data"
            )
        shape = getattr(data, "sample_shape", None)
        if shape is not None and (reason := self.shape_error(tuple(shape))):
            raise ModelError(f"{model_name} cannot use the samples of {data_name}: {reason}")

    @property
    def has_trainer(self) -> bool:
        """True if the model has a Trainer; otherwise ``self.trainer`` raises an error."""
        try:
            return self.trainer is not None
        except RuntimeError:
            return False

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        data = getattr(self.trainer, "datamodule", None) if self.has_trainer else None
        spec: Any = getattr(data, "preprocessing", None)
        plain = spec.to_dict() if hasattr(spec, "to_dict") else spec  # a user's data module may have a plain dict
        class_names = getattr(data, "class_names", self.class_names)
        checkpoint["lit"] = {
            "model_class": type(self).__name__,
            "data_class": type(data).__name__ if data is not None else None,
            "task": self.task,
            "class_names": list(class_names) if class_names else None,
            "preprocessing": plain or self.preprocessing,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        about = checkpoint.get("lit", {})
        self.class_names = tuple(about["class_names"]) if about.get("class_names") else self.class_names
        self.preprocessing = about.get("preprocessing") or self.preprocessing
