"""Data on the device: the same batches as from the CPU's memory, and no picture is copied after the first step."""

import copy
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from datamodules import CIFAR10DataModule, ImageFolderDataModule, RandomDataModule, ShapesDataModule
from datamodules.errors import DataError
from datamodules.loading import device as loading
from datamodules.loading.loader import ResumableLoader, make_loader
from datamodules.text import print_once
from lit_training.callbacks.features import Features
from tests.support.loaders import rank_of

EVERY_AUGMENTATION = "crop,flip,rotate,color,trivial"


@pytest.fixture(autouse=True)
def every_note() -> None:
    print_each_note_again()


def print_each_note_again() -> None:
    print_once.cache_clear()


def dataset_of(kind: str, photo_folder: Path) -> Any:
    data: Any
    if kind == "rows":
        data = RandomDataModule(3, 2, length=10, batch_size=4, steps=0)
    elif kind.startswith("photos"):
        data = ImageFolderDataModule(str(photo_folder), image_size=80, cache=True, augment=kind.partition(" ")[2])
    else:
        data = ShapesDataModule(train_size=10, val_size=3, augment=kind.partition(" ")[2] or False)
    data.setup("fit")
    train = data.dataset("train")
    return Features(torch.randn(len(train), 3), train) if kind == "features" else train


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(
    "kind",
    ["shapes", "shapes true", f"shapes {EVERY_AUGMENTATION}", "rows", "features", "photos false", "photos crop,flip"],
)
def test_resident_data_give_the_same_batches(kind: str, train: bool, photo_folder: Path) -> None:
    data = dataset_of(kind, photo_folder)
    for rank in range(3):
        resident, streamed, one_by_one = loaders = [
            make_loader(data, rank_of(rank, 3), batch_size=2, seed=5, train=train) for _ in range(3)
        ]
        resident.resident = copy.copy(data)
        for loader in loaders:
            loader.sampler.set_epoch(3)  # type: ignore[attr-defined]
        keys = list(one_by_one.sampler)
        batches = [list(loader) for loader in (resident, streamed)]
        assert [len(y) for _, y in batches[0]] == [len(keys[first : first + 2]) for first in range(0, len(keys), 2)]
        for x, y in zip(*(zip(*one, strict=True) for one in batches), strict=True):
            assert all(torch.equal(a, b) or a.isnan().all() for a, b in zip(x, y, strict=True))
        for position, key in enumerate(keys):
            want_x, want_y = data[key]
            x, y = batches[0][position // 2]
            assert torch.equal(x[position % 2], want_x)
            assert torch.equal(y[position % 2].nan_to_num(-7), want_y.nan_to_num(-7))


class Copies(TorchDispatchMode):
    """Record the dtype and shape of each tensor that is copied from the CPU to another device."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[torch.dtype, tuple[int, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            sources = [one for one in args if isinstance(one, Tensor) and one.device.type == "cpu" and one.ndim]
            if sources and result.device.type != "cpu":
                self.seen += [(one.dtype, tuple(one.shape)) for one in sources]
        return result


@pytest.fixture
def meta(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a rank whose device is torch's meta device, which computes shapes only."""
    monkeypatch.setattr(loading, "DEVICE_TYPES", ("cpu", "meta"))
    return rank_of(0, 1, device="meta")


def epochs_on(meta: Any, data: Any, on_device: bool) -> tuple[list[Any], list[Any]]:
    """Return the batches of two epochs, and what was copied to the device after the loader was made."""
    loader = make_loader(data, meta, batch_size=4, seed=0, train=True, on_device=on_device)
    with Copies() as copies:
        batches = [batch for _ in range(2) for batch in loader]
    return batches, copies.seen


@pytest.mark.parametrize("kind", ["shapes", "shapes true", "rows", "features"])
def test_only_the_keys_are_copied_to_the_device(
    kind: str, meta: Any, photo_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And :func:`copy_to` copies them: it does not wait for a GPU."""
    data, ahead = dataset_of(kind, photo_folder), list[tuple[int, ...]]()

    def copy_to(keys: Tensor, device: torch.device) -> Tensor:
        ahead.append(tuple(keys.shape))
        return loading.copy_to(keys, device)

    monkeypatch.setattr("datamodules.loading.loader.copy_to", copy_to)
    batches, copied = epochs_on(meta, data, True)
    assert {tensor.device.type for batch in batches for tensor in batch} == {"meta"}
    assert [len(y) for _, y in batches] == 2 * [min(4, len(data) - first) for first in range(0, len(data), 4)]
    assert copied == 2 * [(torch.int64, (len(data),))]
    assert ahead == 2 * [(len(data),)]


def test_a_prediction_reads_resident_data_with_keys_on_the_device(meta: Any, photo_folder: Path) -> None:
    """Lightning gives the loader of a prediction a sampler of its own."""
    data: Any = dataset_of("shapes", photo_folder)
    loader = ResumableLoader(data, batch_sampler=[[0, 1], [2]])
    loader.device, loader.resident = meta.strategy.root_device, data.on(meta.strategy.root_device)
    with Copies() as copies:
        batches = list(loader)
    assert [(y.device.type, len(y)) for _, y in batches] == [("meta", 2), ("meta", 1)]
    assert not copies.seen, "the keys were used on the CPU"


@pytest.mark.parametrize("kind", [ShapesDataModule, RandomDataModule, CIFAR10DataModule, ImageFolderDataModule])
def test_on_device_is_an_argument_of_each_data_module(kind: Any, meta: Any, photo_folder: Path) -> None:
    arguments = {"root": str(photo_folder)} if "root" in signature(kind).parameters else {}
    found = {}
    for on_device in (True, False, "auto"):
        data = kind(**arguments, on_device=on_device)
        data.trainer, data.sets = meta, {"train": dataset_of("shapes", photo_folder)}
        found[on_device] = data.train_dataloader().resident is not None
    assert found == {True: True, False: False, "auto": False}  # the meta device has no free memory


@pytest.mark.parametrize("kind", ["shapes", "photos crop,flip"])
def test_pictures_that_do_not_stay_on_the_device_are_copied_as_uint8(kind: str, meta: Any, photo_folder: Path) -> None:
    data = dataset_of(kind, photo_folder)
    batches, copied = epochs_on(meta, data, False)
    assert {(x.dtype, x.device.type) for x, _ in batches} == {(torch.float32, "meta")}
    pictures = [(dtype, shape[0]) for dtype, shape in copied if len(shape) == 4]
    assert {dtype for dtype, _ in pictures} == {torch.uint8}
    assert sum(count for _, count in pictures) == 2 * len(data)


def test_data_stay_on_the_device_if_a_quarter_of_its_memory_is_enough(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loading.TwoStageDataset, "on", lambda data, device: (data, device))
    pictures = dataset_of("shapes", Path())
    size, cuda, mps = pictures.images.nbytes + pictures.labels.nbytes, torch.device("cuda"), torch.device("mps")
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: size)
    for free, is_resident in ((4 * size, True), (4 * size - 1, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 10 * size))
        monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda free=free: free + size)
        assert (loading.resident_copy(pictures, mps, "auto") is not None) == is_resident
        assert ("--data.on_device true" in capsys.readouterr().err) != is_resident
        print_each_note_again()
        assert (loading.resident_copy(pictures, cuda, "auto") is not None) == is_resident
        assert ("--data.on_device true" in capsys.readouterr().err) != is_resident
        assert loading.resident_copy(pictures, cuda, True) == (pictures, cuda)
        assert loading.resident_copy(pictures, cuda, False) is None
    assert loading.resident_copy(pictures, torch.device("cpu"), True) is None


def test_all_tensors_are_on_the_device() -> None:
    pictures, meta = dataset_of("shapes", Path()), torch.device("meta")
    assert pictures.on(torch.device("cpu")) is pictures
    pictures.labels = pictures.labels.to(meta)
    assert {tensor.device for tensor in vars(pictures.on(meta)).values() if isinstance(tensor, Tensor)} == {meta}


def test_what_cannot_stay_on_the_device_is_refused(photo_folder: Path) -> None:
    files = ImageFolderDataModule(str(photo_folder), image_size=80)
    files.setup("fit")
    for data, value, message in ((files.dataset("train"), True, "--data.cache true"), (files, "yes", "yes")):
        with pytest.raises(DataError, match=message):
            loading.resident_copy(getattr(data, "sets", {}).get("train", data), torch.device("cpu"), value)


@pytest.mark.parametrize("hook", loading.TRANSFER_HOOKS)
@pytest.mark.parametrize("owner", ["lightning_module", "datamodule"])
def test_own_transfer_hook_gets_the_batches_on_the_cpu(
    hook: str, owner: str, meta: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    base: Any = LightningModule if owner == "lightning_module" else ShapesDataModule
    setattr(meta, owner, type(f"Own_{owner}", (base,), {hook: lambda self, batch, *_: batch})())
    batches, copied = epochs_on(meta, dataset_of("shapes true", Path()), True)
    assert {(x.device.type, x.dtype) for x, _ in batches} == {("cpu", torch.float32)}
    assert not copied
    assert f"because Own_{owner} has its own {hook}" in capsys.readouterr().err
