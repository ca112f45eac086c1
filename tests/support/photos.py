"""Write folders of small photos, valid and broken."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from datamodules.errors import DataError
from datamodules.photos.folder import Photos, examine

ORIENTATION = 0x0112
"""The EXIF tag of the orientation."""


def noise(seed: int, width: int = 40, height: int = 30) -> Image.Image:
    """Return an image of noise. Each seed gives another image."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def scene(seed: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """Return a smooth image. Its perceptual hash stays the same when it is compressed or scaled."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(2))


def encoded(seed: int, form: str = "JPEG", **options: object) -> bytes:
    """Return an encoded file of :func:`noise`."""
    file = io.BytesIO()
    noise(seed).save(file, form, **options)
    return file.getvalue()


def exif_with_orientation(orientation: int) -> Image.Exif:
    """Return EXIF data with an orientation."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def write_file(path: Path, content: bytes) -> Path:
    """Write a file; create its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def write_pictures(root: Path, counts: dict[str, int], seed: int = 0) -> Path:
    """Write different images to folders in ``root``. ``counts``: folder -> number of images."""
    for folder, count in counts.items():
        for i in range(count):
            seed += 1
            write_file(root / folder / f"{i}.jpg", encoded(seed))
    return root


def write_cats_and_dogs(root: Path, count: int = 6) -> Path:
    """Write images of the classes cat and dog."""
    return write_pictures(root, {"cat": count, "dog": count})


def examine_leniently(root: Path, **options: Any) -> Photos:
    """Examine a folder; up to 90 % of the files may be broken."""
    return examine(root, **{"max_bad_fraction": 0.9, **options})


def refusal_of(root: Path, **options: Any) -> str:
    """Return the one-line error of :func:`examine_leniently`. ``DIR`` replaces the path of ``root``."""
    with pytest.raises(DataError) as caught:
        examine_leniently(root, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(str(root), "DIR")


def names(photos: Photos, split: int) -> set[str]:
    """Return the paths of the files of a split."""
    return set(photos.paths.take(photos.select(split)))


def content(photos: Photos) -> tuple[Any, ...]:
    """Return the files, labels, splits and class names."""
    return list(photos.paths), photos.labels.tolist(), photos.splits.tolist(), photos.class_names


# --- broken files ----------------------------------------------------------------------------


def _png(width: int, height: int, pixels: bytes) -> bytes:
    """Return a PNG with correct checksums; the pixel data may be invalid."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", pixels), (b"IEND", b""))
    body = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


JPEG, PNG, WEBP = encoded(900), encoded(901, "PNG"), encoded(902, "WEBP")
DECOMPRESSION_BOMB = _png(50_000, 50_000, zlib.compress(bytes(1000)))
PNG_WITH_DAMAGED_PIXELS = _png(40, 30, zlib.compress(noise(1).tobytes())[:99] + bytes(99))
"""A PNG with correct checksums and pixel data that cannot be decompressed."""
BROKEN = {
    "truncated.jpg": (JPEG[: len(JPEG) // 2], "truncated", "image file is truncated"),
    "late.jpg": (JPEG[:-60], "truncated", "image file is truncated"),
    "progressive.jpg": (encoded(903, progressive=True)[:-300], "truncated", "image file is truncated"),
    "head.jpg": (JPEG[:4], "truncated", "the file ends too early"),
    "truncated.png": (PNG[: len(PNG) // 2], "truncated", "image file is truncated"),
    "truncated.webp": (WEBP[:300], "truncated", "the file ends too early"),
    "empty.jpg": (b"", "empty", "0 bytes"),
    "text.jpg": (b"not a picture at all", "not a picture", "text inside"),
    "page.jpg": (b"<!DOCTYPE html><p>404</p>", "not a picture", "a web page inside"),
    "gif.jpg": (encoded(904, "GIF"), "not a format we read", "GIF inside"),
    "postscript.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture", "text inside"),
    "spoilt.png": (PNG_WITH_DAMAGED_PIXELS, "damaged", "unrecognized data stream"),
    "bomb.png": (DECOMPRESSION_BOMB, "too large", "more than 178,956,970 pixels"),
}
"""File name -> content, kind of the error, beginning of its reason."""
