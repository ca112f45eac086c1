"""Decode one picture in the way that every part of this project uses, or report what is wrong with the file."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from datamodules.errors import DataError
from datamodules.photos.find import SUFFIXES
from datamodules.text import printable

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "PPM")  # Pillow tries no others: its EPS decoder starts a program
# Pillow's default limit, applied here because some programs switch Pillow's check off. A phone's photo of 108
# megapixels passes, a decompression bomb of 50,000 x 50,000 pixels does not.
MAX_PIXELS = 178_956_970
MAX_SIDE = 65_535  # the limit of JPEG; other decoders take minutes for strips of millions of pixels
MISNAMED, ROTATED = 1, 2  # bits of Inspection.flags
_ORIENTATION = 0x0112  # EXIF tag
UPRIGHT = {
    2: (False, True, False),
    3: (False, True, True),
    4: (False, False, True),
    5: (True, False, False),
    6: (True, True, False),
    7: (True, True, True),
    8: (True, False, True),
}
"""EXIF orientation -> steps that make a picture upright: transpose, then flip left-right, then flip top-bottom."""
_STRIP = 1 << 22  # pixels that are converted at once if the conversion makes several copies
_OTHER_CONTENTS = (
    (rb"gif8", "a GIF"),
    (rb".{4}ftyp", "HEIC, AVIF or video"),
    (rb"\s*(<!doctype html|<html)", "a web page"),
    (rb"\s*(<svg|<\?xml)", "SVG or XML"),
    (rb"[^\0]*$", "text"),
    (rb"", "unknown data"),
)
"""Patterns of the first bytes of a file in lower case, and what the first one that matches tells about the file."""


class BadPicture(DataError):
    """Raised for one file that cannot be decoded.

    Args:
        name: the file, as the user named it.
        kind: "truncated", "empty", "not a picture", "damaged", "too large" or "unreadable".
        reason: details.
    """

    def __init__(self, name: str, kind: str, reason: str) -> None:
        super().__init__(name, kind, reason)
        self.name, self.kind, self.reason = name, kind, reason

    def __str__(self) -> str:
        return f"{printable(self.name)}: {self.kind} ({self.reason}): replace the file or leave it out"


class Inspection(NamedTuple):
    """What :func:`inspect_picture` found in one file; `kind` is "" for a picture that can be decoded.

    `width` and `height` are in pixels, as stored. `dhash` is a perceptual hash of 64 bits. `content` is a BLAKE2b hash
    of 64 bits; among a million different pictures, two have the same hash with a probability of 1 in 30 million.
    """

    kind: str = ""
    reason: str = ""
    flags: int = 0
    width: int = 0
    height: int = 0
    dhash: int = 0
    content: int = 0


def read_picture(path: str | Path) -> Image.Image:
    """Decode a JPEG, PNG, BMP, WEBP, TIFF or PPM file. Its suffix may be wrong.

    Returns:
        The (first) picture in mode RGB, 8 bits, upright according to its EXIF tag, transparent pixels on white.

    Raises:
        BadPicture: the file cannot be opened or decoded.
    """
    with _open_picture(path) as image:
        return to_upright_rgb(image)


def inspect_picture(path: Path, with_content: bool) -> Inspection:
    """Decode all of a file, at a reduced scale if its format allows, and describe it.

    Never raises for a bad file: `kind` and `reason` say what is wrong. `Inspection.content` is 0 unless `with_content`.
    """
    try:
        with _open_picture(path) as image:
            width, height = image.size
            expected = SUFFIXES.get(path.suffix[1:].lower())
            # Phones write MPO: a JPEG that is followed by more pictures.
            flags = MISNAMED * (image.format != expected and (image.format, expected) != ("MPO", "JPEG"))
            # Decoding at a reduced scale finds the same faults, because it reads the whole file, but is faster. 64
            # pixels are enough for the hash.
            image.draft(image.mode, (64, 64))
            if image.format == "PNG":  # The EXIF tag may follow the pixels. getexif() would decode them and hide
                image.load()  # errors. TIFF loses its tag when it is decoded.
            flags |= ROTATED * (orientation(image) in UPRIGHT)
            dhash = _dhash(to_upright_rgb(image))
            return Inspection("", "", flags, width, height, dhash, _hash_content(path) if with_content else 0)
    except BadPicture as bad:
        return Inspection(bad.kind, bad.reason)


@contextlib.contextmanager
def _open_picture(path: str | Path) -> Iterator[Image.Image]:
    """Open a picture and read its header. Any error, also one of the body's, is raised as a BadPicture."""
    _silence_pillow()
    name = str(path)
    try:
        with Path(path).open("rb") as file:
            try:
                image = Image.open(file, formats=FORMATS)
            except OSError as error:  # includes UnidentifiedImageError
                if error.errno is not None:
                    raise
                file.seek(0)
                head = file.read(256)
                raise BadPicture(name, *_guess_content(head, file.seek(0, os.SEEK_END))) from None
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            if max(image.size) > MAX_SIDE:
                raise BadPicture(name, "too large", f"a side of more than {MAX_SIDE:,} pixels")
            yield image
    except BadPicture:
        raise
    except Image.DecompressionBombError:
        raise BadPicture(name, "too large", f"more than {MAX_PIXELS:,} pixels") from None
    except MemoryError as error:
        raise BadPicture(name, "too large", "does not fit into memory") from error
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, EOFError, IndexError, ...
        if isinstance(error, OSError) and error.errno is not None:  # raised by the system, not by a decoder
            raise BadPicture(name, "unreadable", error.strerror or "no reason given") from error
        reason = " ".join(str(error).split()) or type(error).__name__
        truncated = isinstance(error, OSError) and "truncated" in reason.lower()
        raise BadPicture(name, "truncated" if truncated else "damaged", reason) from error


