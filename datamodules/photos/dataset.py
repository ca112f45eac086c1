"""Load the photos of one split as a torch Dataset. Resize and crop them."""

import contextlib
import io
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import InterpolationMode, v2

from datamodules.errors import DataError
from datamodules.loading.augmentation import Augmentation
from datamodules.loading.device import Tensors, TwoStageDataset, copy_to
from datamodules.loading.memory import normalize
from datamodules.loading.order import PADDING
from datamodules.loading.seeds import combine_seeds, combine_with_run_seed
from datamodules.photos.crops import KINDS, crop_and_resize
from datamodules.photos.decode import STEPS_TO_UPRIGHT, read_orientation, read_picture, to_upright_rgb
from datamodules.photos.store import PictureStore
from datamodules.preprocessing import Preprocessing

MAX_PIXELS_FOR_TORCHVISION = 50_000_000  # larger pictures are decoded by read_picture, which limits their size


class PhotoFiles(TwoStageDataset):
    """A dataset of N pictures with ``labels`` (N,) int64. Their ``paths`` (N,) are relative to ``root``.

    If ``store`` is given, it has the same pictures, decoded, and is read instead of the files. The augmentation depends
    on ``seed``, the seed of the run, the epoch and the index of the picture.

    ``__getitems__(keys)`` returns images (B, C, S, S) float32 and labels (B,) int64. A key is ``epoch * N + index``, or
    :data:`~datamodules.loading.order.PADDING`, which gets the label -1. C is the length of ``preprocessing.mean``.
    """

    reads_keys_on_cpu = True
    decoding_threads = 1  # make_loader sets it, if there are no worker processes

    def __init__(
        self,
        root: Path,
        paths: np.ndarray,
        labels: Tensor,
        preprocessing: Preprocessing,
        augment: tuple[str, ...],
        seed: int,
        store: PictureStore | None = None,
    ) -> None:
        self.root, self.paths, self.labels, self.store = root, paths, labels, store
        self.rows = np.arange(len(paths))  # of each picture in the store
        self.mean, self.std = preprocessing.mean, preprocessing.std
        self.augment, self.seed = augment, combine_with_run_seed(seed)
        self.augmentation = Augmentation(augment, preprocessing)
        crops_at_random = "crop" in augment and preprocessing.resize == "crop"
        self.crop: Any = self.augmentation.transforms[0] if crops_at_random else None
        self.resize = None if crops_at_random else eval_transform(preprocessing)

    def read(self, keys: Tensor) -> Tensors:
        """Return pictures (B, C, S, S) uint8, cropped and resized, and labels (B,) int64."""
        labels = self.labels[keys % len(self)].masked_fill(keys == PADDING, PADDING)
        numbers = keys.tolist()
        device = self.store.pixels.device if self.store else labels.device
        labels = copy_to(labels, device)
        if device.type != "cpu" and self.crop and self.crop.interpolation.value in KINDS:
            return self.cut_crops(numbers), labels
        with ThreadPoolExecutor(self.decoding_threads) as threads:
            pictures = threads.map(self._load_pixels, [key % len(self) for key in numbers])
            transformed = [self.transform_pixels(pixels, key) for key, pixels in zip(numbers, pictures, strict=True)]
        # The pictures are usually in the memory layout (S, S, C). Stacking is fast if it keeps this layout.
        return torch.stack([picture.permute(1, 2, 0) for picture in transformed]).permute(0, 3, 1, 2), labels

    def cut_crops(self, keys: list[int]) -> Tensor:
        """Do what :meth:`transform_pixels` does, for a batch at once: faster on a GPU. Pixels differ by 2 at most."""
        store: Any = self.store
        rows = self.rows[[key % len(self) for key in keys]]
        sizes = store.sizes[rows]
        seeds = [combine_seeds(self.seed, key) for key in keys]
        drawn: Any = [self.augmentation.draw(seed, size) for seed, size in zip(seeds, sizes.tolist(), strict=True)]
        boxes = [[crop[name] for name in ("top", "left", "height", "width")] for crop, *_ in drawn]
        where = torch.from_numpy(np.column_stack([store.starts[rows], sizes, boxes]))
        images = crop_and_resize(store.pixels, where, self.crop.size[0], self.crop.interpolation.value)
        if "flip" in self.augment:
            is_flipped = torch.tensor([flip is not None for _, flip, *_ in drawn]).view(-1, 1, 1, 1)
            images = torch.where(copy_to(is_flipped, images.device), images.flip(-1), images)
        done = [None] * (1 + ("flip" in self.augment))
        if len(self.augment) > len(done):
            others = [[*done, *parameters[len(done) :]] for parameters in drawn]
            images = torch.stack(list(map(self.augmentation.apply, images, others)))
        return images if len(self.mean) == 3 else v2.functional.rgb_to_grayscale(images)

    def finish(self, images: Tensor, labels: Tensor) -> Tensors:  # type: ignore[override]
        return normalize(images, self.mean, self.std), labels

    def on(self, device: torch.device) -> "PhotoFiles":
        resident: Any = super().on(device)
        if self.store and resident is not self:
            resident.store, resident.labels = self.store.on(device), self.labels  # its keys are on the CPU
        return resident

    def bytes_in_memory(self) -> int:
        return self.store.pixels.nbytes if self.store else 0

    def _load_pixels(self, index: int) -> Tensor:
        return self.store[self.rows[index]] if self.store else read_pixels(self.root / self.paths[index])

    def transform_pixels(self, pixels: Tensor, key: int = 0) -> Tensor:
        """Crop and resize (3, H, W) uint8 to (C, S, S) uint8; C = 1 is gray. ``key`` seeds the augmentation."""
        pixels = self.resize(pixels) if self.resize else pixels
        pixels = self.augmentation(pixels, combine_seeds(self.seed, key)) if self.augment else pixels
        return pixels if len(self.mean) == 3 else v2.functional.rgb_to_grayscale(pixels)


