"""Open one picture: read it the way every part of this project sees it, or say what is wrong with it."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from datamodules.errors import DataError
from datamodules.photos.find import SUFFIXES
from datamodules.text import printable

# Pillow tries only these: decoders such as EPS, which start other programs, are never reached.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "PPM")
# Where Pillow, too, refuses by default; our own because programs do switch Pillow's off. A phone's photo of
# 108 megapixels passes, a bomb of 50,000 x 50,000 does not.
MAX_PIXELS = 178_956_970
_TOO_LARGE = f"more than {MAX_PIXELS:,} pixels"
MAX_SIDE = 65_535  # what a JPEG can be; decoders of other formats take minutes for strips of millions
MISNAMED, ROTATED = 1, 2  # bits of Look.flags
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
"""EXIF orientation -> how a picture becomes upright: swap rows and columns, then mirror left-right, then top-bottom."""
_THUMBNAIL = 64  # pixels: the least side that JPEG decoding may be reduced to, enough for a hash of 9 x 8
_STRIP = 1 << 22  # pixels that are converted at a time where that takes several copies


@functools.cache
def _silence_pillow() -> None:
    """Both would come up on the user's screen for pictures that are read all the same. Not done by an import."""
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    warnings.filterwarnings("ignore", "(?s).*Corrupt EXIF data", UserWarning)


class BadPicture(DataError):
    """One file that is no whole picture.

    Args:
        name: the file, as the user knows it.
        kind: "truncated", "empty", "not a picture", "damaged", "too large" or "unreadable".
        reason: what exactly is wrong.
    """

    def __init__(self, name: str, kind: str, reason: str) -> None:
        super().__init__(f"{printable(name)}: {kind} ({reason}): replace the file or leave it out")
        self.name = name
        self.kind = kind
        self.reason = reason

    def __reduce__(self) -> tuple[type[BadPicture], tuple[str, str, str]]:
        return BadPicture, (self.name, self.kind, self.reason)


class Look(NamedTuple):
    """What opening one file told; `kind` is "" for a whole picture.

    `width` and `height` are pixels as stored, `dhash` the 64 bits of the perceptual hash, `content` 64 bits of
    the content's BLAKE2b (two of a million different pictures agree in one of 30 million folders).
    """

    kind: str = ""
    reason: str = ""
    flags: int = 0
    width: int = 0
    height: int = 0
    dhash: int = 0
    content: int = 0


def read_picture(source: str | Path | BinaryIO) -> Image.Image:
    """Read one picture the way every part of this project sees it.

    Args:
        source: path or open binary file of a JPEG, PNG, BMP, WEBP, TIFF or PPM file, whatever its name says.

    Returns:
        The (first) picture in mode RGB, 8 bits, upright by its EXIF tag, transparency laid on white.

    Raises:
        DataError: (a :class:`BadPicture`) the file cannot be opened or decoded; names it.
    """
    if isinstance(source, str | Path):
        with _name_errors(str(source)), Path(source).open("rb") as file:
            return to_upright_rgb(_open_picture(file))
    with _name_errors(str(getattr(source, "name", "the picture"))):
        return to_upright_rgb(_open_picture(source))


def look(path: Path, with_content: bool) -> Look:
    """Decode the file at `path` completely, at reduced scale where its format allows, and say what it is.

    Never raises for a bad file: `kind` and `reason` tell. `with_content` asks for `Look.content`.
    """
    try:
        with _name_errors(str(path)), path.open("rb") as file:
            image = _open_picture(file)
            width, height = image.size
            expected = SUFFIXES.get(path.suffix[1:].lower())
            # MPO is what phones write: a JPEG with more pictures behind the first.
            flags = MISNAMED * (image.format != expected and (image.format, expected) != ("MPO", "JPEG"))
            # Reduced decoding reads the whole file all the same, so it finds the same faults, only faster.
            image.draft(image.mode, (_THUMBNAIL, _THUMBNAIL))
            if image.format == "PNG":  # its EXIF tag may stand behind its pixels: asked for, it decodes them, and hides
                image.load()  # that it fails. TIFF forgets the tag once decoded.
            flags |= ROTATED * (orientation(image) in UPRIGHT)
            dhash = _dhash(to_upright_rgb(image))
            return Look("", "", flags, width, height, dhash, _content(file) if with_content else 0)
    except BadPicture as bad:
        return Look(bad.kind, bad.reason)


