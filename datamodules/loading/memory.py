"""Keep images in memory as uint8. All images of a batch are read, augmented and normalized at once."""

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.loading.augmentation import FLIP_SHIFT_CUTOUT, Augmentation
from datamodules.loading.device import Tensors, TwoStageDataset
from datamodules.loading.order import PADDING
from datamodules.loading.seeds import combine_seeds, combine_with_run_seed, draw_uniform
from datamodules.preprocessing import Preprocessing

SHIFT = 4  # pixels, as in He et al. 2015 for CIFAR-10
CUTOUT = 8  # side in pixels; DeVries and Taylor 2017 used 16 for CIFAR-10


class Pictures(TwoStageDataset):
    """A dataset of small ``images`` (N, C, H, W) uint8 with ``labels`` (N,) int64.

    A batch is images (B, C, H, W) float32 and labels (B,) int64. ``augment`` are names of augmentations. They depend on
    ``seed``, the seed of the run, the epoch and the index of the picture.
    """

    samples_per_fetch = 128  # fetch small batches together: one call costs more time than copying four images

    def __init__(
        self, images: Tensor, labels: Tensor, preprocessing: Preprocessing, augment: tuple[str, ...] = (), seed: int = 0
    ) -> None:
        self.images, self.labels = images, labels
        self.mean, self.std = preprocessing.mean, preprocessing.std
        self.augment, self.seed = augment, combine_with_run_seed(seed)
        self.augmentation = Augmentation(augment, preprocessing)

    def read(self, keys: Tensor) -> Tensors:
        indices = keys % len(self)
        # index_select is ten times as fast as images[indices]
        return self.images.index_select(0, indices), self.labels.index_select(0, indices), keys

    def finish(self, images: Tensor, labels: Tensor, keys: Tensor) -> Tensors:  # type: ignore[override]
        if self.augment == FLIP_SHIFT_CUTOUT:
            images = flip_shift_cutout(images, draw_uniform(self.seed, keys, 5))
        elif self.augment:
            seeds = [combine_seeds(self.seed, key) for key in keys.tolist()]
            images = torch.stack([self.augmentation(image, seed) for image, seed in zip(images, seeds, strict=True)])
        return normalize(images, self.mean, self.std), labels.masked_fill(keys == PADDING, PADDING)


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Scale (..., C, H, W) uint8 to [0, 1] float32, subtract ``mean`` and divide by ``std`` per channel."""
    factor, offset = _factor_and_offset(tuple(mean), tuple(std), images.device)
    return images.to(torch.float32, memory_format=torch.contiguous_format).mul_(factor).sub_(offset)


@functools.cache
def _factor_and_offset(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Any, Any]:
    """Return factor and offset, so that pixel * factor - offset is the normalized pixel. Pixels are 0 to 255."""
    if len(set(mean)) == 1 and len(set(std)) == 1:  # computing with scalars is three times as fast
        return 1 / (255 * std[0]), mean[0] / std[0]
    mean_tensor, std_tensor = torch.tensor(mean).view(-1, 1, 1), torch.tensor(std).view(-1, 1, 1)
    return (1 / (255 * std_tensor)).to(device), (mean_tensor / std_tensor).to(device)


def flip_shift_cutout(images: Tensor, numbers: Tensor) -> Tensor:
    """Flip each image with probability 1/2, shift it by up to SHIFT pixels and set a square of side CUTOUT to 0.

    ``images``: (B, C, H, W) uint8. ``numbers``: (B, 5) float32, random in [0, 1), for flip, vertical and horizontal
    shift, row and column of the square.
    """
    batch, channels, height, width = images.shape
    down, right = ((numbers[:, i] * (2 * SHIFT + 1)).long() for i in (1, 2))  # (B,) in 0 .. 2 * SHIFT
    rows = torch.arange(height, device=images.device) + down[:, None]  # (B, H), row indices in the padded image
    columns = torch.arange(width, device=images.device)[None].expand(batch, -1)
    columns = torch.where(numbers[:, :1] < 0.5, columns.flip(1), columns) + right[:, None]  # (B, W)
    padded = F.pad(images, [SHIFT] * 4)
    flat_indices = (rows[:, :, None] * (width + 2 * SHIFT) + columns[:, None, :]).view(batch, 1, -1)  # (B, 1, H*W)
    images = padded.flatten(2).gather(2, flat_indices.expand(-1, channels, -1)).view(batch, channels, height, width)
    top, left = ((numbers[:, i] * size).long() - CUTOUT // 2 for i, size in ((3, height), (4, width)))
    in_rows = (torch.arange(height, device=images.device) - top[:, None]).unsqueeze(2)  # (B, H, 1)
    in_columns = (torch.arange(width, device=images.device) - left[:, None]).unsqueeze(1)  # (B, 1, W)
    is_cut_out = (in_rows >= 0) & (in_rows < CUTOUT) & (in_columns >= 0) & (in_columns < CUTOUT)  # (B, H, W)
    return images.masked_fill(is_cut_out.unsqueeze(1), 0)
