"""Images of up to 64 pixels, which stay in memory: the plain and the augmented inputs of the network."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from tests.support.batches import Batch, Seen, at, fit, together
from tests.support.pipeline import (
    HALF,
    IMAGENET,
    Recipe,
    assert_same_levels,
    coordinates,
    detailed,
    fill,
    levels,
    save_all,
)

COUNTS = {"train/a": 11, "train/b": 7, "val/a": 2, "val/b": 3}
TRAIN = 18
LENET = Recipe(32, 32, *HALF)
AUGMENTED = "--data photos --model LitCNN --data.augment true --max_epochs 4"
STEP = 250 // 32
HOLE = 8
"""Side of the square that is cut out of an image of 32 x 32."""


class Moved(NamedTuple):
    """The augmentation of an image: its shift down and right, True if it was flipped, and the pixels that were cut
    out."""

    number: int
    down: int
    right: int
    flipped: bool
    hole: np.ndarray


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Working folder with ``photos`` of 32 x 32 pixels; no pixel is black."""
    with at(tmp_path_factory.mktemp("small")) as here:
        fill(here / "photos", COUNTS, lambda number: coordinates(5 * number + 5, 32, 32))
        yield here


@pytest.fixture(scope="module")
def seen(photos: Path) -> Seen:
    """Four epochs of augmented images."""
    return fit(AUGMENTED)


def moves(batches: list[Batch]) -> list[Moved]:
    """Return the augmentation of each image, read from its colors; check that each remaining pixel is right."""
    found = []
    rows, columns = np.mgrid[:32, :32]
    for picture in levels(together(batches)[0], LENET).round().astype(int):
        blue = picture[..., 2].max()
        left = picture[..., 2] == blue
        flipped = bool(np.diff(picture[..., 0])[left[:, 1:] & left[:, :-1]].mean() < 0)
        was = picture[..., 0] // STEP
        right, down = columns - (31 - was if flipped else was), rows - picture[..., 1] // STEP
        assert len({*right[left]}) == len({*down[left]}) == 1
        assert (picture[~left] == 0).all()
        d, r = int(down[left][0]), int(right[left][0])
        inside = (rows >= d) & (rows < 32 + d) & (columns >= r) & (columns < 32 + r)
        assert left[~inside].sum() == 0
        found.append(Moved(blue // 5 - 1, d, r, flipped, inside & ~left))
    return found


def test_augmented_images_are_flipped_shifted_and_cut_out(seen: Seen) -> None:
    found = [move for epoch in seen.train for move in moves(epoch)]
    assert {move.down for move in found} == {move.right for move in found} == {*range(-4, 5)}
    assert 0.3 < np.mean([move.flipped for move in found]) < 0.7
    corners = []
    for move in found:
        rows, columns = np.nonzero(move.hole)
        assert len(rows)
        high, wide = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert high <= HOLE
        assert wide <= HOLE
        assert high * wide == len(rows)  # a rectangle; only the border may cut it
        for side, first, shift in ((high, rows.min(), move.down), (wide, columns.min(), move.right)):
            assert side == HOLE or first in (0, max(0, shift)) or first + side in (32, min(32, 32 + shift))
        corners.append((rows.min(), columns.min()))
    assert np.std(corners, axis=0).min() > 6  # anywhere


def test_each_epoch_shows_every_image_once_with_new_augmentation(seen: Seen) -> None:
    known = set()
    for epoch in seen.train:
        found = moves(epoch)
        assert [len(labels) for _, labels in epoch] == [4, 4, 4, 4, 2]
        assert sorted(move.number for move in found) == list(range(TRAIN))
        assert [int(move.number >= COUNTS["train/a"]) for move in found] == together(epoch)[1].tolist()
        known |= {(move.down, move.right, move.flipped, move.hole.tobytes()) for move in found}
    assert len(known) > 4 * TRAIN - 4


def test_validation_is_never_augmented(seen: Seen) -> None:
    for epoch in (*seen.val, seen.final):
        inputs, labels = together(epoch)
        assert labels.tolist() == [0] * 2 + [1] * 3
        for number, picture in enumerate(inputs, start=TRAIN):
            assert_same_levels(picture, LENET, coordinates(5 * number + 5, 32, 32))


def test_augmentation_depends_on_the_seeds(photos: Path, seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos)
    first = {move.number: move[1:4] for move in moves(seen.train[0])}
    again = fit(f"{AUGMENTED} --max_epochs 1").train[0]
    assert np.array_equal(together(again)[0], together(seen.train[0])[0])
    for seed in ("--seed 1", "--data.seed 1"):
        other = {move.number: move[1:4] for move in moves(fit(f"{AUGMENTED} --max_epochs 1 {seed}").train[0])}
        assert list(other) != list(first)
        assert sum(other[number] == first[number] for number in first) < 4


def test_small_images_get_the_normalization_of_the_backbone(tmp_path: Path) -> None:
    """Mean and std differ between channels; the images are wide or high, and are made smaller."""
    sizes = {"train/a": (50, 37), "train/b": (41, 64), "val/a": (90, 61), "val/b": (63, 70)}
    for folder, size in sizes.items():
        save_all(tmp_path / "photos" / folder, {f"{number}.png": detailed(number, *size) for number in range(3)})
    flags = "--data photos --data.image_size 32 --model.backbone timm/test_efficientnet --model.weights none"
    ordered = "--data.batch_size 6 --overfit_batches 1 --max_epochs 1"
    found = fit(f"{flags} --model.freeze false --data.augment false {ordered}")
    recipe = Recipe(34, 32, *IMAGENET, "bicubic")  # 32 * 168 / 160 = 33.6
    for batches, split in ((found.train[0], "train"), (found.final, "val")):
        inputs, labels = together(batches)
        assert labels.tolist() == [0, 0, 0, 1, 1, 1]
        wanted = [(sizes[f"{split}/{name}"], number) for name in "ab" for number in range(3)]
        for x, (size, number) in zip(inputs, wanted, strict=True):
            assert_same_levels(x, recipe, detailed(number, *size))
