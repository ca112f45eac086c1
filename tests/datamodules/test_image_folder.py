"""A folder of photos as batches."""

import inspect
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from torchvision.transforms import v2

from datamodules import DataError, ImageFolderDataModule, image_folder
from datamodules.photos.dataset import read_pixels
from datamodules.photos.decode import BadPicture, read_picture
from datamodules.photos.transforms import eval_transform, train_transform
from lit_models import LitCNN


def everything(**arguments: Any) -> str:
    """What the folder's owner is told and two epochs of batches, as one text."""
    data: Any = ImageFolderDataModule(**{"num_workers": 0, "image_size": 72, **arguments})
    data.prepare_data()
    data.setup("fit")
    loader = data.train_dataloader()
    found: list[Any] = [data.report(), loader.num_workers, data.class_weights]
    for epoch in (0, 1):
        loader.sampler.set_epoch(epoch)
        found += [(x.shape, x.double().sum().item(), y.tolist()) for x, y in loader]
    found += [(x.shape, x.double().sum().item(), y.tolist()) for x, y in data.val_dataloader()]
    return str(found)


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


@pytest.fixture
def to_split(photo_folder: Path) -> Path:
    """A folder without val/, with more bees than ants, and a broken file among 13."""
    root = photo_folder / "train"
    for number in range(4, 8):
        (root / "ants" / f"{number}.jpg").unlink()
    (root / "ants" / "broken.jpg").write_bytes(b"")
    return root


@pytest.mark.parametrize("argument", inspect.signature(ImageFolderDataModule).parameters)
def test_every_argument_changes_something(to_split: Path, argument: str) -> None:
    usual = {"root": str(to_split), "max_bad_fraction": 0.5}
    split_file = to_split.parent / "split.csv"
    rows = [f"bees/{number}.jpg,bees,{'val' if number < 4 else 'train'}" for number in range(8)]
    rows += [f"ants/{number}.jpg,ants,train" for number in range(4)]
    split_file.write_text("\n".join(["path,label,split", *rows, ""]))
    others = {
        "root": str(to_split.parent / "val"),
        "batch_size": 3,
        "image_size": 80,
        "augment": False,
        "val_size": 0.5,
        "split_file": str(split_file),
        "balance": "loss",
        "max_bad_fraction": 0.01,
        "cache": True,
        "num_workers": 1,
        "seed": 1,
    }
    before = everything(**usual)
    assert before == everything(**usual)
    if argument == "max_bad_fraction":
        with pytest.raises(DataError, match="broken: 1 of 13 pictures, more than 1%"):
            everything(root=str(to_split), max_bad_fraction=others[argument])
    else:
        assert before != everything(**{**usual, argument: others[argument]})


def test_split_file_decides_who_is_validated_on(to_split: Path) -> None:
    data = ImageFolderDataModule(str(to_split), max_bad_fraction=0.5, num_workers=0)
    data.setup("fit")
    assert data.photos is not None
    data.photos.write_split(to_split.parent / "split.csv")
    again = ImageFolderDataModule(
        str(to_split), split_file=str(to_split.parent / "split.csv"), max_bad_fraction=0.5, seed=7, num_workers=0
    )
    again.setup("fit")
    assert again.photos is not None
    assert again.photos.fingerprint() == data.photos.fingerprint()


def test_balance_weighs_each_class_alike(to_split: Path) -> None:
    data = ImageFolderDataModule(str(to_split), max_bad_fraction=0.5, balance="loss", num_workers=0)
    data.setup("fit")
    assert data.photos is not None
    assert data.class_weights is not None
    counts = torch.from_numpy(data.photos.counts()[0])  # 3 ants, 6 bees
    assert counts.tolist() == [3, 6]
    torch.testing.assert_close(data.class_weights, torch.tensor([1.5, 0.75]))


def test_cache_decodes_each_picture_once(to_split: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    real = image_folder.read_pixels

    def watched(path: Path) -> torch.Tensor:
        read.append(path.name)
        return real(path)

    monkeypatch.setattr(image_folder, "read_pixels", watched)
    everything(root=str(to_split), max_bad_fraction=0.5, cache=True)
    assert len(read) == 12
    everything(root=str(to_split), max_bad_fraction=0.5, cache=True)  # of another process, as it were
    assert len(read) == 12
    everything(root=str(to_split), max_bad_fraction=0.5)
    assert len(read) == 12 + 2 * 9 + 3


@pytest.mark.parametrize("workers", [0, 1])
def test_a_photo_that_is_gone_is_named_by_the_loader(photo_folder: Path, workers: int) -> None:
    data = ImageFolderDataModule(str(photo_folder), num_workers=workers)
    data.setup("fit")
    (photo_folder / "val" / "bees" / "1.jpg").unlink()
    loader: Any = data.val_dataloader()
    with pytest.raises(BadPicture) as caught:
        list(loader)
    assert str(caught.value) == (
        f"{photo_folder}/val/bees/1.jpg: unreadable (No such file or directory): replace the file or leave it out"
    )


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


def test_random_crops_are_those_of_torchvision() -> None:
    spec = {"image_size": 24, "interpolation": "bilinear"}
    picture = torch.randint(0, 256, (3, 60, 80), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    plain = v2.Compose([v2.RandomResizedCrop(24, antialias=True), v2.RandomHorizontalFlip()])
    for seed in range(20):
        torch.manual_seed(seed)
        ours = train_transform(spec)(picture)
        torch.manual_seed(seed)
        assert torch.equal(ours, plain(picture))
