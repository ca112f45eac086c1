"""Pictures in memory: normalization, and augmentation that depends only on (seed, epoch, index)."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from datamodules import Preprocessing
from datamodules.loading.augmentation import FLIP_SHIFT_CUTOUT
from datamodules.loading.memory import CUTOUT, SHIFT, Pictures, flip_shift_cutout, normalize
from datamodules.loading.order import PADDING
from datamodules.loading.seeds import draw_uniform

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def pictures(
    n: int = 12,
    channels: int = 3,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    augment: tuple[str, ...] = (),
    seed: int = 0,
) -> Pictures:
    generator = torch.Generator().manual_seed(n)
    images = torch.randint(1, 256, (n, channels, 32, 32), generator=generator, dtype=torch.uint8)
    half = [0.5] * channels
    spec = Preprocessing(32, 32, mean or half, std or half)
    return Pictures(images, torch.arange(n) % 10, spec, augment, seed)


@pytest.mark.parametrize(("mean", "std"), [(MEAN, STD), ([0.5] * 3, [0.5] * 3)])
def test_normalize_equals_its_formula(mean: list[float], std: list[float]) -> None:
    every = torch.arange(256, dtype=torch.uint8).expand(3, 1, 256)
    m, s = (torch.tensor(numbers, dtype=torch.float64).view(3, 1, 1) for numbers in (mean, std))
    got = normalize(every, mean, std)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), (every.double() / 255 - m) / s, rtol=0, atol=1e-6)


def test_batch_has_the_requested_pictures_and_padding_has_label_minus_1() -> None:
    data = pictures(mean=MEAN, std=STD)
    images, labels = data.__getitems__([3, PADDING, 15])  # key 15 is picture 3 in the second epoch
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert labels.tolist() == [3, -1, 3]
    assert torch.equal(images[0], images[2])
    assert torch.equal(images[0], data[3][0])
    assert int(data[3][1]) == 3


def augment_slowly(image: Tensor, numbers: list[float]) -> Tensor:
    """Shift, flip and cut out one image, pixel by pixel."""
    _, height, width = image.shape
    flip, down, right = numbers[0] < 0.5, int(numbers[1] * (2 * SHIFT + 1)), int(numbers[2] * (2 * SHIFT + 1))
    top, left = int(numbers[3] * height) - CUTOUT // 2, int(numbers[4] * width) - CUTOUT // 2
    result = torch.zeros_like(image)
    for row in range(height):
        for column in range(width):
            # a window of the padded picture, then flipped
            r, c = row + down - SHIFT, (width - 1 - column if flip else column) + right - SHIFT
            hole = top <= row < top + CUTOUT and left <= column < left + CUTOUT
            if 0 <= r < height and 0 <= c < width and not hole:
                result[:, row, column] = image[:, r, c]
    return result


@pytest.mark.parametrize("channels", [1, 3])
def test_augmentation_equals_a_slow_reference(channels: int) -> None:
    data = pictures(8, channels)
    numbers = draw_uniform(3, torch.arange(8), 5)
    numbers[0] = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0])  # the smallest numbers; the next row has nearly the largest
    numbers[1] = torch.tensor([0.9999, 0.9999, 0.9999, 0.9999, 0.9999])
    got = flip_shift_cutout(data.images, numbers)
    for image, row, one in zip(data.images, numbers.tolist(), got, strict=True):
        want = augment_slowly(image, row)
        assert torch.equal(one, want)


@given(st.lists(st.integers(0, 59), min_size=1, max_size=8), st.integers(0, 3))
def test_augmentation_depends_only_on_seed_epoch_and_index(keys: list[int], seed: int) -> None:
    data = pictures(augment=FLIP_SHIFT_CUTOUT, seed=seed)
    images, _ = data.__getitems__(keys)
    for image, key in zip(images, keys, strict=True):
        assert torch.equal(image, data[key][0])
        numbers = draw_uniform(data.seed, torch.tensor([key]), 5)
        raw = flip_shift_cutout(data.images[key % 12 : key % 12 + 1], numbers)
        assert torch.equal(image, normalize(raw, data.mean, data.std)[0])


def test_epochs_seeds_and_runs_are_augmented_differently(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = pictures(augment=FLIP_SHIFT_CUTOUT, seed=0), pictures(augment=FLIP_SHIFT_CUTOUT, seed=1)
    assert not torch.equal(one[3][0], one[15][0])
    assert not torch.equal(one[3][0], other[3][0])
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    assert not torch.equal(one[3][0], pictures(augment=FLIP_SHIFT_CUTOUT, seed=0)[3][0])
