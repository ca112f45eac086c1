"""A folder of photos as batches."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from torchvision.transforms import v2

from datamodules import DataError, ImageFolderDataModule
from datamodules.image_folder import eval_transform, read_pixels
from datamodules.photos import read_picture
from lit_models import LitCNN


def first_batches(root: Path, **arguments: Any) -> str:
    data = ImageFolderDataModule(str(root), **{"num_workers": 0, "augment": False, "image_size": 32, **arguments})
    data.prepare_data()
    data.setup("fit")
    batches = [*data.train_dataloader(), *data.val_dataloader()]
    return str([(x.shape, x.double().sum().item(), y.tolist()) for x, y in batches])


def test_classes_and_shapes(photo_folder: Path) -> None:
    data = ImageFolderDataModule(str(photo_folder), num_workers=0)
    assert (data.class_names, data.num_classes) == (("ants", "bees"), 2)
    assert data.sample_shape == (3, 224, 224)
    data.prepare_data()
    data.setup("fit")
    x, y = next(iter(data.train_dataloader()))
    assert (x.shape, x.dtype, y.dtype) == ((4, 3, 224, 224), torch.float32, torch.int64)
    [(x, y)] = data.val_dataloader()
    assert y.tolist() == [0] * 4 + [1] * 4
    assert (x[:, 0] - x[:, 2]).flatten(1).mean(1).gt(0).tolist() == [True] * 4 + [False] * 4  # reddish and bluish


@pytest.mark.parametrize(("argument", "other"), [("batch_size", 3), ("image_size", 40), ("augment", True), ("seed", 1)])
def test_arguments_change_something(photo_folder: Path, argument: str, other: Any) -> None:
    assert first_batches(photo_folder) == first_batches(photo_folder)
    assert first_batches(photo_folder) != first_batches(photo_folder, **{argument: other})


def test_a_fit_follows_the_models_preprocessing(photo_folder: Path, bare: Callable[..., Trainer]) -> None:
    data = ImageFolderDataModule(str(photo_folder), num_workers=0)
    bare(max_epochs=1).fit(LitCNN(num_classes=2), data)
    assert data.sample_shape == (3, 32, 32)
    assert data.preprocessing["mean"] == [0.5, 0.5, 0.5]


def test_impossible_arguments_are_refused(photo_folder: Path) -> None:
    for arguments in ({"batch_size": 0}, {"image_size": 0}, {"balance": "often"}):
        with pytest.raises(DataError, match=r"--data\."):
            ImageFolderDataModule(str(photo_folder), **arguments)


def test_a_strip_is_cut_before_it_is_enlarged_and_nothing_else_changes() -> None:
    spec = {"image_size": 224, "resize_size": 256, "interpolation": "bicubic"}
    strip = torch.randint(0, 256, (3, 2, 30_000), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert eval_transform(spec)(strip).shape == (3, 224, 224)
    wide = torch.randint(0, 256, (3, 40, 400), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    plain = v2.Compose([v2.Resize(256, v2.InterpolationMode.BICUBIC, antialias=True), v2.CenterCrop(224)])
    assert (eval_transform(spec)(wide).int() - plain(wide).int()).abs().max() <= 1


def test_a_jpeg_that_claims_to_be_enormous_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.jpg"
    Image.new("RGB", (16, 16)).save(path)
    data = path.read_bytes()
    at = data.index(b"\xff\xc0") + 5  # height and width of the frame header
    path.write_bytes(data[:at] + struct.pack(">HH", 60_000, 60_000) + data[at + 4 :])
    with pytest.raises(DataError, match=r"bomb\.jpg: too large"):
        read_pixels(path)


@pytest.mark.parametrize("orientation", range(10))
def test_jpegs_are_turned_as_pillow_turns_them(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = torch.randint(0, 256, (24, 40, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    Image.fromarray(pixels.numpy()).save(tmp_path / "photo.jpg", exif=exif)
    want = v2.functional.pil_to_tensor(read_picture(tmp_path / "photo.jpg"))
    assert want.shape == ((3, 40, 24) if orientation in (5, 6, 7, 8) else (3, 24, 40))
    assert torch.equal(read_pixels(tmp_path / "photo.jpg"), want)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_started_in_any_way_give_the_batches_of_none(photo_folder: Path, method: str) -> None:
    for cache in (False, True):

        def batches(workers: int, cache: bool = cache) -> list[tuple[torch.Tensor, torch.Tensor]]:
            data = ImageFolderDataModule(
                str(photo_folder), image_size=72, augment=True, cache=cache, num_workers=workers
            )
            data.prepare_data()
            data.setup("fit")
            loader = data.train_dataloader()
            if workers:
                loader.multiprocessing_context = method
            loader.sampler.set_epoch(1)  # type: ignore[attr-defined]
            return list(loader)

        alone, together = batches(0), batches(2)
        assert len(alone) == len(together) == 4
        for (x, y), (x2, y2) in zip(alone, together, strict=True):
            assert torch.equal(x, x2)
            assert torch.equal(y, y2)
