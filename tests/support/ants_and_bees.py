"""A folder of photos in two classes that a network learns to tell apart in a moment."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_photos(root: Path) -> Path:
    """Write ``train`` (8 a class) and ``val`` (4 a class) of ants and bees: noise of 48 x 40 pixels, reddish and
    bluish."""
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
