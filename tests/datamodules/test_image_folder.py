"""ImageFolderDataModule: batches, arguments and cache."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from datamodules import DataError, ImageFolderDataModule, image_folder
from datamodules.photos import dataset
from lit_models import LitCNN
from lit_training import load
from tests.support.photos import content
from tests.support.training import train_and_save


def everything(**arguments: Any) -> str:
    """Return the report and two epochs of batches as one text."""
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
    """A folder of 13 files without val/, with more bees than ants and one broken file."""
    root = photo_folder / "train"
    for number in range(4, 8):
        (root / "ants" / f"{number}.jpg").unlink()
    (root / "ants" / "broken.jpg").write_bytes(b"")
    return root


@pytest.mark.parametrize(
    "argument", sorted({*inspect.signature(ImageFolderDataModule).parameters} - {"on_device", "group"})
)  # test_device.py
def test_every_argument_changes_something(to_split: Path, argument: str) -> None:
    usual = {"root": str(to_split), "max_bad_fraction": 0.5}
    split_file = to_split.parent / "split.csv"
    rows = [f"bees/{number}.jpg,bees,{'val' if number < 4 else 'train'}" for number in range(8)]
    rows += [f"ants/{number}.jpg,ants,train" for number in range(4)]
    split_file.write_text("\n".join(["path,label,split", *rows, ""]))
    fixes = to_split.parent / "fixes.csv"
    fixes.write_text("path,label,suggested,confidence,action\nbees/0.jpg,bees,ants,0.9,move\n")
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
        "resize": "squash",
        "layout": "classes",
        "fixes": str(fixes),
        "group_by": "(bees)/[0-4]",
    }
    if argument == "layout":
        usual["root"] = str(to_split.parent)
    before = everything(**usual)
    assert before == everything(**usual)
    if argument == "max_bad_fraction":
        with pytest.raises(DataError, match="1 of 13 pictures cannot be read, more than 1%"):
            everything(root=str(to_split), max_bad_fraction=others[argument])
    else:
        assert before != everything(**{**usual, argument: others[argument]})


def test_a_split_file_sets_the_split(to_split: Path) -> None:
    data = ImageFolderDataModule(str(to_split), max_bad_fraction=0.5, num_workers=0)
    data.setup("fit")
    assert data.photos is not None
    data.photos.write_split(to_split.parent / "split.csv")
    again = ImageFolderDataModule(
        str(to_split), split_file=str(to_split.parent / "split.csv"), max_bad_fraction=0.5, seed=7, num_workers=0
    )
    assert again.class_names == ("ants", "bees")
    again.setup("fit")
    assert again.photos is not None
    assert content(again.photos) == content(data.photos)


def test_balance_gives_each_class_the_same_weight(to_split: Path) -> None:
    data = ImageFolderDataModule(str(to_split), max_bad_fraction=0.5, balance="loss", num_workers=0)
    data.setup("fit")
    assert data.photos is not None
    assert data.class_weights is not None
    counts = torch.from_numpy(data.photos.counts()[0])  # 3 ants, 6 bees
    assert counts.tolist() == [3, 6]
    torch.testing.assert_close(data.class_weights, torch.tensor([1.5, 0.75]))


def test_cache_decodes_each_picture_once(to_split: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    real = dataset.read_pixels

    def watched(path: Path) -> torch.Tensor:
        read.append(path.name)
        return real(path)

    for module in (dataset, image_folder):
        monkeypatch.setattr(module, "read_pixels", watched)
    everything(root=str(to_split), max_bad_fraction=0.5, cache=True)
    assert len(read) == 12
    everything(root=str(to_split), max_bad_fraction=0.5, cache=True)  # like another process
    assert len(read) == 12
    everything(root=str(to_split), max_bad_fraction=0.5)
    assert len(read) == 12 + 2 * 9 + 3


def test_fit_uses_the_preprocessing_of_the_model(photo_folder: Path, bare: Callable[..., Trainer]) -> None:
    data = ImageFolderDataModule(str(photo_folder), num_workers=0)
    bare(max_epochs=1).fit(LitCNN(num_classes=2), data)
    assert data.sample_shape == (3, 32, 32)
    assert data.preprocessing.mean == [0.5, 0.5, 0.5]


def test_a_path_as_root_is_saved_as_text(photo_folder: Path, tmp_path: Path) -> None:
    """A checkpoint that holds a Path cannot be opened safely."""
    data = ImageFolderDataModule(photo_folder, image_size=32, batch_size=8)  # type: ignore[arg-type]
    trained = train_and_save(tmp_path, LitCNN(num_classes=2), data)
    assert load(trained.path).data().hparams["root"] == str(photo_folder)


def test_invalid_arguments_are_refused(photo_folder: Path) -> None:
    for arguments in ({"batch_size": 0}, {"image_size": 0}, {"balance": "often"}):
        with pytest.raises(DataError, match=r"--data\."):
            ImageFolderDataModule(str(photo_folder), **arguments)
