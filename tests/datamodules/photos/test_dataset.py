"""read_pixels gives the same pixels as read_picture, but faster."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from datamodules import DataError, ImageFolderDataModule, Preprocessing
from datamodules.photos.dataset import eval_transform, read_pixels
from datamodules.photos.decode import BadPicture, read_picture
from tests.support.forks import WARM, start_server
from tests.support.photos import exif_with_orientation


def test_a_jpeg_with_enormous_size_in_its_header_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.jpg"
    Image.new("RGB", (16, 16)).save(path)
    data = path.read_bytes()
    at = data.index(b"\xff\xc0") + 5  # height and width of the frame header
    path.write_bytes(data[:at] + struct.pack(">HH", 60_000, 60_000) + data[at + 4 :])
    with pytest.raises(DataError, match=r"bomb\.jpg: too large"):
        read_pixels(path)


@pytest.mark.parametrize("orientation", range(10))
def test_jpegs_are_rotated_as_by_pillow(tmp_path: Path, orientation: int) -> None:
    pixels = torch.randint(0, 256, (24, 40, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    Image.fromarray(pixels.numpy()).save(tmp_path / "photo.jpg", exif=exif_with_orientation(orientation))
    want = v2.functional.pil_to_tensor(read_picture(tmp_path / "photo.jpg"))
    assert want.shape == ((3, 40, 24) if orientation in (5, 6, 7, 8) else (3, 24, 40))
    assert torch.equal(read_pixels(tmp_path / "photo.jpg"), want)


@pytest.mark.parametrize("workers", [0, 1])
def test_the_loader_names_a_missing_photo(photo_folder: Path, workers: int) -> None:
    data = ImageFolderDataModule(str(photo_folder), num_workers=workers)
    data.setup("fit")
    (photo_folder / "val" / "bees" / "1.jpg").unlink()
    loader: Any = data.val_dataloader()
    with pytest.raises(BadPicture) as caught:
        list(loader)
    assert str(caught.value) == (
        f"{photo_folder}/val/bees/1.jpg: unreadable (No such file or directory): replace the file or leave it out"
    )


@pytest.mark.slow
def test_workers_that_get_a_copy_of_the_dataset_give_the_same_batches(photo_folder: Path) -> None:
    """As with the start method spawn of macOS and Windows, the dataset is pickled for each worker."""
    start_server()
    for cache in (False, True):

        def batches(workers: int, cache: bool = cache) -> list[tuple[torch.Tensor, torch.Tensor]]:
            data = ImageFolderDataModule(
                str(photo_folder), image_size=72, augment=True, cache=cache, num_workers=workers
            )
            data.prepare_data()
            data.setup("fit")
            loader = data.train_dataloader()
            if workers:
                loader.multiprocessing_context = WARM
            loader.sampler.set_epoch(1)  # type: ignore[attr-defined]
            return list(loader)

        alone, together = batches(0), batches(2)
        assert len(alone) == len(together) == 4
        for (x, y), (x2, y2) in zip(alone, together, strict=True):
            assert torch.equal(x, x2)
            assert torch.equal(y, y2)


def test_pictures_in_memory_give_the_same_pixels_as_their_files(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
    Image.fromarray(array).save(tmp_path / "photo.png", exif=exif_with_orientation(6))
    want = read_pixels(tmp_path / "photo.png")
    assert want.shape == (3, 40, 24)
    with Image.open(tmp_path / "photo.png") as picture:
        assert torch.equal(read_pixels(picture), want)
    assert torch.equal(read_pixels(array), torch.from_numpy(array).permute(2, 0, 1))
    assert torch.equal(read_pixels(array[..., 0]), torch.from_numpy(array[..., 0]).expand(3, -1, -1))


@pytest.mark.parametrize(
    "array", [np.zeros((3, 4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros(4, np.uint8)]
)
def test_an_array_of_another_shape_or_dtype_is_refused(array: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"is not a picture: give \(H, W, 3\) of uint8"):
        read_pixels(array)


def test_cutting_a_strip_before_resizing_does_not_change_the_result() -> None:
    spec = Preprocessing(interpolation="bicubic")
    strip = torch.randint(0, 256, (3, 2, 30_000), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert eval_transform(spec)(strip).shape == (3, 224, 224)
    wide = torch.randint(0, 256, (3, 40, 400), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    plain = v2.Compose([v2.Resize(256, v2.InterpolationMode.BICUBIC, antialias=True), v2.CenterCrop(224)])
    assert (eval_transform(spec)(wide).int() - plain(wide).int()).abs().max() <= 1
