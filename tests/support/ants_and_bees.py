"""Write a folder of photos in two classes that are easy to distinguish."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_photos(root: Path) -> Path:
    """Write ants and bees to ``train`` (8 per class) and ``val`` (4 per class): red and blue noise, 48 x 40 pixels."""
    random = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for channel, name in ((0, "ants"), (2, "bees")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 128, (40, 48, 3), dtype=np.uint8)
                pixels[..., channel] += 120
                Image.fromarray(pixels).save(folder / f"{number}.jpg", quality=95)
    return root
