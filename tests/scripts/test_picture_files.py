"""Image files reach the network correctly: rotated, transparent, 16-bit and gray images, and files that change between
two runs in spite of caches."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from lit_models import LitCNN
from tests.support.batches import fit, together
from tests.support.commands import run_well
from tests.support.networks import best, predicted, probabilities, sharpen
from tests.support.pipeline import HALF, IMAGENET, Recipe, as_input, coordinates, detailed, fill, levels, resized

LENET = Recipe(32, 32, *HALF)
WIDE, HIGH = 60, 40


# --- unusual pictures -------------------------------------------------------------------------------------------------


def on_white(colours: np.ndarray, opaque: np.ndarray) -> np.ndarray:
    return colours * opaque[..., None] + 255 * (1 - opaque[..., None])


def odd_pictures(folder: Path) -> dict[str, Image.Image]:
    """Write unusual files; return the image that each must show."""
    folder.mkdir(parents=True)
    plain = coordinates(90, WIDE, HIGH)
    pixels = np.asarray(plain)
    rows, columns = np.mgrid[:HIGH, :WIDE]
    opaque = columns * 4 + 10
    wanted: dict[str, Image.Image] = {}

    def put(name: str, picture: Image.Image, shows: np.ndarray | None = None, **options: Any) -> None:
        picture.save(folder / name, **options)
        with Image.open(folder / name) as saved:
            upright = ImageOps.exif_transpose(saved.convert("RGB"))
        wanted[name] = upright if shows is None else Image.fromarray(shows.round().astype(np.uint8))

    exif = Image.Exif()
    for turn in range(1, 9):
        exif[0x0112] = turn
        for suffix in ("jpg", "png", "webp"):
            put(f"turned_{turn}.{suffix}", plain, exif=exif, quality=95)
    clear = Image.fromarray(np.dstack([pixels, opaque.astype(np.uint8)]))
    put("clear.png", clear, on_white(pixels, opaque / 255))
    grey = np.asarray(plain.convert("L"))
    put("clear_grey.png", clear.convert("LA"), on_white(grey[..., None].repeat(3, 2), opaque / 255))
    few = Image.fromarray((columns // 15).astype(np.uint8)).convert("P")
    few.putpalette([250, 10, 20, 30, 240, 50, 60, 70, 200, 90, 100, 110])
    put("palette.png", few)
    colours = np.array([(250, 10, 20), (255, 255, 255), (60, 70, 200), (90, 100, 110)])
    put("palette_clear.png", few, colours[columns // 15], transparency=1)
    deep = rows * 1000 + columns * 300
    put("deep.png", Image.fromarray(deep.astype(np.uint16)), (deep / 257)[..., None].repeat(3, 2))
    for suffix in ("jpg", "png"):
        put(f"grey.{suffix}", Image.fromarray(grey))
    put("bits.png", Image.fromarray((rows + columns) % 40 < 20))
    put("cmyk.jpg", plain.convert("CMYK"), quality=95)
    share = (rows / (HIGH - 1)).astype(np.float32)
    put("float.tif", Image.fromarray(share), (share * 255)[..., None].repeat(3, 2))
    return wanted


def test_unusual_image_files_are_decoded_correctly(tmp_path: Path) -> None:
    wanted = odd_pictures(tmp_path / "photos/val/a")
    fill(tmp_path / "photos", {"train/a": 2, "train/b": 2}, lambda number: detailed(number, 40, 40))
    names = sorted(wanted)
    inputs = np.stack([as_input(wanted[name], LENET) for name in names])
    assert len({x.round(1).tobytes() for x in inputs}) > len(names) - 20  # the rotations look different
    seen, _ = together(fit("--data photos --model LitCNN --max_epochs 1").final)
    for name, x, picture in zip(names, seen, [wanted[name] for name in names], strict=True):
        apart = np.abs(levels(x, LENET) - resized(picture, LENET))
        assert apart.max() < 2.1, name
        assert apart.mean() < 0.4, name
    network = LitCNN(num_classes=2).net
    sharpen(best(), network, "fc3", inputs)
    run_well("predict.py latest photos/val --output answers.json")
    answers = predicted(Path("answers.json"), ("a", "b"))
    assert list(answers) == [f"photos/val/a/{name}" for name in names]
    assert np.abs(np.array([*answers.values()]) - probabilities(network, inputs)).max() < 0.02


# --- files that change between two runs -------------------------------------------------------------------------------

ONE_TIME = 1_700_000_000_000_000_000


def overwrite(file: Path, picture: Image.Image, time: int) -> int:
    """Write another image into a file with the given modification time; return its size in bytes."""
    picture.save(file)
    os.utime(file, ns=(time, time))
    return file.stat().st_size


def blue(number: int, side: int = 40) -> Image.Image:
    return coordinates(number, side, side)


def validated(flags: str = "--model LitCNN") -> list[int]:
    """Return the colors of the validation images of a new run."""
    seen, _ = together(fit(f"--data photos {flags} --max_epochs 1 --data.max_bad_fraction 0.5").final)
    return levels(seen, LENET)[:, 16, 16, 2].round().astype(int).tolist()


def test_a_changed_image_file_is_read_again(tmp_path: Path) -> None:
    """Runs cache decoded images. Names, sizes and times are equal unless the test changes them."""
    fill(tmp_path / "photos", {"train/a": 2, "train/b": 2}, blue)
    val = tmp_path / "photos/val"
    files = [val / name for name in ("a/0.bmp", "a/1.bmp", "b/0.bmp", "b/1.bmp")]
    for number, file in enumerate(files):
        file.parent.mkdir(parents=True, exist_ok=True)
        overwrite(file, blue(100 + number), ONE_TIME)
    assert validated() == [100, 101, 102, 103]
    size = files[0].stat().st_size
    assert overwrite(files[0], blue(200), ONE_TIME + 1000) == size  # another time
    assert validated() == [200, 101, 102, 103]
    assert overwrite(files[1], blue(201, 44), ONE_TIME) > size  # another size
    assert validated() == [200, 201, 102, 103]
    for number, file in enumerate(files):
        overwrite(file, blue(210 + number), ONE_TIME)
    files[2].rename(val / "b/2.bmp")  # another name: otherwise the run would find the cache of the first run
    assert validated() == [210, 211, 213, 212]


def test_two_folders_with_the_same_file_names_are_not_confused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, first in (("photos", 100), ("elsewhere/photos", 110)):
        for number, name in enumerate(("train/a/0.bmp", "train/b/0.bmp", "val/a/0.bmp", "val/b/0.bmp")):
            (tmp_path / folder / name).parent.mkdir(parents=True)
            overwrite(tmp_path / folder / name, blue(first + number), ONE_TIME)
    assert validated() == [102, 103]
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert validated() == [112, 113]


def test_an_image_file_that_broke_since_the_last_run_is_left_out(tmp_path: Path) -> None:
    """Runs also cache which files are readable and which are copies."""
    counts = {"train/a": 2, "train/b": 3, "val/a": 2, "val/b": 3}
    fill(
        tmp_path / "photos", counts, lambda number: blue(100 + number, 40 + 4 * number), suffix="bmp"
    )  # all sizes differ
    files = sorted((tmp_path / "photos/val").rglob("*.bmp"))
    for file in files:
        os.utime(file, ns=(ONE_TIME, ONE_TIME))
    assert validated() == [105, 106, 107, 108, 109]
    size = files[0].stat().st_size
    files[0].write_bytes(b"x" * size)  # another time
    assert validated() == [106, 107, 108, 109]
    files[2].write_bytes(b"x" * (size + 1))
    os.utime(files[2], ns=(ONE_TIME, ONE_TIME))  # another size
    assert validated() == [106, 108, 109]
    files[1].write_bytes(files[3].read_bytes())  # a copy of an image of the other class
    assert validated() == [109]


# --- decoded pictures that are kept -----------------------------------------------------------------------------------


def test_the_cache_depends_on_the_size_and_the_filter(tmp_path: Path) -> None:
    """The same files of 32 pixels are resized to another size, or with another filter."""
    fill(tmp_path / "photos", {"train/a": 2, "train/b": 2, "val/a": 2, "val/b": 2}, lambda n: detailed(n, 70, 53))
    recipes = {
        "LitCNN": LENET,
        "LitTransfer --model.backbone timm/test_resnet": Recipe(34, 32, *HALF),
        "LitTransfer --model.backbone timm/test_efficientnet": Recipe(34, 32, *IMAGENET, "bicubic"),
    }
    flags = "--model.freeze false --model.weights none --data.image_size 32 --data.augment false"
    for model, recipe in recipes.items():
        line = f"--data photos --model {model} --max_epochs 1 {flags if 'Transfer' in model else ''}"
        for number, x in enumerate(together(fit(line).final)[0], start=4):
            apart = np.abs(levels(x, recipe) - resized(detailed(number, 70, 53), recipe))
            assert apart.max() < 1.02, model


@pytest.mark.parametrize("backbone", ["timm/test_resnet", "timm/test_efficientnet"])
def test_the_cache_does_not_change_pixels(tmp_path: Path, backbone: str) -> None:
    fill(tmp_path / "photos", {"train/a": 4, "train/b": 2, "val/a": 2, "val/b": 3}, lambda n: detailed(n, 99 + n, 131))
    flags = "--model.weights none --model.freeze false --data.augment false --data.image_size 80 --max_epochs 1"
    line = f"--data photos --model.backbone {backbone} {flags}"
    plain = fit(line)
    for _ in range(2):  # the first run writes the cache, the second one reads it
        cached = fit(f"{line} --data.cache true")
        assert list(Path(os.environ["XDG_CACHE_HOME"]).rglob("*.pictures"))
        for one, other in ((plain.train[0], cached.train[0]), (plain.final, cached.final)):
            for mine, theirs in zip(together(one), together(other), strict=True):
                assert np.array_equal(mine, theirs)


def test_random_crops_of_cached_images_reach_the_border(tmp_path: Path) -> None:
    """The cache holds full images, not center crops. Red rises with the column from 0 to 238."""
    fill(tmp_path / "photos", {"train/a": 9, "train/b": 9, "val/a": 1, "val/b": 1}, lambda n: coordinates(5 * n))
    flags = "--model.weights none --data.augment true --data.image_size 72 --max_epochs 2 --data.cache true"
    seen = fit(f"--data photos --model.backbone shufflenet_v2_x0_5 {flags}")
    first, second = (levels(together(epoch)[0], Recipe(82, 72, *IMAGENET))[..., 0] for epoch in seen.train)
    assert first.min() < 20
    assert first.max() > 220  # a center crop ends at 200
    assert not np.array_equal(first, second)
