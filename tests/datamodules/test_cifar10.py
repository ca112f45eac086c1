"""CIFAR10. The files have the official layout, but other contents and md5."""

import hashlib
import inspect
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.datasets import CIFAR10

from datamodules import CIFAR10DataModule, DataError
from datamodules.cifar10 import choose_stratified

NAMES = [name for name, _ in [*CIFAR10.train_list, *CIFAR10.test_list]]


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A root folder with all files of CIFAR10; torchvision's list of md5 is patched."""
    root = tmp_path_factory.mktemp("cifar10")
    folder = root / CIFAR10.base_folder
    folder.mkdir()
    random = np.random.default_rng(0)
    files: dict[str, Any] = {"batches.meta": {"label_names": list(CIFAR10DataModule.class_names)}}
    for number, name in enumerate(NAMES):
        pixels = np.full((10_000, 3072), 40 * number, np.uint8)
        pixels[:, :8] = random.integers(0, 256, (10_000, 8), dtype=np.uint8)  # makes each picture different
        pixels[:, 1024:1030] = np.arange(6)
        files[name] = {"data": pixels, "labels": random.permutation(np.arange(10_000) % 10).tolist()}
    md5 = {}
    for name, content in files.items():
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        md5[name] = hashlib.md5(data).hexdigest()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CIFAR10, "train_list", [[name, md5[name]] for name in NAMES[:5]])
        patch.setattr(CIFAR10, "test_list", [[NAMES[5], md5[NAMES[5]]]])
        patch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": md5["batches.meta"]})
        CIFAR10DataModule(str(root)).prepare_data()
        yield root
    shutil.rmtree(root)  # 360 MB


def ready(root: Path, **arguments: Any) -> Any:
    data = CIFAR10DataModule(str(root), **arguments)
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    return data


@pytest.mark.slow
def test_pixels_and_labels_equal_those_of_torchvision_and_val_size_0_trains_on_all(official: Path) -> None:
    data = ready(official, val_size=0)
    for name in ("train", "test"):
        want, split = CIFAR10(str(official), train=name == "train"), data.sets[name]
        assert torch.equal(split.images, torch.from_numpy(want.data).permute(0, 3, 1, 2))
        assert split.labels.tolist() == want.targets
        assert data.class_names == tuple(want.classes)
    assert data.val_dataloader() == []


@pytest.mark.slow
def test_validation_split_is_disjoint_and_stratified(official: Path) -> None:
    data = ready(official)
    train, val = data.sets["train"], data.sets["val"]
    assert (len(train), len(val), len(data.sets["test"])) == (45_000, 5000, 10_000)
    assert len({picture.numpy().tobytes() for part in (train, val) for picture in part.images}) == 50_000
    assert val.labels.bincount().tolist() == [500] * 10
    x, y = next(iter(data.train_dataloader()))
    assert (x.shape, x.dtype, y.dtype) == ((4, 3, 32, 32), torch.float32, torch.int64)
    assert x.min() >= -1
    assert x.max() <= 1
    assert not val.augment


OTHERS = {"batch_size": 8, "val_size": 100, "augment": True, "seed": 1}


@pytest.mark.slow
def test_every_argument_has_an_effect(official: Path, tmp_path: Path) -> None:
    assert {*inspect.signature(CIFAR10DataModule).parameters} == {"root", "on_device", *OTHERS}  # see test_device.py
    with pytest.raises(DataError, match=str(tmp_path)):
        CIFAR10DataModule(str(tmp_path)).prepare_data()

    def look(**arguments: Any) -> list[Any]:
        data = ready(official, **arguments)
        x, y = next(iter(data.train_dataloader()))
        return [x.tolist(), y.tolist(), len(data.sets["train"])]

    usual = look()
    assert look() == usual
    for argument, other in OTHERS.items():
        assert look(**{argument: other}) != usual, argument


class Trap:
    """Creates a file when it is unpickled."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("opened"),)


def test_file_with_wrong_md5_is_never_opened(tmp_path: Path) -> None:
    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    for name in [*NAMES, "batches.meta"]:
        (folder / name).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(DataError):
        CIFAR10DataModule(str(tmp_path)).prepare_data()
    assert not Path("opened").exists()


def test_failed_download_gives_one_message_that_says_what_to_do(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    (root / CIFAR10.filename).write_bytes(b"half a download")
    with pytest.raises(DataError) as refusal:
        CIFAR10DataModule(str(root)).prepare_data()
    message = str(refusal.value)
    wanted = (CIFAR10.url, CIFAR10.filename, CIFAR10.tgz_md5, str(root), "--data.root", "--data ShapesDataModule")
    assert [word for word in wanted if word not in message] == []
    assert [path.name for path in root.iterdir()] == [CIFAR10.filename]  # no new file that a later run could use


def test_a_path_as_root_is_saved_as_text(tmp_path: Path) -> None:
    """A checkpoint that holds a Path cannot be opened safely."""
    root = CIFAR10DataModule(tmp_path).hparams["root"]  # type: ignore[arg-type]
    assert type(root) is str
    assert root == str(tmp_path)


def test_message_contains_a_root_that_cannot_be_written(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.touch()
    with pytest.raises(DataError, match=r"data cannot be written \(File exists\).* --data\.root"):
        CIFAR10DataModule(str(root)).prepare_data()


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(0, 60), st.integers(0, 9))
def test_stratified_keeps_the_share_of_each_class(labels: list[int], count: int, seed: int) -> None:
    count = min(count, len(labels))
    every = torch.tensor(labels)
    chosen = choose_stratified(every, count, seed)
    assert chosen.unique().tolist() == chosen.tolist()
    assert len(chosen) == count
    shares = every.bincount(minlength=4) * count / len(labels)
    assert ((every[chosen].bincount(minlength=4) - shares).abs() < 1).all()
    assert torch.equal(choose_stratified(every, count, seed), chosen)


@pytest.mark.parametrize("arguments", [{"batch_size": 0}, {"val_size": -1}, {"val_size": 50_000}])
def test_invalid_arguments_are_refused(arguments: dict) -> None:
    with pytest.raises(DataError, match=r"--data\."):
        CIFAR10DataModule(**arguments)
