"""Inputs of a prediction: their order, the same pixels as in validation, and error messages."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datamodules import DataError, ImageFolderDataModule, Preprocessing
from datamodules.loading.memory import normalize
from datamodules.photos.find import PICTURE_SUFFIXES
from lit_models import LitCNN
from lit_training.trained import inputs
from lit_training.trained.inputs import find_files, read_pictures, read_rows

SPEC = Preprocessing.from_dict(LitCNN(num_classes=2).preprocessing)


def photos_of(folder: Path) -> list[str]:
    return find_files([str(folder)], PICTURE_SUFFIXES)


# --- files ------------------------------------------------------------------------------------------------------------


def test_inputs_keep_their_order_and_folders_are_sorted(tmp_path: Path) -> None:
    for name in ("b/2.jpg", "b/10.PNG", "b/a/deep.jpg", "b/.hidden.jpg", "b/.ipynb_checkpoints/x.jpg", "b/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name in ("z.jpg", "y1.jpg", "y2.jpg", "what[1].jpg", "odd.name"):
        (tmp_path / name).touch()
    (tmp_path / "b" / "loop").symlink_to(tmp_path / "b")
    found = find_files(["z.jpg", "b", "y*.jpg", "what[1].jpg", "none*.jpg", "gone.jpg", "odd.name"], PICTURE_SUFFIXES)
    assert found == [
        *("z.jpg", "b/10.PNG", "b/2.jpg", "b/a/deep.jpg", "y1.jpg", "y2.jpg", "what[1].jpg"),
        *("none*.jpg", "gone.jpg", "odd.name"),
    ]
    assert find_files(["**/*.jpg"], PICTURE_SUFFIXES)[:2] == ["b/2.jpg", "b/a/deep.jpg"]


# --- images -----------------------------------------------------------------------------------------------------------


def test_images_are_the_same_as_in_validation(photo_folder: Path) -> None:
    data = ImageFolderDataModule(str(photo_folder), image_size=72)
    data.adapt_to(LitCNN(num_classes=2))
    data.setup("fit")
    spec = data.preprocessing
    read = [sample.x for sample in read_pictures(photos_of(photo_folder / "val"), spec, 2) if sample.x is not None]
    validation: Any = data.val_dataloader()
    assert torch.equal(normalize(torch.stack(read), spec.mean, spec.std), next(iter(validation))[0])


@pytest.mark.parametrize(("ahead", "seen"), [(0, 5), (1, 10), (2, 15), (9, 24)])
def test_batches_are_decoded_in_advance(
    photo_folder: Path, ahead: int, seen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, read = photos_of(photo_folder), inputs.read_pixels
    started: list[str] = []

    def watched(source: str) -> torch.Tensor:
        started.append(source)
        return read(source)

    monkeypatch.setattr(inputs, "read_pixels", watched)
    monkeypatch.setattr(inputs, "available_cores", lambda: 1)
    samples = read_pictures(files, SPEC, 5, ahead)
    first = [next(samples) for _ in range(5)]
    assert [sample.path for sample in first] == files[:5]
    assert len(started) <= seen
    rest = list(samples)
    assert [sample.path for sample in rest] == files[5:]
    assert started == files
    assert len(files) == 24


def test_path_pil_image_and_array_give_the_same_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("a.png")
    sources = ["a.png", Path("a.png"), Image.open("a.png"), pixels]
    read = list(read_pictures(sources, SPEC, 3))
    assert [sample.path for sample in read] == ["a.png", "a.png", "picture 3", "picture 4"]
    assert [sample.error for sample in read] == [""] * 4
    first = read[0].x
    assert first is not None
    assert first.shape == (3, 32, 32)
    assert first.dtype == torch.uint8
    assert all(torch.equal(first, sample.x) for sample in read if sample.x is not None)


def test_gray_array_becomes_three_equal_channels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    [sample] = read_pictures([pixels], SPEC, 1)
    assert sample.x is not None
    assert torch.equal(sample.x, torch.from_numpy(pixels).expand(3, 32, 32))


@pytest.mark.parametrize(
    "array",
    [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 4), np.uint8), np.zeros((3, 4, 4), np.uint8), np.zeros(4)],
    ids=["float", "four channels", "channels first", "a row"],
)
def test_array_that_is_not_an_image_is_refused_in_one_line(array: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"is not a picture: give \(H, W, 3\) of uint8") as refused:
        list(read_pictures([array], SPEC, 1))
    assert "\n" not in str(refused.value)
    assert f"an array {array.shape} of {array.dtype}" in str(refused.value)


def test_unreadable_files_have_an_error(photo_folder: Path, tmp_path: Path) -> None:
    good = photos_of(photo_folder)[0]
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "cut.jpg").write_bytes(Path(good).read_bytes()[:900])
    (tmp_path / "nothing").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "dangling.jpg").symlink_to("nowhere.jpg")
    names = [
        "empty.jpg",
        "text.jpg",
        "cut.jpg",
        "nothing",
        "pipe.jpg",
        "loop.jpg",
        "dangling.jpg",
        "gone.jpg",
        "g*.bmp",
    ]
    samples = list(read_pictures([good, *names, good], SPEC, 4))
    assert [sample.path for sample in samples] == [good, *names, good]
    assert [sample.error for sample in samples] == [
        "",
        "empty (0 bytes)",
        "not a picture (text inside)",
        samples[3].error,
        "folder without files to predict",
        "a named pipe, not a file",
        "unreadable (Too many levels of symbolic links)",
        "broken symbolic link",
        "no such file",
        "matches no file",
        "",
    ]
    assert samples[3].error.startswith("truncated")
    assert [sample.x is None for sample in samples] == [bool(sample.error) for sample in samples]


# --- rows -------------------------------------------------------------------------------------------------------------


def test_rows_of_csv_and_npy() -> None:
    Path("a.csv").write_text("\ufefffirst,second\n1,2\n\n3,4.5\n5\nx,1\nnan,1\n1e999,1\n", encoding="utf-8")
    Path("headless.csv").write_text("\ufeff-1, 2\n", encoding="utf-8")
    np.save("b.npy", np.array([[1, 2], [3, 4]], dtype=np.int16))
    np.save("one.npy", np.array([0.5, 2.0]))
    np.save("object.npy", np.array([{}], dtype=object))
    np.save("cube.npy", np.zeros((2, 2, 2)))
    Path("empty.csv").touch()
    Path("binary.csv").write_bytes(b"\xff\xfe\x00")
    Path("rows.txt").write_text("1,2")
    names = ["a.csv", "headless.csv", "b.npy", "one.npy", "object.npy", "cube.npy", "empty.csv", "binary.csv"]
    samples = list(read_rows([*names, "rows.txt", "gone.csv"], 2))
    read = [(sample.path, sample.row, sample.x.tolist()) for sample in samples if sample.x is not None]
    assert read == [
        ("a.csv", 1, [1, 2]),
        ("a.csv", 2, [3, 4.5]),
        ("headless.csv", 1, [-1, 2]),
        ("b.npy", 1, [1, 2]),
        ("b.npy", 2, [3, 4]),
        ("one.npy", 1, [0.5, 2]),
    ]
    errors = [(sample.path, sample.row, sample.error) for sample in samples if sample.x is None]
    assert errors[:4] == [
        ("a.csv", 3, "1 value, but the network takes 2"),
        ("a.csv", 4, "x is not a finite number"),
        ("a.csv", 5, "nan is not a finite number"),
        ("a.csv", 6, "1e999 is not a finite number"),
    ]
    assert [path for path, _, _ in errors[4:]] == [*names[4:], "rows.txt", "gone.csv"]
    assert errors[6][2] == "contains no rows"
    assert errors[8][2] == "not a file of rows: give a .csv or .npy file"
    assert {sample.x.dtype for sample in samples if sample.x is not None} == {torch.float32}


@settings(max_examples=100)
@given(
    head=st.sampled_from([b"", b"PK\x03\x04", b"\x93NUMPY\x01\x00", b"\x93NUMPY\x01\x00\x10\x00{'descr': '<f4',"]),
    content=st.binary(max_size=60) | st.text("0123456789.,-\n\"'{}():", max_size=60).map(str.encode),
    suffix=st.sampled_from(["csv", "npy"]),
)
def test_no_file_content_raises(
    head: bytes, content: bytes, suffix: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("rows") / f"any.{suffix}"
    file.write_bytes(head + content)
    for sample in read_rows([str(file)], 2):
        assert (sample.x is None) == bool(sample.error)
