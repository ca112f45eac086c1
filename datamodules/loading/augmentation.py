"""Augment training pictures: read the names, draw random parameters, apply them to the pixels."""

from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from datamodules.errors import DataError
from datamodules.preprocessing import Preprocessing

NAMES = ("crop", "flip", "rotate", "color", "trivial")  # of augmentations, in the order in which they are applied
CROP_FLIP = ("crop", "flip")  # what True means for files, as in PyTorch's transfer learning tutorial
FLIP_SHIFT_CUTOUT = ("flip", "shift", "cutout")  # what True means for pictures in memory


def read_names(augment: Any, default: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names in ``augment`` in the order of :data:`NAMES`. True means ``default``. Raise a DataError.

    ``augment`` is True, False, None, a list of names, or a text of names with commas.
    """
    words = augment if isinstance(augment, list | tuple) else str(augment).split(",")
    names = {str(word).strip().lower() for word in words} - {""}
    if names == {"true"}:
        return default
    if names in ({"false"}, {"none"}):
        return ()
    if unknown := sorted(names - set(NAMES)):
        fix = f"--data.augment true, false, or some of {','.join(NAMES)}"
        raise DataError(f"there is no augmentation {unknown[0]}: {fix}")
    return tuple(name for name in NAMES if name in names)


class Augmentation:
    """Random transforms of a picture (C, H, W) uint8. Call it with the picture and a seed.

    ``draw`` needs only the seed and the size of the picture. ``apply`` depends only on the pixels and the drawn
    parameters, so the pixels can be on any device. ``crop`` gives (C, S, S): a random part of the picture, or, if
    ``preprocessing.resize`` is not crop, the whole picture, shifted by the margin of the center crop (or 4) or less.
    """

    def __init__(self, names: tuple[str, ...], preprocessing: Preprocessing) -> None:
        size, mean, bilinear = preprocessing.image_size, preprocessing.mean, InterpolationMode.BILINEAR
        fill = round(255 * sum(mean) / len(mean))  # uncovered corners become gray
        interpolation = InterpolationMode(preprocessing.interpolation)
        crop: v2.Transform = _CropThenResize(size, interpolation=interpolation, antialias=True)
        if preprocessing.resize != "crop":
            shift = max(4, (preprocessing.resize_size - size) // 2)  # pixels
            crop = v2.RandomCrop(size, padding=shift, padding_mode="edge")
        rotate = v2.RandomRotation(15, bilinear, fill=fill)
        color, trivial = v2.ColorJitter(0.3, 0.3, 0.3), _Trivial(interpolation=bilinear, fill=fill)
        every = zip(NAMES, (crop, v2.RandomHorizontalFlip(), rotate, color, trivial), strict=True)
        self.transforms: list[Any] = [transform for name, transform in every if name in names]

    def __call__(self, picture: Tensor, seed: int) -> Tensor:
        return self.apply(picture, self.draw(seed, picture.shape[-2:]))

    def draw(self, seed: int, size: tuple[int, ...]) -> list[dict[str, Any] | None]:
        """Return the parameters of each transform for a picture of ``size`` (H, W). None means: leave it out."""
        picture = [torch.empty(3, *size, device="meta")]  # torchvision reads only its size
        with torch.random.fork_rng(devices=[]):  # without worker processes, the network uses this generator
            torch.default_generator.manual_seed(seed)
            return [
                None if hasattr(transform, "p") and torch.rand(1) >= transform.p else transform.make_params(picture)
                for transform in self.transforms
            ]

    def apply(self, picture: Tensor, parameters: list[dict[str, Any] | None]) -> Tensor:
        for transform, values in zip(self.transforms, parameters, strict=True):
            picture = picture if values is None else transform.transform(picture, values)
        return picture


class _CropThenResize(v2.RandomResizedCrop):
    """A faster RandomResizedCrop with the same result. It is faster because the crop is channels-last in memory."""

    def transform(self, inpt: Tensor, params: dict[str, Any]) -> Tensor:
        crop = v2.functional.crop_image(inpt, **params).permute(1, 2, 0).contiguous().permute(2, 0, 1)
        return v2.functional.resize_image(crop, self.size, self.interpolation, antialias=self.antialias)


class _Trivial(v2.TrivialAugmentWide):
    """A TrivialAugmentWide whose parameter is a seed, because torchvision's does not tell drawing from applying."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return {"seed": int(torch.randint(2**31, ()))}

    def transform(self, inpt: Tensor, params: dict[str, Any]) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(params["seed"])
            return self(inpt)
