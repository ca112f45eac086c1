"""Pictures in memory: uint8, indexed, augmented and normalised a whole batch at a time."""

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.loading.order import PADDING
from datamodules.loading.seeds import run_seed, uniforms
from datamodules.preprocessing import Preprocessing

SHIFT = 4
"""Pixels by which an augmented 32x32 picture moves at most, as in He et al. 2015 (ResNet on CIFAR-10)."""
CUTOUT = 8
"""Side in pixels of the square that an augmented 32x32 picture loses (DeVries and Taylor 2017, halved)."""


class Pictures(Dataset):
    """A set of small pictures in memory.

    Args:
        images: (N, C, H, W) uint8.
        labels: (N,) int64.
        preprocessing: its mean and std are used; the pictures have their size already.
        augment: flip, shift and cut out each picture anew in each epoch.
        seed: of the augmentation, which is a function of (seed, run's seed, epoch, index).
        indices: (M,) int64, the pictures that belong to this set; all when not given. Nothing is copied.

    ``dataset[key]`` is one picture (C, H, W) float32 and its label; ``__getitems__(keys)`` a batch: (B, C, H, W)
    float32 and (B,) int64, -1 where the key is padding.
    """

    samples_at_once = 128  # a call for four pictures takes longer than copying them

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        preprocessing: Preprocessing,
        augment: bool = False,
        seed: int = 0,
        indices: Tensor | None = None,
    ) -> None:
        self.images, self.labels = images, labels
        self.mean, self.std = preprocessing.mean, preprocessing.std
        self.augment, self.seed = augment, run_seed(seed)
        self.indices = indices

    def __len__(self) -> int:
        return len(self.labels if self.indices is None else self.indices)

    def __getitem__(self, key: int) -> tuple[Tensor, Tensor]:
        images, labels = self.__getitems__([key])
        return images[0], labels[0]

    def __getitems__(self, keys: list[int]) -> tuple[Tensor, Tensor]:
        wanted = torch.tensor(keys)
        indices = wanted % len(self)
        if self.indices is not None:
            indices = self.indices.index_select(0, indices)
        # index_select: ten times as fast as images[indices]
        images, labels = self.images.index_select(0, indices), self.labels.index_select(0, indices)
        if self.augment:
            images = flip_shift_cutout(images, uniforms(self.seed, wanted, 5))
        if PADDING in keys:
            labels = labels.masked_fill(wanted == PADDING, PADDING)
        return normalize(images, self.mean, self.std), labels


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(..., C, H, W) uint8 -> float32: pixels in [0, 1], less ``mean``, over ``std``, per channel."""
    factor, offset = _factor_and_offset(tuple(mean), tuple(std))
    return images.to(torch.float32, memory_format=torch.contiguous_format).mul_(factor).sub_(offset)


@functools.cache
def _factor_and_offset(mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[Any, Any]:
    if len(set(mean)) == 1 and len(set(std)) == 1:  # one scalar: three times as fast
        return 1 / (255 * std[0]), mean[0] / std[0]
    centre, spread = torch.tensor(mean).view(-1, 1, 1), torch.tensor(std).view(-1, 1, 1)
    return 1 / (255 * spread), centre / spread


def flip_shift_cutout(images: Tensor, numbers: Tensor) -> Tensor:
    """Mirror each picture or not, move it by up to :data:`SHIFT` pixels (edges filled with 0), cut a square out.

    Args:
        images: (B, C, H, W) uint8.
        numbers: (B, 5) float32 in [0, 1): flip, shift down, shift right, the square's row and column.
    """
    batch, channels, height, width = images.shape
    down, right = ((numbers[:, i] * (2 * SHIFT + 1)).long() for i in (1, 2))  # (B,) in 0 .. 2 * SHIFT
    rows = torch.arange(height) + down[:, None]  # (B, H) into the padded picture
    columns = torch.arange(width)[None].expand(batch, -1)
    columns = torch.where(numbers[:, :1] < 0.5, columns.flip(1), columns) + right[:, None]  # (B, W)
    padded = F.pad(images, [SHIFT] * 4)
    flat = (rows[:, :, None] * (width + 2 * SHIFT) + columns[:, None, :]).view(batch, 1, -1)  # (B, 1, H*W)
    images = padded.flatten(2).gather(2, flat.expand(-1, channels, -1)).view(batch, channels, height, width)
    top, left = ((numbers[:, i] * size).long() - CUTOUT // 2 for i, size in ((3, height), (4, width)))
    in_rows = (torch.arange(height) - top[:, None]).unsqueeze(2)  # (B, H, 1)
    in_columns = (torch.arange(width) - left[:, None]).unsqueeze(1)  # (B, 1, W)
    hole = (in_rows >= 0) & (in_rows < CUTOUT) & (in_columns >= 0) & (in_columns < CUTOUT)  # (B, H, W)
    return images.masked_fill(hole.unsqueeze(1), 0)
