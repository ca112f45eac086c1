"""The base class of all models: training and evaluation steps, metrics, checkpoint contents.

Letters in the shapes of all model files: B batch, C channels, H height, W width, F features, K classes or outputs.
"""

import contextlib
import math
import os
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.optim import Optimizer
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.utilities import dim_zero_cat

PLAIN_TYPES = (str, int, float, tuple, Tensor)  # values that nn.Module does not register, unlike parameters and modules
PADDING = -1
"""Class of a padding row; its float targets are NaN. Ranks with fewer samples get such rows; metrics ignore them."""


def read_attribute(own: Any, name: str, default: Any = None) -> Any:
    """Return an attribute, or ``default`` if it is missing or not ready, as some are before ``setup``."""
    with contextlib.suppress(AttributeError, LookupError, TypeError, RuntimeError, AssertionError):
        value = getattr(own, name, default)
        if name == "class_names" and value is not None:  # it may be a dict, or an array of numpy
            return tuple(map(str, value.values() if isinstance(value, dict) else value))
        return tuple(value) if name == "sample_shape" and value is not None else value
    return default


class ModelError(ValueError):
    """The model cannot be built or cannot use the data. The message is one line that says what to change."""


class EvaluationLoss(Metric):
    """Compute the mean or the sum of the losses of all samples, the same on any number of devices.

    :func:`math.fsum` rounds only once, so the order of the batches has no effect. The samples of a batch must not
    depend on the number of devices, as in the data modules of this project.
    """

    full_state_update = False
    batch_sums: list[Tensor] | Tensor
    sample_count: Tensor

    def __init__(self, reduction: str) -> None:
        super().__init__()
        self.reduction = reduction
        self.add_state("batch_sums", [], dist_reduce_fx="cat")
        self.add_state("sample_count", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, losses: Tensor) -> None:
        """Add the losses of one batch, (n,) float; n may be 0."""
        assert isinstance(self.batch_sums, list)
        self.batch_sums.append(losses.sum(dtype=self.dtype).view(1))
        self.sample_count += len(losses)

    def compute(self) -> Tensor:
        """Return the mean or the sum, a scalar. The mean of no samples is NaN."""
        total = torch.tensor(math.fsum(dim_zero_cat(self.batch_sums).tolist()), dtype=self.dtype, device=self.device)
        return total / self.sample_count if self.reduction == "mean" else total


