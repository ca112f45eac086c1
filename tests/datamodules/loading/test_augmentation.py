"""Augmentation by names: the names, the random numbers, and that drawing and applying are apart."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.transforms import InterpolationMode, v2

from datamodules import CIFAR10DataModule, DataError, ImageFolderDataModule, Preprocessing, ShapesDataModule
from datamodules.loading.augmentation import NAMES, Augmentation, read_names
from datamodules.loading.memory import Pictures
from tests.support.pipeline import IMAGENET, Recipe, coordinates, fill, levels

PICTURE = torch.randint(0, 256, (3, 60, 80), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
SPEC = Preprocessing(image_size=24, resize_size=30)
BILINEAR = InterpolationMode.BILINEAR
GRAY = 114  # the mean color of ImageNet
THEIRS: dict[str, v2.Transform] = {
    "crop": v2.RandomResizedCrop(24, antialias=True),
    "flip": v2.RandomHorizontalFlip(),
    "rotate": v2.RandomRotation(15, BILINEAR, fill=GRAY),
    "color": v2.ColorJitter(0.3, 0.3, 0.3),
}


@pytest.mark.parametrize("names", [*((name,) for name in THEIRS), ("crop", "flip"), tuple(THEIRS)])
def test_pixels_equal_those_of_torchvision(names: tuple[str, ...]) -> None:
    plain = v2.Compose([THEIRS[name] for name in names])
    found = [Augmentation(names, SPEC)(PICTURE, seed) for seed in range(10)]
    for seed, picture in enumerate(found):
        torch.manual_seed(seed)
        assert torch.equal(picture, plain(PICTURE))
    assert len({picture.sum().item() for picture in found}) > (1 if names == ("flip",) else 8) - 1


def test_drawing_is_apart_from_applying() -> None:
    augmentation = Augmentation(NAMES, SPEC)
    before = torch.get_rng_state()
    drawn = [augmentation.draw(seed, (60, 80)) for seed in range(10)]
    first = [augmentation.apply(PICTURE, parameters) for parameters in drawn]
    torch.manual_seed(1)  # neither the generator nor the order of the pictures matters
    second = [augmentation.apply(PICTURE, parameters) for parameters in reversed(drawn)][::-1]
    assert all(map(torch.equal, first, second))
    assert len({picture.sum().item() for picture in first}) == 10
    torch.set_rng_state(before)
    augmentation(PICTURE, 5)
    assert torch.equal(torch.get_rng_state(), before)


GOLDEN = {
    "crop": [[156, 54, 56, 130], [61, 48, 107, 108], [199, 46, 128, 121], [90, 63, 182, 140]],
    "pad": [[51, 14, 171, 134], [61, 34, 181, 154], [188, 48, 68, 168], [174, 48, 54, 168]],
    "squash": [[51, 33, 171, 123], [61, 48, 181, 138], [188, 58, 68, 148], [174, 58, 54, 148]],
    "memory": [[134, 55, 55, 133], [168, 55, 90, 133], [75, 60, 153, 138], [148, 65, 70, 143]],
    "cache": [[183, 60, 83, 137], [157, 62, 202, 122], [176, 64, 104, 140], [75, 65, 166, 142]],
}
"""Red and green (the place in the file) of two pixels, for four keys. They were computed before there were names."""


@pytest.mark.parametrize("case", GOLDEN)
def test_true_gives_the_same_pixels_as_before_there_were_names(tmp_path: Path, case: str) -> None:
    fill(tmp_path, {"train/a": 3, "train/b": 3, "val/a": 1, "val/b": 1}, lambda number: coordinates(5 * number + 5))
    special: Any = {"memory": {"image_size": 32}, "cache": {"cache": True}}.get(case, {"resize": case})
    data: Any = ImageFolderDataModule(str(tmp_path), augment=True, num_workers=0, **{"image_size": 72, **special})
    data.prepare_data()
    images, _ = data.dataset("train").__getitems__([0, 3, 8, 11])
    near, far = images.shape[-1] // 4, 3 * (images.shape[-1] // 4)
    found = levels(images.numpy(), Recipe(1, 1, *IMAGENET))[:, [near, far], [near, far], :2].reshape(4, 4)
    assert abs(found - torch.tensor(GOLDEN[case]).numpy()).max() < 1.6  # processors round differently


@pytest.mark.parametrize(
    ("typed", "names"),
    [
        (True, ("flip", "shift")),
        ("TRUE", ("flip", "shift")),
        (False, ()),
        (None, ()),
        ("False", ()),
        ("", ()),
        ([], ()),
        ("color,flip", ("flip", "color")),
        (" Flip,,CROP, flip ", ("crop", "flip")),
        (["trivial", "Rotate"], ("rotate", "trivial")),
    ],
)
def test_names_are_read(typed: Any, names: tuple[str, ...]) -> None:
    assert read_names(typed, ("flip", "shift")) == names


@pytest.mark.parametrize("typed", ["flp", "true,flip", ["flip", 3], 1, "false,flip", "crop flip"])
def test_unknown_names_are_refused_with_the_known_ones(typed: Any) -> None:
    for make in (ShapesDataModule, CIFAR10DataModule, lambda augment: ImageFolderDataModule("photos", augment=augment)):
        with pytest.raises(DataError, match=r"there is no augmentation .*: --data\.augment true, .*crop,flip"):
            make(augment=typed)


@pytest.mark.parametrize("resize", ["crop", "pad"])
@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_in_memory_are_augmented_by_name(channels: int, resize: str) -> None:
    images = PICTURE[:channels, :32, :32].expand(6, -1, -1, -1)
    spec = Preprocessing(32, 32, [0.5] * channels, [0.5] * channels, resize=resize)
    for name in NAMES:
        data = Pictures(images, torch.zeros(6), spec, (name,))
        found, _ = data.__getitems__([0, 3, 4, 5, 9])
        again, _ = data.__getitems__([9, 4])
        assert torch.equal(again, found[[4, 2]])
        assert len({image.sum().item() for image in found}) > (1 if name != "flip" else 0)
        assert not torch.equal(found, found[:1].expand_as(found))
