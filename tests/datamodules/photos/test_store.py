"""Decoded pictures in a memory-mapped file."""

import os
import pickle
from pathlib import Path
from threading import Event

import pytest
import torch
from torch import Tensor

from datamodules.errors import DataError
from datamodules.photos.decode import BadPicture
from datamodules.photos.store import PictureStore, store_path

SIZES = [(5, 7), (1, 1), (12, 3)]


def picture(index: int) -> Tensor:
    height, width = SIZES[index % len(SIZES)]
    pixels = torch.arange(3 * height * width, dtype=torch.uint8).view(height, width, 3) + index
    return pixels.permute(2, 0, 1)  # not contiguous, as decoders return them


def test_pictures_come_back_as_they_were_written(tmp_path: Path) -> None:
    PictureStore.write(tmp_path / "x.pictures", 7, picture)
    store = PictureStore(tmp_path / "x.pictures")
    assert len(store) == 7
    for index in range(7):
        assert torch.equal(store[index], picture(index))


def test_few_decoded_pictures_wait_for_a_slow_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datamodules.photos.store.MAX_WAITING_PICTURES", 2)
    monkeypatch.setattr("datamodules.photos.store.available_cores", lambda: 4)
    third = Event()

    def read(index: int) -> Tensor:
        if index == 2:
            third.set()
        if index == 1:
            assert not third.wait(0.2), "the third picture is decoded before the first two are written"
        return picture(index)

    PictureStore.write(tmp_path / "x.pictures", 3, read)


def test_a_pickled_store_maps_the_file_again(tmp_path: Path) -> None:
    PictureStore.write(
        tmp_path / "x.pictures", 300, lambda index: torch.full((3, 8, 8), index % 256, dtype=torch.uint8)
    )
    pickled = pickle.dumps(PictureStore(tmp_path / "x.pictures"))
    assert len(pickled) < 300 * 3 * 64 / 4
    assert pickle.loads(pickled).stacked().shape == (300, 3, 8, 8)
    assert torch.equal(pickle.loads(pickled).stacked()[:, 0, 0, 0], torch.arange(300).to(torch.uint8))


def test_the_error_for_a_cache_that_cannot_be_written_names_folder_and_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jpg").touch()
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    path = store_path(tmp_path, ["a.jpg"], {})
    with pytest.raises(
        DataError, match=r"cannot be written to .*file/lit-classics/pictures \(Not a dir.*XDG_CACHE_HOME"
    ):
        PictureStore.write(path, 7, picture)


def test_the_error_names_a_picture_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(BadPicture, match=r"gone\.jpg: unreadable \(No such file"):
        store_path(tmp_path, ["gone.jpg"], {})


def test_a_picture_that_cannot_be_read_leaves_no_file(tmp_path: Path) -> None:
    def read(index: int) -> Tensor:
        if index == 3:
            raise ValueError("three")
        return picture(index)

    with pytest.raises(ValueError, match="three"):
        PictureStore.write(tmp_path / "x.pictures", 5, read)
    assert list(tmp_path.iterdir()) == []


def test_another_size_time_or_setting_has_another_file(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"12345")
    paths = ["a.jpg"]
    first = store_path(tmp_path, paths, {"size": 32})
    assert len(first.stem) == 32, "a shorter name could be that of other pictures"
    assert store_path(tmp_path, paths, {"size": 32}) == first
    assert store_path(tmp_path, paths, {"size": 33}) != first
    assert store_path(Path(os.path.relpath(tmp_path)), paths, {"size": 32}) == first
    found = {first}
    for nanoseconds in (1, 1000):
        os.utime(tmp_path / "a.jpg", ns=(1, nanoseconds))
        found.add(store_path(tmp_path, paths, {"size": 32}))
    assert len(found) == 3
