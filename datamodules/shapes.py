"""Generate pictures of shapes."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.errors import DataError
from datamodules.loading.augmentation import FLIP_SHIFT_CUTOUT, read_names
from datamodules.loading.memory import Pictures
from datamodules.loading.module import SplitDataModule
from datamodules.loading.seeds import combine_seeds
from datamodules.preprocessing import Preprocessing

SIZE = 32  # height and width of a picture in pixels
MIN_RADIUS, MAX_SHIFT = 9.0, 2.0  # pixels; with smaller shapes or larger shifts, some seeds learn late


def _radius(x: Tensor, y: Tensor) -> Tensor:
    return (x**2 + y**2).sqrt()


def _half_side(x: Tensor, y: Tensor) -> Tensor:
    """Return half the side of the centered square whose border contains (x, y)."""
    return torch.maximum(x.abs(), y.abs())


SHAPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "disc": lambda x, y: _radius(x, y) < 0.9,
    "square": lambda x, y: _half_side(x, y) < 0.8,
    "triangle": lambda x, y: (y < 0.7) & (y > 1.9 * x.abs() - 0.95),
    "plus": lambda x, y: (_half_side(x, y) < 0.95) & (torch.minimum(x.abs(), y.abs()) < 0.3),
    "ring": lambda x, y: (_radius(x, y) < 0.95) & (_radius(x, y) > 0.55),
    "frame": lambda x, y: (_half_side(x, y) < 0.85) & (_half_side(x, y) > 0.5),
    "half": lambda x, y: (_radius(x, y) < 0.95) & (y > 0),
    "bar": lambda x, y: (x.abs() < 0.3) & (y.abs() < 0.95),
    "star": lambda x, y: _radius(x, y) < 0.6 + 0.35 * (5 * (torch.atan2(y, x) + math.pi / 2)).cos(),
    "crescent": lambda x, y: (_radius(x, y) < 0.95) & (_radius(x - 0.4, y) > 0.75),
}
"""For each class, a function that returns True for points (x, y) inside the shape. Shapes fit into [-1, 1]."""
CLASS_NAMES = tuple(SHAPES)


class ShapesDataModule(SplitDataModule):
    """Pictures of ten shapes with random position, size, rotation, colors and noise, in the format of CIFAR10.

    Args:
        train_size: number of training pictures.
        val_size: number of validation pictures, and also the number of test pictures.
        batch_size: pictures per step and device.
        channels: 3 (color) or 1 (gray).
        augment: True (flip, shift and cutout of training pictures), or some of ``crop,flip,rotate,color,trivial``.
        seed: seed of the pictures, the order and the augmentation.
        on_device: keep the pictures on the GPU: True, False, or ``auto``, if a quarter of its free memory is enough.

    Batches: (B, channels, 32, 32) float32 in [-1, 1] and (B,) int64.
    """

    task = "classification"
    class_names = CLASS_NAMES
    num_classes = len(CLASS_NAMES)

    def __init__(
        self,
        train_size: int = 6000,
        val_size: int = 1000,
        batch_size: int = 4,
        channels: int = 3,
        augment: bool | list[str] | str = False,
        seed: int = 0,
        on_device: bool | Literal["auto"] = "auto",
    ) -> None:
        super().__init__()
        if min(train_size, val_size, batch_size) < 1:
            raise DataError("train_size, val_size and batch_size must be at least 1: --data.batch_size 4")
        if channels not in (1, 3):
            raise DataError(f"channels must be 1 or 3, but is {channels}: --data.channels 3")
        self.augment = read_names(augment, FLIP_SHIFT_CUTOUT)
        self.save_hyperparameters()
        self.in_channels = channels
        self.sample_shape = (channels, SIZE, SIZE)
        self.preprocessing = Preprocessing(SIZE, SIZE, [0.5] * channels, [0.5] * channels)
        self.sets: dict[str, Dataset] = {}

    def setup(self, stage: str) -> None:
        splits = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("test",)}[stage]
        for split in splits:
            if split not in self.sets:
                size, augment = ("train_size", self.augment) if split == "train" else ("val_size", ())
                seed = self.hparams["seed"]
                split_seed = combine_seeds(seed, ("train", "val", "test").index(split))
                images, labels = draw_pictures(self.hparams[size], split_seed, self.in_channels)
                self.sets[split] = Pictures(images, labels, self.preprocessing, augment, seed)


def draw_pictures(count: int, seed: int, channels: int) -> tuple[Tensor, Tensor]:
    """Draw pictures (count, channels, 32, 32) uint8, balanced over the shapes. Also return labels (count,) int64."""
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.arange(count) % len(CLASS_NAMES))[torch.randperm(count, generator=generator)]
    images = torch.empty(count, channels, SIZE, SIZE, dtype=torch.uint8)
    for chunk_labels, chunk in zip(labels.split(1000), images.split(1000), strict=True):  # in chunks, to save memory
        chunk.copy_(_draw_chunk(chunk_labels, channels, generator))
    return images, labels


def _draw_chunk(labels: Tensor, channels: int, generator: torch.Generator) -> Tensor:
    """Draw one picture per label, (n, channels, 32, 32) uint8."""
    n = len(labels)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(n, *shape, generator=generator) * (high - low) + low

    axis = torch.arange(SIZE) + 0.5 - SIZE / 2
    radius = uniform(MIN_RADIUS, 12.0, 1, 1)
    angle = uniform(-0.35, 0.35, 1, 1)  # radians; larger rotations could make two shapes look the same
    x0 = axis.view(1, 1, SIZE) - uniform(-MAX_SHIFT, MAX_SHIFT, 1, 1)
    y0 = axis.view(1, SIZE, 1) - uniform(-MAX_SHIFT, MAX_SHIFT, 1, 1)
    x = (x0 * angle.cos() + y0 * angle.sin()) / radius  # (n, H, W); the shape is inside [-1, 1]
    y = (y0 * angle.cos() - x0 * angle.sin()) / radius
    inside = torch.empty(n, 1, SIZE, SIZE, dtype=torch.bool)
    for index, shape in enumerate(SHAPES.values()):
        has_shape = labels == index
        inside[has_shape, 0] = shape(x[has_shape], y[has_shape])
    background = uniform(0.15, 0.85, channels, 1, 1)
    contrast = uniform(0.25, 0.45, 1, 1, 1) * torch.where(uniform(-1, 1, 1, 1, 1) < 0, -1.0, 1.0)
    color = background + contrast * uniform(0.6, 1.0, channels, 1, 1)
    picture = torch.where(inside, color, background)
    picture += torch.randn(n, channels, SIZE, SIZE, generator=generator).mul_(0.08)
    return picture.clamp_(0, 1).mul_(255).round_().to(torch.uint8)
