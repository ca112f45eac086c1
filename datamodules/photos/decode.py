"""Decode one picture file, or report why it cannot be decoded."""

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
from datamodules.photos.find import FORMAT_OF_SUFFIX
from datamodules.text import printable

# Pillow may use only these decoders. For example, its decoder for EPS starts another program.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "PPM")
MAX_PIXELS = 178_956_970  # Pillow's default limit, checked here because some programs switch Pillow's check off
MAX_SIDE = 65_535  # pixels; the limit of JPEG. Other decoders take minutes for a side of millions of pixels
MISNAMED, ROTATED = 1, 2  # bits of Inspection.flags
_ORIENTATION = 0x0112  # EXIF tag
# EXIF orientation -> which of these steps, in this order, are needed: transpose, flip left-right, flip top-bottom
STEPS_TO_UPRIGHT = {
    2: (False, True, False),
    3: (False, True, True),
    4: (False, False, True),
    5: (True, False, False),
    6: (True, True, False),
    7: (True, True, True),
    8: (True, False, True),
}
_PIXELS_PER_STRIP = 1 << 22  # a conversion that makes several copies is done in strips of this size, to save memory
_CONTENT_PATTERNS = (  # the first pattern that matches the first bytes of a file, in lower case, applies
    (rb"gif8", "a GIF"),
    (rb".{4}ftyp", "HEIC, AVIF or video"),
    (rb"\s*(<!doctype html|<html)", "a web page"),
    (rb"\s*(<svg|<\?xml)", "SVG or XML"),
    (rb"[^\0]*$", "text"),
    (rb"", "unknown data"),
)


class BadPicture(DataError):
    """Raised if a picture file cannot be opened or decoded.

    Args:
        kind: "truncated", "empty", "not a picture", "damaged", "too large" or "unreadable".
        reason: details about this file, for the user.
    """

    def __init__(self, name: str, kind: str, reason: str) -> None:
        super().__init__(name, kind, reason)
        self.name, self.kind, self.reason = name, kind, reason

    def __str__(self) -> str:
        return f"{printable(self.name)}: {self.kind} ({self.reason}): replace the file or leave it out"


class Inspection(NamedTuple):
    """The result of :func:`inspect_picture` for one file."""

    kind: str = ""  # kind and reason are those of BadPicture, or "" if the picture can be decoded
    reason: str = ""
    flags: int = 0  # MISNAMED: the suffix does not match the format; ROTATED: the EXIF tag flips or rotates the picture
    width: int = 0  # pixels, before the rotation
    height: int = 0
    dhash: int = 0  # perceptual hash, 64 bits
    sha256: str = ""  # of the file, in lower-case hex


def read_picture(path: str | Path) -> Image.Image:
    """Decode the first picture in a file, whatever its suffix, to upright RGB. Raise BadPicture if that fails."""
    with _open_picture(path) as image:
        return to_upright_rgb(image)


def inspect_picture(path: Path) -> Inspection:
    """Decode and hash the whole file. If it cannot be decoded, return the reason."""
    try:
        with _open_picture(path) as image:
            width, height = image.size
            expected = FORMAT_OF_SUFFIX.get(path.suffix[1:].lower())
            # Phones write MPO files with the suffix .jpg: a JPEG followed by more pictures.
            flags = MISNAMED * (image.format != expected and (image.format, expected) != ("MPO", "JPEG"))
            # A JPEG is decoded faster at a reduced size of at least 64 x 64 pixels, and this finds the same errors.
            image.draft(image.mode, (64, 64))
            # getexif() may decode a PNG and hide its errors, so decode it first. Decoding a TIFF would remove its tag.
            if image.format == "PNG":
                image.load()
            flags |= ROTATED * (read_orientation(image) in STEPS_TO_UPRIGHT)
            dhash = _dhash(to_upright_rgb(image))
            return Inspection("", "", flags, width, height, dhash, _hash_file(path))
    except BadPicture as bad:
        return Inspection(bad.kind, bad.reason)


@contextlib.contextmanager
def _open_picture(path: str | Path) -> Iterator[Image.Image]:
    """Open a picture and read its header. Raise all errors, also those of the `with` block, as BadPicture."""
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
                raise BadPicture(name, *_explain_open_error(head, file.seek(0, os.SEEK_END))) from None
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
    """Switch off two warnings about good pictures. Not done on import, because it changes the whole process."""
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    warnings.filterwarnings("ignore", "(?s).*Corrupt EXIF data", UserWarning)


def _explain_open_error(first_bytes: bytes, size: int) -> tuple[str, str]:
    """Return (kind, reason) for a file of `size` bytes that Pillow cannot open."""
    if not first_bytes:
        return "empty", "0 bytes"
    if first_bytes.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0", b"MM\0*")):
        return "truncated", "the file ends in its header"
    if first_bytes.startswith(b"RIFF") and first_bytes[8:12] == b"WEBP":
        full_size = int.from_bytes(first_bytes[4:8], "little") + 8
        return ("truncated", f"{size} of {full_size} bytes") if size < full_size else ("damaged", "cannot be decoded")
    lower_case = first_bytes.lower()
    content = next(content for pattern, content in _CONTENT_PATTERNS if re.match(pattern, lower_case, re.DOTALL))
    return "not a picture", f"{content} inside"


def read_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation: 2 to 8 are flipped or rotated, all other values are upright."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # the tag is damaged, but the picture can be used
        return 1


def to_upright_rgb(image: Image.Image) -> Image.Image:
    """Decode `image` and convert it to mode RGB, 8 bits per channel, upright, with transparent pixels on white."""
    image.load()
    if image.mode[0] in "IF" or image.has_transparency_data:
        rgb = Image.new("RGB", image.size)
        rows = max(1, _PIXELS_PER_STRIP // image.width)  # the whole picture at once would need too much memory
        for top in range(0, image.height, rows):
            box = (0, top, image.width, min(top + rows, image.height))
            rgb.paste(_convert_strip(image.crop(box)).convert("RGB"), box)
    else:
        rgb = image.convert("RGB")
    rgb.info.clear()  # removes the EXIF tag, so that other code does not rotate the picture a second time
    steps = (Image.Transpose.TRANSPOSE, Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM)
    for step, needed in zip(steps, STEPS_TO_UPRIGHT.get(read_orientation(image), ()), strict=False):
        rgb = rgb.transpose(step) if needed else rgb
    return rgb


def _convert_strip(image: Image.Image) -> Image.Image:
    """Convert a picture of more than 8 bits per channel to 8 bits, or lay a transparent picture on white."""
    if image.mode.startswith("I"):  # 16 bits; Pillow's conversion clips at 255
        return Image.fromarray((np.asarray(image).clip(0, 65535) / 257 + 0.5).astype(np.uint8))
    if image.mode == "F":  # a TIFF; by convention its values are in [0, 1]
        return Image.fromarray((np.nan_to_num(np.asarray(image)).clip(0, 1) * 255 + 0.5).astype(np.uint8))
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)


def _dhash(image: Image.Image) -> int:
    """Return the difference hash (Krawetz 2013): 64 bits, 1 if a cell is brighter than its left neighbor."""
    cells = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.LANCZOS))
    return int.from_bytes(np.packbits(cells[:, 1:] > cells[:, :-1]).tobytes(), "big")


def _hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
