"""Folds: each sample is in one of them, groups are whole, and classes are shared equally."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch.utils.data import Dataset

from datamodules import DataError, ImageFolderDataModule, ShapesDataModule
from datamodules.loading.folds import assign_folds, join_sets, refuse_small_classes, take
from tests.support.photos import write_cats_and_dogs


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 9)), min_size=1, max_size=60), st.integers(2, 6))
@example([(0, 1), (1, 1)], 2)
def test_classes_are_shared_within_one_group(groups_of: list[tuple[int, int]], count: int) -> None:
    labels = np.concatenate([np.full(size, label) for label, size in groups_of])
    groups = np.concatenate([np.full(size, 7 * number % 61) for number, (_, size) in enumerate(groups_of)])
    order = np.random.default_rng(len(labels)).permutation(len(labels))
    labels, groups = labels[order], groups[order]
    fold_of = assign_folds(labels, groups, count, seed=3)
    assert ((fold_of >= 0) & (fold_of < count)).all()
    assert all(len(set(fold_of[groups == group])) == 1 for group in set(groups))
    for label in set(labels):
        sizes = np.bincount(fold_of[labels == label], minlength=count)
        assert np.ptp(sizes) <= max(np.bincount(groups[labels == label]))
    if len(set(groups)) == len(groups):
        assert np.ptp(np.bincount(fold_of, minlength=count)) <= 1


def test_a_patient_with_pictures_of_two_classes_stays_whole_and_seeds_differ() -> None:
    random = np.random.default_rng(0)
    groups = random.integers(0, 60, 400)
    labels = (random.random(400) < 0.3).astype(np.int64)
    fold_of = assign_folds(labels, groups, 5, seed=0)
    assert all(len(set(fold_of[groups == group])) == 1 for group in set(groups))
    shares = [labels[fold_of == fold].mean() for fold in range(5)]
    assert np.ptp(shares) < 0.12
    assert (fold_of == assign_folds(labels, groups, 5, seed=0)).all()
    assert (fold_of != assign_folds(labels, groups, 5, seed=1)).any()


def test_the_largest_group_comes_first() -> None:
    groups = np.array([0, 1, 2, 3, 4, 4, 4, 4])
    assert np.bincount(assign_folds(groups * 0, groups, 2, seed=0)).tolist() == [4, 4]


def test_a_class_with_fewer_groups_than_folds_is_named() -> None:
    labels, groups = np.array([0] * 9 + [1] * 6), np.array([*range(9), 9, 9, 10, 10, 11, 11])
    refuse_small_classes(labels, groups, 3, ["cat", "dog"])
    with pytest.raises(DataError, match=r"--folds 4 is more than the 3 pictures .* of class dog: --folds 3"):
        refuse_small_classes(labels, groups, 4, ["cat", "dog"])


def test_joined_sets_have_the_samples_of_both_and_their_own_augmentation() -> None:
    data = ShapesDataModule(12, 5, augment=True)
    data.setup("fit")
    train, plain = join_sets(data)
    parts: Any = [data.dataset("train"), data.dataset("val")]
    assert len(train) == len(plain) == len(train.labels) == 17
    assert torch.equal(plain.images, torch.cat([part.images for part in parts]))
    assert torch.equal(train.labels, torch.cat([part.labels for part in parts]))
    assert train.augment
    assert not plain.augment
    some = take(plain, np.array([16, 0, 13]))
    assert torch.equal(some.__getitems__([2])[0], plain.__getitems__([13])[0])
    assert len(some) == 3
    assert len(plain) == 17


@pytest.mark.parametrize("options", [{"cache": True}, {"image_size": 32}, {}], ids=str)
def test_photos_are_taken_from_their_store(options: Any, tmp_path: Path) -> None:
    data = ImageFolderDataModule(str(write_cats_and_dogs(tmp_path / "photos")), augment=True, **options)
    data.trains_on_all = True
    data.setup("fit")
    _, plain = join_sets(data)
    assert len(plain) == 12
    one = take(take(plain, np.array([3, 8, 10])), np.array([2, 1]))
    x, labels = one.__getitems__([0, 1])
    for row, index in enumerate((10, 8)):
        assert torch.equal(x[row], plain.__getitems__([index])[0][0])
        assert labels[row] == plain.labels[index]
    assert bool(one.bytes_in_memory()) == bool(options)


class HiddenPixels(Dataset):
    """Samples that are not in a tensor."""

    def __init__(self, labels: torch.Tensor, pixels: list[torch.Tensor]) -> None:
        self.labels, self.pixels = labels, pixels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, keys: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.stack([self.pixels[key] for key in keys]), self.labels[keys]


@pytest.mark.parametrize("sizes", [(12, 5), (3, 5)], ids=["IndexError", "other samples"])
def test_datasets_that_hide_their_samples_are_refused(sizes: tuple[int, int]) -> None:
    data = ShapesDataModule(*sizes)
    data.sets = {
        split: HiddenPixels(torch.arange(size), list(torch.rand(size, 3)))
        for split, size in zip(("train", "val"), sizes, strict=True)
    }
    with pytest.raises(DataError, match="one of them labels; ShapesDataModule has others"):
        join_sets(data)
