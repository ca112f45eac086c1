"""The inputs of a network in each epoch of training on photos: fit.py, from the files to the batches.

The color of each pixel is its position, so a batch shows how it was cropped.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from datamodules import ImageFolderDataModule
from tests.support.batches import Batch, Seen, at, fit, together
from tests.support.pipeline import (
    HALF,
    IMAGENET,
    Recipe,
    assert_same_levels,
    coordinates,
    fill,
    levels,
)

COUNTS = {"train/b": 13, "train/a": 9, "val/a": 5, "val/b": 7}
TRAIN, VAL = 22, 12
SIZE = 72
CROPPED = Recipe(82, SIZE, *IMAGENET)  # 72 * 256 / 224 = 82.3
RANDOM = "--data photos --data.image_size 72 --data.augment true --model.weights none --data.batch_size 4"
SHUFFLENET = f"{RANDOM} --model.backbone shufflenet_v2_x0_5"


def numbered(number: int) -> Image.Image:
    return coordinates(5 * number + 5)


class Crop(NamedTuple):
    """The position of a crop, in pixels of the file."""

    number: int
    left: float
    top: float
    wide: float
    high: float
    flipped: bool


def crops(batches: list[Batch], step: int = 2) -> list[Crop]:
    """Return the image number and the crop of each input, read from its colors."""
    found = []
    for picture in levels(together(batches)[0], CROPPED):
        number = (picture[..., 2].mean() - 5) / 5
        assert abs(number - round(number)) < 0.05
        assert np.ptp(picture[..., 2]) < 0.1
        # Far from the border the colors rise evenly: one step per pixel of the crop.
        across = np.polyfit(np.arange(16, 56), picture[20:50, 16:56, 0].mean(0) / step, 1)
        down = np.polyfit(np.arange(16, 56), picture[16:56, 20:50, 1].mean(1) / step, 1)
        wide, high = abs(across[0]) * SIZE, down[0] * SIZE
        middle = (SIZE - 1) / 2
        left, top = np.polyval(across, middle) + 0.5 - wide / 2, np.polyval(down, middle) + 0.5 - high / 2
        found.append(Crop(round(number), left, top, wide, high, bool(across[0] < 0)))
    return found


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Working folder of all tests here, with ``photos``."""
    with at(tmp_path_factory.mktemp("pictures")) as here:
        fill(here / "photos", COUNTS, numbered)
        yield here


@pytest.fixture(scope="module")
def seen(photos: Path) -> Seen:
    """Three epochs of random crops."""
    return fit(f"{SHUFFLENET} --max_epochs 3")


