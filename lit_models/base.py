"""What every model here shares: the steps, the metrics and what a checkpoint says about itself.

Letters in shape comments, here and in the model files: B batch, C channels, H height, W width, F features,
K classes or outputs.
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
"""Types of values that need none of torch's bookkeeping, once an attribute is known to be plain."""
PADDING = -1
"""Target of a row that only fills up a device's last batch; it counts for nothing (NaN in float targets)."""


class ModelError(ValueError):
    """A model that cannot be built, or cannot take the data given: one line that ends with what to type."""


class EvaluationLoss(Metric):
    """Mean or sum of the losses of all rows, the same to the last bit however the batches are spread over devices.

    A batch is summed by itself, and the sums of the batches are added without rounding (``math.fsum``), whatever order
    the devices hand them over in. On data modules whose batches do not depend on the number of devices, as those
    here, nothing else can differ between processes of one machine with as many threads each.

    Args:
        reduction: ``mean`` or ``sum``.
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
        """``losses`` (n,) float; n may be 0."""
        assert isinstance(self.sums, list)
        self.sums.append(losses.sum(dtype=self.dtype).view(1))
        self.rows += len(losses)

    def compute(self) -> Tensor:
        """A scalar of the metric's dtype; NaN where there is no row and a mean is asked for, or where a loss is."""
        total = math.fsum(dim_zero_cat(self.sums).tolist())
        value = torch.tensor(total, dtype=self.dtype, device=self.device)
        return value / self.rows if self.reduction == "mean" else value


