"""Random rows: the data of the tutorials that are about the network, not about data."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.errors import DataError
from datamodules.loading.module import SplitDataModule
from datamodules.loading.order import PADDING
from datamodules.loading.seeds import mix

NOISE = 0.1  # standard deviation of what the linear map does not explain


class Rows(Dataset):
    """(N, ...) float32 inputs and (N, K) float32 targets, gone round until ``draws`` rows make an epoch."""

    samples_at_once = 0  # a batch: it may be the fixed one

    def __init__(self, inputs: Tensor, targets: Tensor, draws: int) -> None:
        self.inputs, self.targets, self.draws = inputs, targets, draws

    def __len__(self) -> int:
        return self.draws

    def __getitem__(self, key: int) -> tuple[Tensor, Tensor]:
        row = key % self.draws % len(self.inputs)  # each epoch begins with the first row
        return self.inputs[row], self.targets[row]

    def __getitems__(self, keys: list[int]) -> tuple[Tensor, Tensor]:
        first, size = keys[0], len(self.inputs)
        whole = first % self.draws % size == 0 and first % self.draws + size <= self.draws
        if whole and first != PADDING and keys == list(range(first, first + size)):
            return self.inputs, self.targets  # the fixed batch: nothing to copy
        wanted = torch.tensor(keys)
        rows = wanted % self.draws % size
        targets = self.targets.index_select(0, rows)
        if PADDING in keys:
            targets = targets.masked_fill((wanted == PADDING).unsqueeze(1), torch.nan)
        return self.inputs.index_select(0, rows), targets


class RandomDataModule(SplitDataModule):
    """Standard normal inputs with float targets, drawn once from a seed.

    The defaults are the fixed batch of the PyTorch tutorial "Learning PyTorch with Examples": 64 x 1000 -> 64 x 10,
    repeated ``steps`` times an epoch; the source holds nothing back, so validation is on that same batch. With
    ``steps=0`` an epoch goes once through ``length`` shuffled rows, as in the tutorial "Data Parallelism"
    (``in_features=5, out_features=2, length=100, batch_size=30``); its rows have no targets, so ``target="linear"``
    gives them a fixed linear map plus noise, and validation and test are fresh draws of the same map.

    Args:
        in_features: size of a row, or the shape of a picture such as ``[1, 32, 32]``.
        out_features: size of a target.
        length: number of rows.
        batch_size: rows per step and device.
        steps: batches an epoch, all from the start of the rows in order; 0 for shuffled epochs.
        target: ``random`` (standard normal), ``linear`` or ``count`` (1, 2, ... as in "Neural Networks").
        seed: of the rows, the map and the order.

    Batches: (B, in_features) float32 and (B, out_features) float32.

    Raises:
        DataError: an argument out of its range.
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
    ) -> None:
        super().__init__()
        self.sample_shape = (in_features,) if isinstance(in_features, int) else tuple(in_features)
        if min(*self.sample_shape, out_features, length, batch_size) < 1 or steps < 0:
            raise DataError(
                "sizes start at 1 and steps at 0: --data.in_features 1000 --data.length 64 --data.steps 500"
            )
        if target not in ("random", "linear", "count"):
            raise DataError(f"target is random, linear or count, not {target}: --data.target random")
        self.save_hyperparameters()
        self.shuffle = not steps
        self.sets: dict[str, Dataset] = {}

    @property
    def in_features(self) -> int:
        return torch.Size(self.sample_shape).numel()

    @property
    def out_features(self) -> int:
        return self.hparams["out_features"]

    @property
    def num_classes(self) -> int:
        """For classifiers trained on float targets: as many outputs as targets."""
        return self.out_features

    @property
    def in_channels(self) -> int:
        if len(self.sample_shape) != 3:
            raise AttributeError("rows have no channels")
        return self.sample_shape[0]

    def setup(self, stage: str) -> None:
        if self.sets:
            return
        hparams = self.hparams
        self.sets["train"] = self._draw(0, hparams["steps"] * hparams["batch_size"] or hparams["length"])
        for number, split in ((1, "val"), (2, "test")):
            self.sets[split] = self._draw(number if hparams["target"] == "linear" else 0, hparams["length"])

    def _draw(self, split: int, draws: int) -> Rows:
        length, outputs, seed = self.hparams["length"], self.out_features, self.hparams["seed"]
        generator = torch.Generator().manual_seed(mix(seed, split))
        inputs = torch.randn(length, *self.sample_shape, generator=generator)
        if self.hparams["target"] == "count":
            targets = torch.arange(1.0, outputs + 1).repeat(length, 1)
        else:
            targets = torch.randn(length, outputs, generator=generator)
        if self.hparams["target"] == "linear":
            shared = torch.Generator().manual_seed(mix(seed, -1))
            weight = torch.randn(self.in_features, outputs, generator=shared)
            targets = inputs.flatten(1) @ weight + NOISE * targets
        return Rows(inputs, targets, draws)
