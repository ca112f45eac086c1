"""Resize and crop pictures for the network, with and without augmentation."""

from typing import Any

from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from datamodules.preprocessing import Preprocessing


def train_transform(preprocessing: Preprocessing) -> v2.Transform:
    """Return RandomResizedCrop and flip for uint8, as in the tutorial "Transfer Learning for Computer Vision"."""
    interpolation = InterpolationMode(preprocessing.interpolation)
    crop = _CropThenResize(preprocessing.image_size, interpolation=interpolation, antialias=True)
    return v2.Compose([crop, v2.RandomHorizontalFlip()])


class _CropThenResize(v2.RandomResizedCrop):
    """Give the same result, but copy the crop to channels-last memory first: torch then resizes it twice as fast."""

    def transform(self, inpt: Tensor, params: dict[str, Any]) -> Tensor:
        crop = v2.functional.crop_image(inpt, **params).permute(1, 2, 0).contiguous().permute(2, 0, 1)
        return v2.functional.resize_image(crop, self.size, self.interpolation, antialias=self.antialias)


def eval_transform(preprocessing: Preprocessing) -> v2.Transform:
    """Return a transform that resizes the shorter side and crops the center: (3, H, W) uint8 -> (3, S, S) uint8."""
    interpolation = InterpolationMode(preprocessing.interpolation)
    resize = v2.Resize(preprocessing.resize_size, interpolation=interpolation, antialias=True)
    return v2.Compose([v2.Lambda(_cut_strip), resize, v2.CenterCrop(preprocessing.image_size)])


def _cut_strip(picture: Tensor) -> Tensor:
    """Cut off most of what the center crop removes anyway: resizing would enlarge 3000 x 2 pixels to 384,000 x 256."""
    height, width = picture.shape[-2:]
    most = 4 * min(height, width)
    return v2.functional.center_crop(picture, [min(height, most), min(width, most)])