class LitBase(LightningModule):
    """Define the training, validation, test and prediction steps of a classifier or a regression network.

    A subclass defines ``__init__``, which ends with ``make_metrics``, ``forward`` and ``configure_optimizers``. With
    ``--optimizer`` or ``--lr_scheduler``, this must return the result of ``build_optimizers``.

    Logged values:
        - ``train_loss``: mean of the losses of the epoch's batches. With ``reduction = "sum"`` the loss of a batch is
          the sum over its samples on all devices.
        - ``train_loss_step``: loss of one batch on rank 0, every ``log_every_n_steps`` steps.
        - ``val_loss``, ``test_loss``: mean (or sum) of the losses of all samples.
        - ``val_acc``, ``test_acc``: accuracy, 0 to 1; only for classifiers.
    """

    task: Literal["classification", "regression"] = "classification"
    reduction: Literal["mean", "sum"] = "mean"
    samples_evaluated: int | None = None  # in the last validation of a classifier, on all devices together
    default_data = "ShapesDataModule"  # used if the command has no --data
    default_epochs = 5  # used if the command has no --max_epochs, --max_steps or --max_time
    default_batch_size = 4  # used by ImageFolderDataModule if it has no batch_size
    sample_ndim = 3  # number of dimensions of one sample: 3 for a picture (C, H, W), 1 for a row of features (F,)
    skips_layers = False  # True if some training steps leave out layers; DDP then needs find_unused_parameters
    same_random_numbers_on_all_ranks = False  # True if all devices must draw the same random numbers in a step
    preprocessing: dict[str, Any] | None = None
    """How a picture is converted to an input of the network: ``image_size`` and ``resize_size`` (pixels), ``mean`` and
    ``std`` (per channel, for pixels in [0, 1]), ``interpolation``, ``resize``. It is saved in checkpoints."""
    class_names: tuple[str, ...] | None = None  # in the order of the outputs, from the checkpoint or the data
    fixed_features = False  # True if features() returns the same in each epoch, so that it is computed only once
    wants_augmentation = False  # True if training photos are augmented when --data.augment is not given
    chosen_optimizer: Callable[..., Optimizer] | None = None
    """Function that builds the optimizer from parameters or parameter groups, if the command has ``--optimizer``."""
    chosen_schedule: Callable[[Optimizer], dict[str, Any]] | None = None
    """Function that builds Lightning's ``lr_scheduler`` dictionary, if the command has ``--lr_scheduler``."""
    epoch_losses: tuple[Tensor | float, int] = (0.0, 0)
    """Sum and number of the batch losses on this rank in the current epoch. A resumed run restores both."""
    temperature = 1.0  # the logits are divided by it before predict_step's softmax; fitted after training
    label_smoothing = 0.0  # share of each training target that is spread evenly over all classes

    def make_metrics(self, num_classes: int | None = None) -> None:
        """Create the metrics of validation and test. ``num_classes`` is for classifiers only."""
        self.val_loss = EvaluationLoss(self.reduction)
        self.test_loss = EvaluationLoss(self.reduction)
        if num_classes is not None:
            self.val_acc = MulticlassAccuracy(num_classes, average="micro", ignore_index=PADDING, validate_args=False)
            self.test_acc = self.val_acc.clone()
        # (K,) float32, from the data. Not a buffer: averaged weights are matched with the model's by position.
        self.class_weights: Tensor | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        # For speed: nn.Module's __setattr__ takes 8 us per call, and Lightning sets an attribute 44 times per step.
        if name in self.__dict__ and (value is None or type(value) in PLAIN_TYPES):
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the training loss, a scalar: cross-entropy for a classifier, squared error for a regression.

        ``output`` is (B, K) float. ``target`` is (B,) int64 class indices, or (B, K) float values or probabilities.
        Neither has padding rows.
        """
        if self.task == "classification":
            weights = None if self.class_weights is None else self.class_weights.to(output)
            smoothing = self.label_smoothing
            return F.cross_entropy(output, target, weights, reduction=self.reduction, label_smoothing=smoothing)
        return F.mse_loss(output, target, reduction=self.reduction)

    def loss_per_sample(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the :meth:`loss` of each sample without class weights, (B,). The loss of a padding row is 0."""
        if self.task == "classification":
            return F.cross_entropy(output, target, reduction="none", ignore_index=PADDING)
        errors = F.mse_loss(output, target, reduction="none").masked_fill(target.isnan(), 0).flatten(1)  # (B, K)
        return errors.sum(1) if self.reduction == "sum" else errors.mean(1)

    def setup(self, stage: str) -> None:
        data = getattr(self.trainer, "datamodule", None)
        self.check_data(data)
        if (weights := getattr(data, "class_weights", None)) is not None:
            self.class_weights = weights
        # MPS has no float64. The strategy has the final device: in setup() the model can still be on the CPU.
        if self.trainer.strategy.root_device.type != "mps":
            self.val_loss.set_dtype(torch.float64)
            self.test_loss.set_dtype(torch.float64)
        if self.task == "classification" and type(self).validation_step is LitBase.validation_step:
            _ = self.val_acc  # an AttributeError now, not after the first epoch
        for metric in self.children():
            if isinstance(metric, Metric):  # an earlier validation can leave inference tensors, which are read-only
                metric.reset()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = self.loss(self(x), y)
        if self.epoch_losses[1] <= batch_idx:  # LBFGS computes the loss several times a step: count the first
            self.epoch_losses = self.epoch_losses[0] + loss.detach(), self.epoch_losses[1] + 1
        # self.log takes longer than a step of a small network, so it is called only in the steps whose loss is logged.
        trainer = self.trainer
        log_interval = trainer.log_every_n_steps  # type: ignore[attr-defined]  # 0 with Trainer(barebones=True)
        if log_interval and (trainer.global_step + 1) % log_interval == 0:
            self.log("train_loss_step", loss.detach(), on_step=True, on_epoch=False)
        # DDP and gradient accumulation average the gradients. For a summed loss, the scale turns this mean into a sum.
        scale = trainer.world_size * trainer.accumulate_grad_batches if self.reduction == "sum" else 1
        return loss if scale == 1 else loss * scale

    def on_train_epoch_end(self) -> None:
        (loss_sum, batches), self.epoch_losses = self.epoch_losses, (0.0, 0)
        if batches:
            mean = torch.as_tensor(loss_sum, device=self.device) / batches
            ranks = self.trainer.world_size
            # sync_dist averages over the ranks; `mean * ranks` makes this average a sum.
            self.log("train_loss", mean * ranks if self.reduction == "sum" else mean, sync_dist=ranks > 1)

    def _evaluate(self, batch: tuple[Tensor, Tensor], stage: str) -> dict[str, Tensor]:
        """Update the metrics. Return ``output``, ``target`` and the ``loss`` of each sample, (B,), for callbacks."""
        x, y = batch
        output = self(x)
        losses = self.loss_per_sample(output, y)
        is_sample = y != PADDING if self.task == "classification" else ~y.flatten(1).isnan().any(1)  # (B,)
        loss_metric = getattr(self, f"{stage}_loss")
        loss_metric.update(losses[is_sample])
        self.log(f"{stage}_loss", loss_metric, on_step=False, on_epoch=True)
        if self.task == "classification":
            accuracy_metric = getattr(self, f"{stage}_acc")
            accuracy_metric.update(output, y)
            self.log(f"{stage}_acc", accuracy_metric, on_step=False, on_epoch=True)
        return {"output": output, "target": y, "loss": losses}

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        return self._evaluate(batch, "val")

    def on_validation_epoch_end(self) -> None:
        if self.task == "classification":
            count: Any = self.val_loss.sample_count  # samples on this rank
            self.samples_evaluated = int(self.trainer.strategy.reduce(count.clone(), reduce_op="sum"))

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        return self._evaluate(batch, "test")

    def predict_step(self, batch: Any, batch_idx: int = 0) -> Tensor:
        """Return calibrated class probabilities (B, K), or the outputs (B, K) of a regression.

        The class of the largest logit always has the largest probability, also where rounding would make two equal.
        ``batch`` is the inputs, or a tuple or list that begins with them. A single sample may have no batch dimension.
        """
        x = batch[0] if isinstance(batch, (tuple, list)) else batch
        output = self(x.unsqueeze(0) if x.ndim == self.sample_ndim else x)
        if self.task != "classification":
            return output
        probabilities = (output / self.temperature).softmax(-1)
        top = output.argmax(-1, keepdim=True)
        largest = probabilities.gather(-1, top)
        others = probabilities.minimum(largest * (1 - torch.finfo(largest.dtype).eps))
        return others.scatter(-1, top, largest)

    def build_optimizers(
        self,
        optimizer: Callable[..., Optimizer],
        parameters: Iterable[nn.Parameter] | list[dict[str, Any]],
        schedule: Callable[[Optimizer], Any] | None = None,
    ) -> dict[str, Any]:
        """Build the optimizer and the learning rate schedule; ``configure_optimizers`` returns the result.

        Args:
            optimizer: builds the optimizer from ``parameters``, unless ``chosen_optimizer`` is set.
            parameters: parameters or parameter groups. The learning rate of a group is multiplied by its ``lr_factor``.
            schedule: builds the schedule from the optimizer, unless ``chosen_schedule`` is set.
        """
        built = (self.chosen_optimizer or optimizer)(parameters)
        for group in built.param_groups:
            group["lr"] = group["lr"] * group.get("lr_factor", 1.0)
        schedule = self.chosen_schedule or schedule
        return {"optimizer": built} if schedule is None else {"optimizer": built, "lr_scheduler": schedule(built)}

    def load_pretrained(self) -> None:
        """Load the pretrained weights into the model. The default does nothing."""

    def features(self, x: Tensor) -> Tensor | None:
        """Return the inputs of the last layer, (B, F), for a batch of pictures, without gradient; None if unknown.

        By default, the last layer is the nn.Linear whose outputs the model returns, as they are or as log_softmax.
        """
        calls: list[tuple[Tensor, Tensor]] = []

        def keep(layer: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(layer, nn.Linear) and inputs and inputs[0].ndim == 2:
                calls.append((inputs[0], output))

        with torch.no_grad(), register_module_forward_hook(keep):
            outputs = self(x)
        for inputs, logits in reversed(calls) if isinstance(outputs, Tensor) else ():
            if logits.equal(outputs) or logits.log_softmax(1).equal(outputs):
                return inputs
        return None

    def shape_error(self, shape: tuple[int, ...]) -> str | None:
        """Return None if the model can use samples of this shape (without batch dimension), otherwise the reason.

        The default accepts all pictures. For rows, it checks ``in_features`` if the model has this argument.
        """
        expected = (self.hparams.get("in_features", *shape[:1]),) if self.sample_ndim == 1 else shape
        return None if shape == expected else f"it needs rows of shape {expected}, not {shape} (--model.in_features)"

    def check_data(self, data: Any) -> None:
        """Raise a ModelError if the ``task`` or the ``sample_shape`` of the data module does not fit the model."""
        model_name, data_name = type(self).__name__, type(data).__name__
        task = read_attribute(data, "task")
        if task in ("classification", "regression") and task != self.task:
            problem = f"{model_name} is a {self.task} network, but {data_name} has {task} data"
            raise ModelError(f"{problem}: choose another --model or --data")
        shape = read_attribute(data, "sample_shape")
        if shape is not None and (reason := self.shape_error(tuple(shape))):
            raise ModelError(f"{model_name} cannot use the samples of {data_name}: {reason}")
        self.class_names = self.class_names or read_attribute(data, "class_names")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["lit"] = class_record(self, read_attribute(read_attribute(self, "trainer"), "datamodule"))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint.get("lit", {})
        self.class_names = tuple(saved["class_names"]) if saved.get("class_names") else self.class_names
        self.preprocessing = saved.get("preprocessing") or self.preprocessing
        self.temperature = (saved.get("calibration") or {}).get("temperature", 1.0)


def dotted_path(kind: type) -> str:
    """Return the module and the name of a class, for example ``mine.Wide``."""
    return f"{kind.__module__}.{kind.__qualname__}"


def class_record(model: Any, data: Any) -> dict[str, Any]:
    """Return what a checkpoint contains so that its model and its data module can be created again: plain values.

    The arguments are those that fit.py gave to the constructors. ``data`` is a LightningDataModule or None.
    """
    preprocessing: Any = read_attribute(data, "preprocessing")  # a Preprocessing, or a dict of a user's data module
    as_dict = preprocessing.to_dict() if hasattr(preprocessing, "to_dict") else preprocessing
    names = read_attribute(data, "class_names", read_attribute(model, "class_names"))
    return {
        "model_class": dotted_path(type(model)),
        "data_class": dotted_path(type(data)) if data is not None else None,
        "trains_on_all": read_attribute(data, "trains_on_all", False),
        "seed": int(os.environ["PL_GLOBAL_SEED"]) if "PL_GLOBAL_SEED" in os.environ else None,
        "task": getattr(model, "task", None),
        "class_names": list(names) if names else None,
        "preprocessing": as_dict if isinstance(as_dict, dict) else getattr(model, "preprocessing", None),
        "model_arguments": getattr(model, "constructor_arguments", None),
        "data_arguments": getattr(data, "constructor_arguments", None),
    }
