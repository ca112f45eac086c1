"""Make photos, and compute the network inputs of photos with PIL and numpy only."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
KINDS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


class Recipe(NamedTuple):
    """Preprocessing: resize the shorter side to ``resize``, center crop of ``size``, subtract mean, divide by std."""

    resize: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    kind: str = "bilinear"


def resized(picture: Image.Image, recipe: Recipe) -> np.ndarray:
    """Return the center crop of the resized image, (S, S, 3) uint8."""
    width, height = picture.size
    short = min(width, height)
    wide, high = (int(recipe.resize * side / short) for side in (width, height))
    picture = picture.convert("RGB").resize((wide, high), KINDS[recipe.kind])
    left, top = (round((side - recipe.size) / 2) for side in (wide, high))  # round half to even
    return np.asarray(picture)[top : top + recipe.size, left : left + recipe.size]


def as_input(picture: Image.Image, recipe: Recipe) -> np.ndarray:
    """Return the expected network input, (3, S, S) float32."""
    values = (resized(picture, recipe) / 255 - np.array(recipe.mean)) / np.array(recipe.std)
    return values.transpose(2, 0, 1).astype(np.float32)


def levels(inputs: np.ndarray, recipe: Recipe) -> np.ndarray:
    """Undo the normalization: (..., 3, S, S) -> levels from 0 to 255, (..., S, S, 3) float."""
    values = np.moveaxis(np.asarray(inputs, dtype=float), -3, -1)
    return (values * np.array(recipe.std) + np.array(recipe.mean)) * 255


def assert_same_levels(inputs: np.ndarray, recipe: Recipe, picture: Image.Image) -> None:
    """Assert that the inputs are made from the image. Levels may differ by 1, because torch rounds differently."""
    apart = np.abs(levels(inputs, recipe) - resized(picture, recipe))
    assert apart.max() < 1.02
    assert (apart > 0.02).mean() < 0.02


def coordinates(number: int, width: int = 120, height: int = 90) -> Image.Image:
    """Return an image whose pixels encode their position: red is the column, green the row, blue ``number``."""
    step = 250 // max(width, height)
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([step * columns, step * rows, np.full_like(rows, number)], 2)
    return Image.fromarray(pixels.astype(np.uint8))


def detailed(seed: int, width: int, height: int) -> Image.Image:
    """Return an image of single pixels and small blocks, with different channels and a border of another color."""
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 2, (-(-height // 3), -(-width // 3), 3)).repeat(3, 0).repeat(3, 1)[:height, :width]
    pixels = random.uniform(0, 1, (height, width, 3)) * 0.5 + blocks * 0.5
    pixels = pixels * (160, 90, 60) + (90, 60, 10)
    edge = max(3, min(width, height) // 10)
    pixels[:edge] += (0, 90, 40)
    pixels[:, -edge:] += (-60, 0, 150)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def save_all(root: Path, pictures: Mapping[str, Image.Image]) -> Path:
    """Save images under their names in ``root``."""
    for name, picture in pictures.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        picture.save(root / name)
    return root


def fill(
    root: Path, counts: Mapping[str, int], draw: Callable[[int], Image.Image] = coordinates, suffix: str = "png"
) -> Path:
    """Write images made by ``draw(0)``, ``draw(1)``, ... to folders in ``root``; ``counts``: folder -> number."""
    number = 0
    for folder, count in counts.items():
        save_all(root / folder, {f"{number + n:03d}.{suffix}": draw(number + n) for n in range(count)})
        number += count
    return root