class LitBase(LightningModule):
    """The training, validation, test and prediction steps of a classifier or a regression network.

    A leaf sets ``task`` and ``reduction``, and defines ``__init__``, ``forward`` and ``configure_optimizers``.

    Logged: ``train_loss`` (mean of the epoch's batch losses), ``train_loss_step`` (one batch, every
    ``log_every_n_steps``), ``val_loss``, ``test_loss`` and, for classifiers, ``val_acc`` and ``test_acc`` (share of
    right answers, 0 to 1). With ``reduction = "sum"`` a loss is the sum over what was evaluated, as in the source.
    """

    task: Literal["classification", "regression"] = "classification"
    reduction: Literal["mean", "sum"] = "mean"
    samples_evaluated: int | None = None
    """Rows that the last validation counted, over all devices; classifiers only."""
    default_data = "ShapesDataModule"
    """Name of the data module that ``scripts/fit.py`` takes when none is named."""
    default_epochs = 5
    """Epochs of ``scripts/fit.py`` when neither epochs nor steps nor time are given."""
    sample_ndim = 3
    """Dimensions of one sample: 3 for a picture (C, H, W), 1 for a row of features."""
    skips_layers = False
    """True where a step may leave layers unused, so that DDP has to look for them."""
    draws_per_batch = False
    """True where what a training step draws (a depth) holds for its whole batch: all devices then draw the same."""
    preprocessing: dict[str, Any] | None = None
    """How a picture becomes an input; plain values, kept in the checkpoint: ``image_size``, ``resize_size``
    (pixels), ``mean``, ``std`` (per channel, of pixels in [0, 1]), ``interpolation``."""
    class_names: tuple[str, ...] | None = None
    fixed_features = False
    """True where ``features`` gives the same for a picture in each epoch, so that they can be computed once."""
    wants_augmentation = False
    """Whether photos are augmented when the data module is not told: as the model's source does it."""

    chosen_optimizer: Callable[[list[dict[str, Any]]], Optimizer] | None = None
    """Takes the parameter groups; replaces the source's optimizer (``--optimizer``)."""
    chosen_schedule: Callable[[Optimizer], dict[str, Any]] | None = None
    """Takes the optimizer, gives Lightning's ``lr_scheduler`` dictionary (``--lr_scheduler``)."""

    class_weights: Tensor | None
    val_loss: EvaluationLoss
    test_loss: EvaluationLoss

    def _make_metrics(self, num_classes: int | None = None) -> None:
        """Metrics of the two evaluations; classifiers pass ``num_classes``. Called at the end of ``__init__``."""
        for stage in ("val", "test"):
            setattr(self, f"{stage}_loss", EvaluationLoss(self.reduction))
            if num_classes is not None:
                share = MulticlassAccuracy(num_classes, average="micro", ignore_index=PADDING, validate_args=False)
                setattr(self, f"{stage}_acc", share)
        self.register_buffer("class_weights", None, persistent=False)  # (K,) float32, for imbalanced data
        self._train_loss_sum: Tensor | float = 0.0
        self._train_batches = 0

    def __setattr__(self, name: str, value: Any) -> None:
        # torch's own __setattr__ takes 8 us, and Lightning sets 45 plain attributes a step.
        if name in self.__dict__ and (value is None or type(value) in PLAIN):
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    # --- the loss -------------------------------------------------------------------------------------------------

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The training loss, a scalar: cross-entropy for classification, squared error for regression.

        Args:
            output: (B, K) float.
            target: (B,) int64 class indices, or (B, K) float.
        """
        if self.task == "classification":
            return F.cross_entropy(output, target, weight=self.class_weights, reduction=self.reduction)
        return F.mse_loss(output, target, reduction=self.reduction)

    def loss_rows(self, output: Tensor, target: Tensor) -> Tensor:
        """The loss of each row, (B,), unweighted; a padded row has 0."""
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
        if self.trainer.strategy.root_device.type != "mps":  # which has no float64; self.device is still the CPU
            self.val_loss.set_dtype(torch.float64)
            self.test_loss.set_dtype(torch.float64)
        for metric in self.children():
            if isinstance(metric, Metric):  # a validation before this fit left inference tensors in it
                metric.reset()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = self.loss(self(x), y)
        self._train_loss_sum = self._train_loss_sum + loss.detach()
        self._train_batches += 1
        # self.log costs more than a small network's step, so it is called on written steps alone.
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # 0 (barebones): never
        if every and (self.global_step + 1) % every == 0:
            self.log("train_loss_step", loss.detach(), on_step=True, on_epoch=False)
        # DDP averages gradients over devices, accumulation over batches; a sum has to stay a sum.
        averaged = self.trainer.world_size * self.trainer.accumulate_grad_batches if self.reduction == "sum" else 1
        return loss if averaged == 1 else loss * averaged

    # Lightning reads the signature at each step; worked out anew it takes 30 us.
    training_step.__signature__ = inspect.signature(training_step)  # type: ignore[attr-defined]

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        if gradient_clip_val is not None:  # else Lightning takes 20 us to find that out
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    @property
    def epoch_losses(self) -> tuple[float, int]:
        """Sum of this epoch's batch losses so far and their number, on this rank; an epoch that goes on has it set."""
        return float(self._train_loss_sum), self._train_batches

    @epoch_losses.setter
    def epoch_losses(self, value: tuple[float, int]) -> None:
        self._train_loss_sum, self._train_batches = value

    def on_train_epoch_end(self) -> None:
        if self._train_batches:
            mean = torch.as_tensor(self._train_loss_sum, device=self.device) / self._train_batches
            ranks = self.trainer.world_size
            self.log("train_loss", mean * ranks if self.reduction == "sum" else mean, sync_dist=ranks > 1)
        self._train_loss_sum, self._train_batches = 0.0, 0

    def _evaluate(self, batch: tuple[Tensor, Tensor], stage: str) -> dict[str, Tensor]:
        """Update the metrics; return what callbacks look at: ``output`` (B, K), ``target``, ``loss`` (B,)."""
        x, y = batch
        output = self(x)
        rows = self.loss_rows(output, y)
        counted = y != PADDING if self.task == "classification" else ~y.flatten(1).isnan().any(1)  # (B,)
        mean_or_sum = getattr(self, f"{stage}_loss")
        mean_or_sum.update(rows[counted])
        self.log(f"{stage}_loss", mean_or_sum, on_step=False, on_epoch=True)
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
        """Class probabilities (B, K) summing to 1, or the regression's outputs (B, K).

        Args:
            batch: inputs, or a tuple that starts with them. One sample without a batch dimension is a batch of one.
        """
        x = batch[0] if isinstance(batch, (tuple, list)) else batch
        output = self(x.unsqueeze(0) if x.ndim == self.sample_ndim else x)
        return output.softmax(-1) if self.task == "classification" else output

    # --- the optimizer --------------------------------------------------------------------------------------------

    def with_choice(
        self,
        optimizer: Callable[..., Optimizer],
        parameters: Iterable[nn.Parameter] | list[dict[str, Any]],
        schedule: Callable[[Optimizer], Any] | None = None,
    ) -> dict[str, Any]:
        """What ``configure_optimizers`` returns: the source's optimizer and schedule, unless the user chose others.

        A parameter group may carry ``lr_factor``: its learning rate as a multiple of the optimizer's.
        """
        listed: list[Any] = list(parameters)
        groups = listed if isinstance(listed[0], dict) else [{"params": listed}]
        chosen = (self.chosen_optimizer or optimizer)(groups)
        for group in chosen.param_groups:
            group["lr"] = group["lr"] * group.get("lr_factor", 1.0)
        configured: dict[str, Any] = {"optimizer": chosen}
        if self.chosen_schedule is not None:
            configured["lr_scheduler"] = self.chosen_schedule(chosen)
        elif schedule is not None:
            configured["lr_scheduler"] = schedule(chosen)
        return configured

    # --- what a backbone has, and other networks have not -------------------------------------------------------------

    def load_pretrained(self) -> None:
        """Read pretrained weights, where there are any."""

    def features(self, x: Tensor) -> Tensor | None:
        """What the last layer sees of a batch of pictures, (B, F); None where that is not known."""
        return None

    # --- data and checkpoint --------------------------------------------------------------------------------------

    def refuse_shape(self, shape: tuple[int, ...]) -> str | None:
        """Why a sample of this shape cannot be taken, or None. ``shape`` has no batch dimension."""
        if self.sample_ndim != 1 or shape == (want := (self.hparams["in_features"],)):
            return None
        return f"it takes rows of {want}, these are {shape} (--model.in_features)"

    def check_data(self, data: Any) -> None:
        """Refuse a data module that does not fit.

        Raises:
            ModelError: naming model and data. Data modules that do not say what they give are taken as they are.
        """
        mine, theirs = type(self).__name__, type(data).__name__
        task = getattr(data, "task", self.task)
        if task != self.task:
            raise ModelError(
                f"{mine} is a {self.task} network, {theirs} holds {task} data: choose another --model or --data"
            )
        shape = getattr(data, "sample_shape", None)
        if shape is not None and (reason := self.refuse_shape(tuple(shape))):
            raise ModelError(f"{mine} cannot take the samples of {theirs}: {reason}")

    @property
    def is_attached(self) -> bool:
        """Whether a Trainer has it now; ``self.trainer`` raises where none has."""
        try:
            return self.trainer is not None
        except RuntimeError:
            return False

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        data = getattr(self.trainer, "datamodule", None) if self.is_attached else None
        spec: Any = getattr(data, "preprocessing", None)
        plain = spec.to_dict() if hasattr(spec, "to_dict") else spec  # of a data module, or its owner's own dict
        checkpoint["lit"] = {
            "model_class": type(self).__name__,
            "data_class": type(data).__name__ if data is not None else None,
            "task": self.task,
            "class_names": list(names) if (names := getattr(data, "class_names", self.class_names)) else None,
            "preprocessing": plain or self.preprocessing,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        about = checkpoint.get("lit", {})
        self.class_names = tuple(about["class_names"]) if about.get("class_names") else self.class_names
        self.preprocessing = about.get("preprocessing") or self.preprocessing
