"""Random crops that are cut at once are those that are cut one by one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as v2

from datamodules.loading.loader import make_loader
from datamodules.photos.crops import crop_and_resize
from datamodules.photos.dataset import PhotoFiles
from datamodules.photos.store import PictureStore
from datamodules.preprocessing import Preprocessing
from tests.support.loaders import rank_of

SIZES = [(64, 85), (100, 64), (64, 64), (12, 9), (64, 250)]
KINDS = pytest.mark.parametrize("kind", ["bilinear", "bicubic"])


def photo(index: int) -> Tensor:
    """Return a picture (3, H, W) uint8 that is smooth, with some noise."""
    generator = torch.Generator().manual_seed(index)
    size = SIZES[index % len(SIZES)]
    rough = torch.rand(1, 3, 6, 6, generator=generator) * 255
    smooth = torch.nn.functional.interpolate(rough, size=size, mode="bicubic")
    return (smooth + 20 * torch.randn(smooth.shape, generator=generator)).clamp(0, 255).round().to(torch.uint8)[0]


def photos(folder: Path, kind: str, augment: tuple[str, ...] = ("crop", "flip"), channels: int = 3) -> Any:
    PictureStore.write(folder / "all.pictures", 20, photo)
    preprocessing = Preprocessing(
        image_size=40, resize_size=64, mean=[0.5] * channels, std=[0.5] * channels, interpolation=kind
    )
    labels, store = torch.arange(20), PictureStore(folder / "all.pictures")
    return PhotoFiles(folder, np.array(["?"] * 20), labels, preprocessing, augment, 0, store)


def largest_difference(one: Tensor, other: Tensor) -> int:
    assert one.shape == other.shape
    return int((one.int() - other.int()).abs().max())


@KINDS
def test_crops_of_pictures_of_different_sizes_are_those_of_interpolate(kind: str) -> None:
    pictures = [photo(index) for index in range(5)]
    starts = np.cumsum([0, *(picture.numel() for picture in pictures[:-1])])
    where = torch.tensor([[start, *picture.shape[1:]] for start, picture in zip(starts, pictures, strict=True)])
    boxes = torch.tensor([[3, 40, 61, 45], [0, 0, 100, 64], [10, 20, 7, 9], [11, 8, 1, 1], [0, 150, 64, 100]])
    flat = torch.cat([picture.flatten() for picture in pictures])
    found = crop_and_resize(flat, torch.cat([where, boxes], 1), 40, kind)
    for image, picture, (top, left, height, width) in zip(found, pictures, boxes.tolist(), strict=True):
        box = picture[:, top : top + height, left : left + width]
        wanted = v2.resize(box, [40, 40], InterpolationMode(kind), antialias=True)
        assert largest_difference(image, wanted) <= 2
        assert abs(float((image.float() - wanted.float()).mean())) < 0.1, "rounded down, not to the nearest"
        assert float((image == wanted).float().mean()) > 0.9


@KINDS
@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("augment", ["crop", "crop,flip", "crop,rotate", "crop,flip,rotate"])
def test_crops_that_are_cut_at_once_have_the_random_numbers_of_single_ones(
    kind: str, channels: int, augment: str, tmp_path: Path
) -> None:
    data = photos(tmp_path, kind, tuple(augment.split(",")), channels)
    keys = [7, 20 + 7, 39, 0, 1, 2, 3, 4, 45]
    single, _ = data.read(torch.tensor(keys))
    at_once = data.cut_crops(keys)
    assert largest_difference(at_once, single) <= 2 + 2 * ("rotate" in augment)  # rotations round once more
    assert largest_difference(at_once[:1], at_once[1:2]) > 50, "another epoch has the same crop"
    assert largest_difference(data.cut_crops(keys[3:5]), at_once[3:5]) <= 1


def test_only_stores_on_a_device_cut_crops_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = photos(tmp_path, "bilinear")
    monkeypatch.setattr(PhotoFiles, "cut_crops", lambda self, keys: torch.tensor(keys))
    assert data.read(torch.tensor([3, 44]))[0].shape == (2, 3, 40, 40), "a run on a CPU has other pixels than before"
    data.store.pixels = data.store.pixels.to("meta")
    images, labels = data.read(torch.tensor([3, 44]))
    assert (images.tolist(), labels.device.type) == ([3, 44], "meta")


@KINDS
def test_a_device_gets_the_crops_of_a_batch_without_a_wait(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To read a number from the meta device is an error; from a GPU it would have to wait for all queued work."""
    monkeypatch.setattr("datamodules.loading.device.DEVICE_TYPES", ("cpu", "meta"))
    data = photos(tmp_path, kind)
    loader: Any = make_loader(data, rank_of(0, 1, device="meta"), batch_size=8, seed=0, train=True, on_device=True)
    assert loader.resident.store.pixels.device.type == "meta"
    batches = list(loader)
    assert [(x.device.type, tuple(x.shape), len(y)) for x, y in batches] == [
        ("meta", (size, 3, 40, 40), size) for size in (8, 8, 4)
    ]
    assert {y.device.type for _, y in batches} == {"meta"}


class Operations(TorchDispatchMode):
    """Count the operations of torch whose result is a picture or a batch of pictures."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.count += isinstance(result, Tensor) and result.ndim >= 3 and result.device.type != "meta"
        return result


def test_a_larger_batch_needs_no_more_operations(tmp_path: Path) -> None:
    """On a GPU, each operation takes 5 to 10 us, however small the picture is."""
    data = photos(tmp_path, "bilinear")
    counts = []
    for size in (2, 8):
        with Operations() as operations:
            data.cut_crops(list(range(size)))
        counts.append(operations.count)
    assert counts[0] == counts[1] > 5


@KINDS
@pytest.mark.parametrize("augment", [("crop",), ("crop", "flip", "rotate")])
@pytest.mark.gpu
def test_crops_on_a_gpu_are_those_of_the_cpu(kind: str, augment: tuple[str, ...], tmp_path: Path) -> None:
    data = photos(tmp_path, kind, augment)
    keys = torch.arange(20, 60)
    resident = data.on(torch.device("cuda"))
    images, labels = resident.read(keys)
    assert (images.device.type, labels.device.type, labels.tolist()) == ("cuda", "cuda", (keys % 20).tolist())
    single, _ = data.read(keys)
    allowed = 2 + 2 * ("rotate" in augment)  # rotations round once more
    assert largest_difference(images.cpu(), single) <= allowed
    assert largest_difference(images.cpu(), data.cut_crops(keys.tolist())) <= allowed
