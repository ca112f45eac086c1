"""Resize and crop pictures for the network, without augmentation."""

from functools import partial

from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from datamodules.preprocessing import Preprocessing


def eval_transform(preprocessing: Preprocessing) -> v2.Transform:
    """Return the transform without augmentation: (3, H, W) uint8 -> (3, S, S) uint8."""
    if preprocessing.resize != "crop":
        return v2.Compose([v2.Lambda(partial(_resize_whole, preprocessing=preprocessing))])
    interpolation = InterpolationMode(preprocessing.interpolation)
    resize = v2.Resize(preprocessing.resize_size, interpolation=interpolation, antialias=True)
    return v2.Compose([v2.Lambda(_cut_long_side), resize, v2.CenterCrop(preprocessing.image_size)])


def _resize_whole(picture: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Squash a picture to (3, S, S), or resize its longer side to S and pad the other one with the mean color."""
    size, sides = preprocessing.image_size, picture.shape[-2:] if preprocessing.resize == "pad" else (1, 1)
    height, width = (max(1, round(side * size / max(sides))) for side in sides)
    interpolation = InterpolationMode(preprocessing.interpolation)
    picture = v2.functional.resize(picture, [height, width], interpolation, antialias=True)
    left, top = (size - width) // 2, (size - height) // 2
    fill = [round(255 * mean) for mean in preprocessing.mean] * (3 // len(preprocessing.mean))  # 0 after normalization
    return v2.functional.pad(picture, [left, top, size - width - left, size - height - top], fill=fill)


def _cut_long_side(picture: Tensor) -> Tensor:
    """Crop the longer side to 4 times the shorter side. Resizing would enlarge 3000 x 2 pixels to 384,000 x 256."""
    height, width = picture.shape[-2:]
    max_length = 4 * min(height, width)
    return v2.functional.center_crop(picture, [min(height, max_length), min(width, max_length)])