@pytest.fixture
def in_workspace(photos: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the working folder the current folder."""
    monkeypatch.chdir(photos)
    return photos


def same(one: Any, other: Any) -> bool:
    """Return True if two lists of batches are equal bit for bit."""
    return all(np.array_equal(a, b) for a, b in zip(together(one), together(other), strict=True))


def test_each_epoch_shows_every_image_once_in_a_new_order(seen: Seen) -> None:
    orders = []
    for epoch in seen.train:
        assert [len(labels) for _, labels in epoch] == [4, 4, 4, 4, 4, 2]
        numbers = [crop.number for crop in crops(epoch)]
        labels = together(epoch)[1]
        assert sorted(numbers) == list(range(TRAIN))
        assert [int(number < COUNTS["train/b"]) for number in numbers] == labels.tolist()  # a is 0, b is 1
        orders.append(tuple(numbers))
    assert len({*orders, tuple(range(TRAIN))}) == 4


def test_a_crop_has_a_random_place_size_and_shape(seen: Seen) -> None:
    found = [crop for epoch in seen.train for crop in crops(epoch)]
    shares = [crop.wide * crop.high / (120 * 90) for crop in found]
    shapes = [crop.wide / crop.high for crop in found]
    assert 0.06 < min(shares) < 0.2
    assert 0.85 < max(shares) < 1.03
    assert 0.3 < np.mean(shares) < 0.7
    assert 0.72 < min(shapes) < 0.82
    assert 1.25 < max(shapes) < 1.37
    assert min(min(crop.left, crop.top, 121 - crop.left - crop.wide, 91 - crop.top - crop.high) for crop in found) > -1
    free = [(crop.left / (120 - crop.wide), crop.top / (90 - crop.high)) for crop in found if crop.high < 70]
    assert np.std(free, axis=0).min() > 0.2  # a uniform distribution has 0.29
    assert 20 < sum(crop.flipped for crop in found) < 46


def test_each_image_has_a_new_crop_in_each_epoch(seen: Seen) -> None:
    boxes = {epoch: {crop.number: crop[1:5] for crop in crops(batches)} for epoch, batches in enumerate(seen.train)}
    every = np.array([boxes[epoch][number] for epoch in boxes for number in range(TRAIN)])
    apart = np.abs(every[:, None] - every[None]).max(2)
    assert (apart < 1).sum() == len(every)  # only itself


def test_validation_uses_center_crops_in_order(seen: Seen) -> None:
    names = [*range(TRAIN, TRAIN + VAL)]
    for epoch in (*seen.val, seen.final):
        inputs, labels = together(epoch)
        assert labels.tolist() == [0] * 5 + [1] * 7
        for number, picture in zip(names, inputs, strict=True):
            assert_same_levels(picture, CROPPED, numbered(number))


def test_only_training_uses_random_crops(in_workspace: Path) -> None:
    """In a notebook the data module is used without fit.py; its default mean and std are those of ImageNet."""
    fill(
        in_workspace / "tested",
        {"train/a": 2, "train/b": 2, "val/a": 2, "val/b": 1, "test/a": 1, "test/b": 2},
        numbered,
    )
    data = ImageFolderDataModule(str(in_workspace / "tested"), image_size=SIZE, augment=True)
    data.prepare_data()
    data.setup("test")
    for loader, numbers in ((data.test_dataloader(), (7, 8, 9)), (data.predict_dataloader(), (4, 5, 6))):
        inputs, labels = together(list(loader))
        assert labels.tolist() == [int(number in (6, 8, 9)) for number in numbers]
        for number, x in zip(numbers, inputs, strict=True):
            assert_same_levels(x, CROPPED, numbered(number))


def test_order_and_crops_depend_on_the_seeds(in_workspace: Path, seen: Seen) -> None:
    first = {crop.number: crop for crop in crops(seen.train[0])}
    again = fit(f"{SHUFFLENET} --max_epochs 1 --data.num_workers 1")
    assert same(again.train[0], seen.train[0])
    for seed in ("--seed 1", "--data.seed 1"):
        other = {crop.number: crop for crop in crops(fit(f"{SHUFFLENET} --max_epochs 1 {seed}").train[0])}
        assert list(other) != list(first)
        boxes = np.array([[mine[number][1:5] for number in range(TRAIN)] for mine in (first, other)])
        assert (np.abs(boxes[0] - boxes[1]).max(1) > 1).sum() > TRAIN - 2


def test_overfitting_shows_the_same_batches_in_order(in_workspace: Path) -> None:
    found = fit("--data photos --model LitCNN --overfit_batches 2 --max_epochs 2")
    first, second = found.train
    assert same(first, second)
    blue = levels(together(first)[0], Recipe(32, 32, *HALF))[:, 16, 16, 2]
    assert np.allclose(blue, [70, 75, 80, 85, 90, 95, 100, 105], atol=0.1)  # a comes before b


@pytest.mark.parametrize(
    ("backbone", "kind"), [("shufflenet_v2_x0_5", "bilinear"), ("timm/test_efficientnet", "bicubic")]
)
@pytest.mark.parametrize("cache", ["", "--data.cache true"])
def test_crops_are_resized_with_the_filter_of_the_backbone(
    tmp_path: Path, backbone: str, kind: str, cache: str
) -> None:
    """Beside an edge the bicubic filter overshoots; the bilinear filter does not."""

    def steps(number: int) -> Image.Image:
        random = np.random.default_rng(number)
        blocks = 60 + 130 * random.integers(0, 2, (6, 8, 3)).repeat(15, 0).repeat(15, 1)
        return Image.fromarray(blocks.astype(np.uint8))

    fill(tmp_path / "photos", {"train/a": 4, "train/b": 4, "val/a": 1, "val/b": 1}, steps)
    epoch = fit(f"{RANDOM} --model.backbone {backbone} --max_epochs 1 {cache}").train[0]
    seen = levels(together(epoch)[0], CROPPED)
    most = (seen.max((1, 2, 3)) - 190).clip(0), (60 - seen.min((1, 2, 3))).clip(0)
    assert (np.minimum(*most) > 5).all() if kind == "bicubic" else np.max(most) < 0.1
