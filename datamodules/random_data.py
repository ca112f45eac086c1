"""Generate random inputs and targets, for tutorials without real data."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.errors import DataError
from datamodules.loading.device import Tensors, TwoStageDataset
from datamodules.loading.module import SplitDataModule
from datamodules.loading.order import PADDING
from datamodules.loading.seeds import combine_seeds

NOISE = 0.1  # standard deviation of the noise in linear targets


class RepeatedRows(TwoStageDataset):
    """A dataset that repeats N inputs (N, ...) and targets (N, K), float32, in order, to ``epoch_length`` per epoch."""

    def __init__(self, inputs: Tensor, targets: Tensor, epoch_length: int) -> None:
        self.inputs, self.targets, self.epoch_length = inputs, targets, epoch_length

    def __len__(self) -> int:
        return self.epoch_length

    def read(self, keys: Tensor) -> Tensors:
        size, first = len(self.inputs), int(keys[0]) if keys.is_cpu else PADDING  # a GPU would have to wait
        start = first % self.epoch_length
        may_be_all_rows = len(keys) == size and start % size == 0 and start + size <= self.epoch_length
        if may_be_all_rows and first != PADDING and torch.equal(keys, torch.arange(first, first + size)):
            return self.inputs, self.targets, keys  # all rows in order, without a copy
        rows = keys % self.epoch_length % size  # key: epoch * epoch_length + index in the epoch
        return self.inputs.index_select(0, rows), self.targets.index_select(0, rows), keys

    def finish(self, inputs: Tensor, targets: Tensor, keys: Tensor) -> Tensors:  # type: ignore[override]
        is_padding = keys == PADDING
        if keys.is_cpu and not is_padding.any():
            return inputs, targets
        return inputs, targets.masked_fill(is_padding.unsqueeze(1), torch.nan)


class RandomDataModule(SplitDataModule):
    """Random inputs (standard normal) and float targets. The same arguments always give the same data.

    The defaults repeat one batch, as in the PyTorch tutorial "Learning PyTorch with Examples"; validation and test use
    the same rows. ``in_features=5, out_features=2, length=100, batch_size=30, steps=0`` gives the data of the tutorial
    "Data Parallelism".

    Args:
        in_features: number of values in an input, or the shape of a picture such as ``[1, 32, 32]``.
        out_features: number of values in a target.
        length: number of rows. A row is an input with its target.
        batch_size: rows per step and device.
        steps: number of batches in an epoch, in fixed order. With 0 an epoch is one shuffled pass over the rows.
        target: ``random``, ``linear`` (a linear map of the inputs plus noise; validation and test then use other rows),
            or ``count`` (1, 2, ... as in the tutorial "Neural Networks").
        seed: seed of the rows, the linear map and the order.
        on_device: keep the rows on the GPU: True, False, or ``auto``, if a quarter of its free memory is enough.

    Batches: (B, in_features) or (B, C, H, W) float32, and (B, out_features) float32.
    """

    task = "regression"
    eval_batch_size = 1
    default_model = "LitMLP"

    def __init__(
        self,
        in_features: int | Sequence[int] = 1000,
        out_features: int = 10,
        length: int = 64,
        batch_size: int = 64,
        steps: int = 500,
        target: Literal["random", "linear", "count"] = "random",
        seed: int = 0,
        on_device: bool | Literal["auto"] = "auto",
    ) -> None:
        super().__init__()
        self.sample_shape = (in_features,) if isinstance(in_features, int) else tuple(in_features)
        if min(*self.sample_shape, out_features, length, batch_size) < 1 or steps < 0:
            raise DataError("all sizes must be at least 1 and steps at least 0: --data.length 64 --data.steps 500")
        if target not in ("random", "linear", "count"):
            raise DataError(f"target must be random, linear or count, but is {target}: --data.target random")
        self.save_hyperparameters()
        self.in_features = math.prod(self.sample_shape)
        self.out_features = self.num_classes = out_features  # LitCNN has num_classes outputs
        if len(self.sample_shape) == 3:
            self.in_channels = self.sample_shape[0]
        self.shuffle = not steps
        self.sets: dict[str, Dataset] = {}

    def setup(self, stage: str) -> None:
        hparams = self.hparams
        train = self._draw(0, hparams["steps"] * self.hparams_initial["batch_size"] or hparams["length"])
        same = RepeatedRows(train.inputs, train.targets, hparams["length"])
        self.sets["train"] = train
        for stream, split in ((1, "val"), (2, "test")):
            self.sets[split] = self._draw(stream, hparams["length"]) if hparams["target"] == "linear" else same

    def _draw(self, stream: int, epoch_length: int) -> RepeatedRows:
        """Draw the rows of a split. Another ``stream`` gives other random numbers."""
        length, outputs, seed = self.hparams["length"], self.out_features, self.hparams["seed"]
        generator = torch.Generator().manual_seed(combine_seeds(seed, stream))
        inputs = torch.randn(length, *self.sample_shape, generator=generator)
        if self.hparams["target"] == "count":
            targets = torch.arange(1.0, outputs + 1).repeat(length, 1)
        else:
            targets = torch.randn(length, outputs, generator=generator)
        if self.hparams["target"] == "linear":
            weight_generator = torch.Generator().manual_seed(combine_seeds(seed, -1))  # one linear map for all splits
            weight = torch.randn(self.in_features, outputs, generator=weight_generator)
            targets = inputs.flatten(1) @ weight + NOISE * targets
        return RepeatedRows(inputs, targets, epoch_length)
