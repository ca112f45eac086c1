"""The photos of one split as a torch Dataset."""

import contextlib
import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from datamodules.errors import DataError
from datamodules.loading.loader import return_data_errors
from datamodules.loading.memory import normalize
from datamodules.loading.order import PADDING
from datamodules.loading.seeds import combine_seeds, combine_with_run_seed
from datamodules.photos.decode import UPRIGHT, orientation, read_picture, to_upright_rgb
from datamodules.photos.paths import Paths
from datamodules.photos.store import PictureStore
from datamodules.photos.transforms import eval_transform, train_transform
from datamodules.preprocessing import Preprocessing

FAST_PIXELS = 50_000_000
"""Larger pictures are decoded by read_picture, which has size limits."""


class PhotoFiles(Dataset):
    """Pictures that are decoded from files, or taken from a :class:`PictureStore`, for each batch.

    Args:
        root: folder that ``paths`` are relative to.
        paths: of N files.
        labels: (N,) int64.
        preprocessing: sizes, mean and std of the network's input.
        augment: use RandomResizedCrop and flip instead of Resize and CenterCrop.
        seed: of the augmentation, which depends only on (seed, seed of the run, epoch, index).
        store: the same pictures, decoded.

    ``__getitems__(keys)`` returns (B, 3, S, S) float32 and (B,) int64, -1 for padding keys.
    """

    def __init__(
        self,
        root: Path,
        paths: Paths,
        labels: Tensor,
        preprocessing: Preprocessing,
        augment: bool,
        seed: int,
        store: PictureStore | None = None,
    ) -> None:
        self.root, self.paths, self.labels, self.store = root, paths, labels, store
        self.mean, self.std = preprocessing.mean, preprocessing.std
        self.augment, self.seed = augment, combine_with_run_seed(seed)
        self.transform = train_transform(preprocessing) if augment else eval_transform(preprocessing)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: int) -> tuple[Tensor, Tensor]:
        images, labels = self.__getitems__([key])
        return images[0], labels[0]

    @return_data_errors
    def __getitems__(self, keys: list[int]) -> tuple[Tensor, Tensor]:
        wanted = torch.tensor(keys)
        labels = self.labels[wanted % len(self)].masked_fill(wanted == PADDING, PADDING)
        with ThreadPoolExecutor(torch.get_num_threads()) as threads:  # one thread in a worker process
            pictures = threads.map(self._pixels, [key % len(self) for key in keys])
            state = torch.get_rng_state()  # without workers, the network uses the same generator
            transformed = [self.transform_pixels(pixels, key) for key, pixels in zip(keys, pictures, strict=True)]
            torch.set_rng_state(state)
        # (B, S, S, C) is the layout in which decoders return pictures, so stacking copies whole blocks.
        images = torch.stack([picture.permute(1, 2, 0) for picture in transformed])
        return normalize(images.permute(0, 3, 1, 2), self.mean, self.std), labels

    def _pixels(self, index: int) -> Tensor:
        return self.store[index] if self.store else read_pixels(self.root / self.paths[index])

    def transform_pixels(self, pixels: Tensor, key: int = 0) -> Tensor:
        """Transform (3, H, W) uint8 to (C, S, S) uint8, gray if the network's mean has one channel."""
        if self.augment:
            torch.default_generator.manual_seed(combine_seeds(self.seed, key))
        pixels = self.transform(pixels)
        return pixels if len(self.mean) == 3 else v2.functional.rgb_to_grayscale(pixels)


def read_pixels(source: str | Path | Image.Image | np.ndarray) -> Tensor:
    """Decode one picture to (3, H, W) uint8, upright, RGB.

    JPEGs are decoded by torchvision, which gives the same pixels as Pillow in two thirds of the time. For all other
    files :func:`~datamodules.photos.decode.read_picture` is used.

    Args:
        source: a file, a PIL image, or a uint8 array (H, W, 3) or (H, W).

    Raises:
        DataError: the file cannot be decoded, or the array has another shape or dtype.
    """
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or not (source.ndim == 2 or (source.ndim == 3 and source.shape[2] == 3)):
            raise DataError(f"an array {source.shape} of {source.dtype} is not a picture: give (H, W, 3) of uint8")
        source = Image.fromarray(source)
    if isinstance(source, Image.Image):
        return v2.functional.pil_to_tensor(to_upright_rgb(source))
    # Decoders raise any error if the file is not a JPEG, broken or too large. read_picture then says which.
    with contextlib.suppress(Exception):
        data = Path(source).read_bytes()
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as header:
            plain = header.mode in ("RGB", "L") and header.width * header.height < FAST_PIXELS
            turn = UPRIGHT.get(orientation(header))  # torchvision handles damaged tags differently
        if plain:
            encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            pixels = decode_image(encoded, ImageReadMode.RGB)
            if turn is None:
                return pixels
            transpose, left_right, top_bottom = turn
            pixels = pixels.transpose(1, 2) if transpose else pixels
            return pixels.flip([axis for axis, needed in ((2, left_right), (1, top_bottom)) if needed]).contiguous()
    return v2.functional.pil_to_tensor(read_picture(source))