@contextlib.contextmanager
def _name_errors(name: str) -> Iterator[None]:
    """Turn whatever a decoder raises into a BadPicture that names the file."""
    try:
        yield
    except BadPicture as bad:
        raise BadPicture(name, bad.kind, bad.reason) from bad
    except MemoryError as error:
        raise BadPicture(name, "too large", "does not fit into memory") from error
    except OSError as error:
        if error.errno is not None:  # the system's, not a decoder's
            raise BadPicture(name, "unreadable", error.strerror or "no reason given") from error
        kind = "truncated" if "truncated" in str(error).lower() else "damaged"
        raise BadPicture(name, kind, _one_line(error)) from error
    except Exception as error:  # decoders raise SyntaxError, struct.error, EOFError, IndexError, ...
        raise BadPicture(name, "damaged", _one_line(error)) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _open_picture(file: BinaryIO) -> Image.Image:
    """The picture in `file` with its header read and its pixels not; BadPicture where there is none."""
    _silence_pillow()
    try:
        image = Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError:
        raise BadPicture("", "too large", _TOO_LARGE) from None
    except OSError as error:  # UnidentifiedImageError is one, too
        if error.errno is not None:
            raise
        file.seek(0)
        head = file.read(256)
        raise BadPicture("", *_guess_content(head, file.seek(0, os.SEEK_END))) from None
    if image.width * image.height > MAX_PIXELS:
        raise BadPicture("", "too large", _TOO_LARGE)
    if max(image.size) > MAX_SIDE:
        raise BadPicture("", "too large", f"a side of more than {MAX_SIDE:,} pixels")
    return image


def _guess_content(head: bytes, size: int) -> tuple[str, str]:
    """(kind, reason) for a file of `size` bytes that Pillow does not open, from its first bytes."""
    if not head:
        return "empty", "0 bytes"
    if head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0", b"MM\0*")):
        return "truncated", "breaks off in its header"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        whole = int.from_bytes(head[4:8], "little") + 8
        return ("truncated", f"{size} of {whole} bytes") if size < whole else ("damaged", "cannot be decoded")
    text = head.lstrip().lower()
    if head.startswith(b"GIF8"):
        inside = "a GIF"
    elif head[4:8] == b"ftyp":
        inside = "HEIC, AVIF or video"
    elif text.startswith((b"<!doctype html", b"<html")):
        inside = "a web page"
    elif text.startswith((b"<svg", b"<?xml")):
        inside = "SVG or XML"
    elif b"\0" not in head:
        inside = "text"
    else:
        inside = "unknown data"
    return "not a picture", f"{inside} inside"


def orientation(image: Image.Image) -> int:
    """What its EXIF tag says: 1 for upright, 2 to 8 for mirrored and turned; anything else is of no meaning."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a broken tag does not make a broken picture
        return 1


def to_upright_rgb(image: Image.Image) -> Image.Image:
    """Decode `image` and bring it into the one form that the rest of the project knows."""
    image.load()
    if image.mode == "I" or image.mode.startswith("I;16"):
        rgb = _in_strips(image, _from_sixteen_bits)
    elif image.mode == "F":
        rgb = _in_strips(image, _from_floats)
    elif image.has_transparency_data:
        rgb = _in_strips(image, _on_white)
    else:
        rgb = image.convert("RGB")
    rgb.info.clear()  # or whoever honours the EXIF tag in it would turn the picture a second time
    steps = (Image.Transpose.TRANSPOSE, Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM)
    for step, needed in zip(steps, UPRIGHT.get(orientation(image), ()), strict=False):
        rgb = rgb.transpose(step) if needed else rgb
    return rgb


def _in_strips(image: Image.Image, plain: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """`plain` of the picture in RGB, a part at a time: at once it would take many times the picture's memory."""
    rgb = Image.new("RGB", image.size)
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        rgb.paste(plain(image.crop(box)).convert("RGB"), box)
    return rgb


def _from_sixteen_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image).clip(0, 65535)  # Pillow's own conversion would clip at 255
    return Image.fromarray((values / 257 + 0.5).astype(np.uint8))


def _from_floats(image: Image.Image) -> Image.Image:
    """Of a TIFF: 0 to 1 by convention."""
    return Image.fromarray((np.nan_to_num(np.asarray(image)).clip(0, 1) * 255 + 0.5).astype(np.uint8))


def _on_white(image: Image.Image) -> Image.Image:
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)


def _dhash(image: Image.Image) -> int:
    """Perceptual hash of 64 bits: is each of 8 x 8 grey cells brighter than its left neighbour (Krawetz 2013)."""
    cells = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.LANCZOS))
    return int.from_bytes(np.packbits(cells[:, 1:] > cells[:, :-1]).tobytes(), "big")


def _content(file: BinaryIO) -> int:
    file.seek(0)
    digest = hashlib.blake2b(digest_size=8)
    while block := file.read(1 << 20):
        digest.update(block)
    return int.from_bytes(digest.digest(), "little") or 1  # 0 says: not hashed