@functools.cache
def _silence_pillow() -> None:
    """Turn off two warnings about pictures that are decoded correctly. Not done on import: it affects the process."""
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    warnings.filterwarnings("ignore", "(?s).*Corrupt EXIF data", UserWarning)


def _guess_content(head: bytes, size: int) -> tuple[str, str]:
    """Return (kind, reason) for a file of `size` bytes that Pillow cannot open, from its first bytes."""
    if not head:
        return "empty", "0 bytes"
    if head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0", b"MM\0*")):
        return "truncated", "breaks off in its header"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        whole = int.from_bytes(head[4:8], "little") + 8
        return ("truncated", f"{size} of {whole} bytes") if size < whole else ("damaged", "cannot be decoded")
    inside = next(name for pattern, name in _OTHER_CONTENTS if re.match(pattern, head.lower(), re.DOTALL))
    return "not a picture", f"{inside} inside"


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation: 1 is upright, 2 to 8 are flipped or rotated. Ignore all other values."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # the picture is good even if its tag is broken
        return 1


def to_upright_rgb(image: Image.Image) -> Image.Image:
    """Decode `image` and convert it as :func:`read_picture` describes."""
    image.load()
    if image.mode[0] in "IF" or image.has_transparency_data:
        rgb = Image.new("RGB", image.size)
        rows = max(1, _STRIP // image.width)  # all at once would need many times the picture's memory
        for top in range(0, image.height, rows):
            box = (0, top, image.width, min(top + rows, image.height))
            rgb.paste(_convert_strip(image.crop(box)).convert("RGB"), box)
    else:
        rgb = image.convert("RGB")
    rgb.info.clear()  # or code that applies the EXIF tag would rotate the picture a second time
    steps = (Image.Transpose.TRANSPOSE, Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM)
    for step, needed in zip(steps, UPRIGHT.get(orientation(image), ()), strict=False):
        rgb = rgb.transpose(step) if needed else rgb
    return rgb


def _convert_strip(image: Image.Image) -> Image.Image:
    """Convert a picture with more than 8 bits to 8 bits, and lay a transparent one on white."""
    if image.mode.startswith("I"):  # 16 bits; Pillow's conversion clips at 255
        return Image.fromarray((np.asarray(image).clip(0, 65535) / 257 + 0.5).astype(np.uint8))
    if image.mode == "F":  # a TIFF, whose values are in [0, 1] by convention
        return Image.fromarray((np.nan_to_num(np.asarray(image)).clip(0, 1) * 255 + 0.5).astype(np.uint8))
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)


def _dhash(image: Image.Image) -> int:
    """Return 64 bits, one per cell of an 8 x 8 grid: 1 if it is brighter than its left neighbor (Krawetz 2013)."""
    cells = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.LANCZOS))
    return int.from_bytes(np.packbits(cells[:, 1:] > cells[:, :-1]).tobytes(), "big")


def _hash_content(path: Path) -> int:
    digest = hashlib.blake2b(digest_size=8)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return int.from_bytes(digest.digest(), "little") or 1  # 0 means not hashed