def read_pixels(source: str | Path | bytes | Image.Image | np.ndarray) -> Tensor:
    """Return an upright RGB picture, (3, H, W) uint8, from a file or its bytes, a PIL image or an array (H, W[, 3])."""
    if isinstance(source, np.ndarray):
        is_picture = source.size and (source.ndim == 2 or (source.ndim == 3 and source.shape[2] == 3))
        if source.dtype != np.uint8 or not is_picture:
            raise DataError(f"an array {source.shape} of {source.dtype} is not a picture: give (H, W, 3) of uint8")
        source = Image.fromarray(source)
    if not isinstance(source, str | Path | bytes | Image.Image) or 0 in getattr(source, "size", ()):
        name = type(source).__name__
        raise DataError(f"this {name} is not a picture: give a path, a PIL image, or an array (H, W, 3) of uint8")
    if isinstance(source, Image.Image):
        return v2.functional.pil_to_tensor(to_upright_rgb(source))
    # torchvision decodes a JPEG to the same pixels as Pillow in two thirds of the time. After an error here,
    # read_picture below decodes the file, or raises a BadPicture with the reason.
    with contextlib.suppress(Exception):
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as header:
            is_plain = header.mode in ("RGB", "L") and header.width * header.height < MAX_PIXELS_FOR_TORCHVISION
            # rotate here, because torchvision handles damaged orientation tags differently
            steps = STEPS_TO_UPRIGHT.get(read_orientation(header))
        if is_plain:
            pixels = decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
            if steps is None:
                return pixels
            transpose, left_right, top_bottom = steps
            pixels = pixels.transpose(1, 2) if transpose else pixels
            return pixels.flip([axis for axis, needed in ((2, left_right), (1, top_bottom)) if needed]).contiguous()
    return v2.functional.pil_to_tensor(read_picture(source))


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
