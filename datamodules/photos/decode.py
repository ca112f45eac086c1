"""Decode one picture file, or report why it cannot be decoded."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import logging
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageOps
from PIL import TiffImagePlugin as tiff

from datamodules.errors import DataError
from datamodules.photos.find import FORMAT_OF_SUFFIX, MAX_SUFFIX_LENGTH, UNSUPPORTED_SUFFIXES, suffix_of_content
from datamodules.text import printable

# Pillow may use only these decoders. Others are less safe: the decoder for EPS starts another program.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "PPM")
MAX_PIXELS = 178_956_970  # Pillow's default limit, checked here because some programs switch Pillow's check off
MAX_SIDE = 65_535  # pixels; the limit of JPEG. Other decoders take minutes for a side of millions of pixels
MISNAMED, ROTATED, BLANK, HAS_PAGES, CENTER_BLANK = 1, 2, 4, 8, 16  # bits of Inspection.flags
THUMBNAIL_SIZE = 24  # pixels; height and width of Inspection.thumbnail
MAX_BLANK_CONTRAST = 16  # of 255: in a nearly blank picture no channel has a larger difference. 12 bits in 16 have 15
MAX_FRAME_CONTRAST = 4  # of 255: the rows and columns of a frame have no larger difference
UNREAD = "not a format we read"
_CONVERT = "save it as an 8-bit PNG"
_ORIENTATION = 0x0112  # EXIF tag
# EXIF orientation -> the steps that are needed, in this order: (transpose, flip left-right, flip top-bottom)
STEPS_TO_UPRIGHT = {o: (o > 4, o in (2, 3, 6, 7), o in (3, 4, 7, 8)) for o in range(2, 9)}
_PIXELS_PER_STRIP = 1 << 22  # conversions that need several copies work on strips of this size, to save memory
_CONTENT_PATTERNS = {  # for the first bytes of a file that is not a picture, in lower case; the first match counts
    rb"\s*(<!doctype html|<html)": "a web page",
    rb"\s*(<svg|<\?xml)": "SVG or XML",
    rb"[^\0]*$": "text",
    rb"": "unknown data",
}


class BadPicture(DataError):
    """Raised if a picture file cannot be opened or decoded. `kind` is a key of check.ADVICE, `reason` has details."""

    def __init__(self, name: str, kind: str, reason: str) -> None:
        super().__init__(name, kind, reason)
        self.name, self.kind, self.reason = name, kind, reason

    def __str__(self) -> str:
        return f"{printable(self.name)}: {self.kind} ({self.reason}): replace the file or leave it out"


class Inspection(NamedTuple):
    """The result of :func:`inspect_picture` for one file."""

    kind: str = ""  # kind and reason as in BadPicture; both are "" if the picture can be decoded
    reason: str = ""
    # MISNAMED: the suffix does not match the format. ROTATED: the EXIF tag flips or rotates the picture. BLANK: nothing
    # can be seen in it. CENTER_BLANK: nothing can be seen in its square center. HAS_PAGES: only the first page is used.
    flags: int = 0
    width: int = 0  # pixels, before the rotation
    height: int = 0
    thumbnail: Sequence[list[int]] = ()  # THUMBNAIL_SIZE rows of gray levels; the workers send JSON
    sha256: str = ""  # of the file, in lower-case hex


def read_picture(path: str | Path | bytes, side: int | None = None) -> Image.Image:
    """Decode the first picture of a file, or of its bytes, to upright RGB. Raise BadPicture on failure.

    With a ``side`` in pixels, the sides of a large JPEG are divided by up to 8, but not below ``side``: this is fast.
    """
    with _open_picture(path) as image:
        if side:
            image.draft(None, (side, side))
        return to_upright_rgb(image)


def inspect_picture(path: Path) -> Inspection:
    """Decode and hash the whole file. If it cannot be decoded, return the reason."""
    try:
        with _open_picture(path) as image:
            width, height = image.size
            suffix = path.suffix[1:].lower()
            if 0 < len(suffix) <= MAX_SUFFIX_LENGTH and suffix not in FORMAT_OF_SUFFIX:
                reason = f".{suffix} is not a picture suffix, but a picture is inside: rename it"
                raise BadPicture(str(path), UNREAD, reason)
            expected = FORMAT_OF_SUFFIX.get(suffix)
            # Phones write MPO files (a JPEG followed by more pictures) with the suffix .jpg.
            flags = MISNAMED * (image.format != expected and (image.format, expected) != ("MPO", "JPEG"))
            flags |= HAS_PAGES * (image.format != "MPO" and getattr(image, "is_animated", False))
            # Decode a JPEG at a reduced size of at least 64 x 64 pixels: this is faster and finds the same errors.
            image.draft(image.mode, (64, 64))
            # Decode a PNG first: getexif() may hide its errors. Do not decode a TIFF first: it would lose its EXIF tag.
            if image.format == "PNG":
                image.load()
            flags |= ROTATED * (read_orientation(image) in STEPS_TO_UPRIGHT)
            rgb = to_upright_rgb(image)
            small = rgb.reduce(max(1, min(rgb.size) // 224))  # about as large as the network sees it
            flags |= BLANK * _is_blank(small)
            flags |= CENTER_BLANK * _is_blank(ImageOps.fit(small, (min(small.size), min(small.size))))
            gray = _without_frame(small.convert("L")).resize((THUMBNAIL_SIZE, THUMBNAIL_SIZE), Image.Resampling.BOX)
            sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
            return Inspection("", "", flags, width, height, np.asarray(gray).tolist(), sha256)
    except BadPicture as bad:
        return Inspection(bad.kind, bad.reason)


def _without_frame(gray: Image.Image) -> Image.Image:
    """Cut off the rows and columns of one gray level at the sides, such as a frame, or bars that fill a format.

    Behind a frame, most pixels of a row differ from it. The rows of an even background are not cut off.
    """
    pixels = np.asarray(gray)
    for _ in range(12):  # three times for each side: bars can be inside a frame
        ranges = np.maximum.accumulate(pixels.max(axis=1)) - np.minimum.accumulate(pixels.min(axis=1))
        start = int((ranges <= MAX_FRAME_CONTRAST).argmin())  # 0 also if all rows have one level
        behind = pixels[min(start + len(pixels) // 16, len(pixels) - 1)].astype(int)  # next to a frame, JPEG blurs
        differs = abs(behind - int(pixels[0, 0])) > MAX_FRAME_CONTRAST
        pixels = np.rot90(pixels[start * (differs.mean() > 0.5) :])
    return Image.fromarray(np.ascontiguousarray(pixels))


def _is_blank(image: Image.Image) -> bool:
    return bool(np.ptp(np.asarray(image), axis=(0, 1)).max() <= MAX_BLANK_CONTRAST)


@contextlib.contextmanager
def _open_picture(path: str | Path | bytes) -> Iterator[Image.Image]:
    """Open a picture and read its header. Convert all errors, also errors in the `with` block, to BadPicture."""
    name = "" if isinstance(path, bytes) else str(path)
    if (suffix := Path(name).suffix[1:].lower()) in UNSUPPORTED_SUFFIXES:  # Pillow would open some raw files as TIFF
        raise BadPicture(name, UNREAD, f".{suffix}: convert to .jpg")
    try:
        with io.BytesIO(path) if isinstance(path, bytes) else Path(path).open("rb") as file:
            try:
                image = Image.open(file, formats=_prepare_pillow())
            except OSError as error:  # includes UnidentifiedImageError
                if error.errno is not None:
                    raise
                raise BadPicture(name, *_explain_open_error(file)) from None
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            if max(image.size) > MAX_SIDE:
                raise BadPicture(name, "too large", f"a side of more than {MAX_SIDE:,} pixels")
            yield image
    except BadPicture as bad:
        raise BadPicture(name, bad.kind, bad.reason) from None  # to_upright_rgb does not know the name
    except Image.DecompressionBombError:
        raise BadPicture(name, "too large", f"more than {MAX_PIXELS:,} pixels") from None
    except MemoryError as error:
        raise BadPicture(name, "too large", "does not fit into memory") from error
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, EOFError, IndexError, ...
        if isinstance(error, OSError) and error.errno is not None:  # raised by the system, not by a decoder
            raise BadPicture(name, "unreadable", error.strerror or "no reason given") from error
        reason = " ".join(str(error).split()) or type(error).__name__
        truncated = isinstance(error, OSError) and "truncated" in reason.lower()
        kind = UNREAD if "raw mode" in reason else "truncated" if truncated else "damaged"
        raise BadPicture(name, kind, reason) from error


@functools.cache
def _prepare_pillow() -> tuple[str, ...]:
    """Switch off messages about usable pictures. Return FORMATS, with HEIF if the extra `heif` is installed."""
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    warnings.filterwarnings("ignore", "(?s).*Corrupt EXIF data", UserWarning)
    with contextlib.suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()
        return (*FORMATS, "HEIF")
    return FORMATS


def _explain_open_error(file: BinaryIO) -> tuple[str, str]:
    """Return (kind, reason) for a file that Pillow cannot open."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if not (first_bytes := file.read(256)):
        return "empty", "0 bytes"
    if (suffix := suffix_of_content(first_bytes)) in ("jpg", "png", "tif", "webp"):
        file.seek(max(0, size - 64))
        is_whole = suffix == "jpg" and b"\xff\xd9" in file.read()  # the end of a JPEG
        with contextlib.suppress(Exception):  # not a TIFF, or its list of tags is incomplete
            tags: Any = tiff.ImageFileDirectory_v2(first_bytes[: 16 if b"+" in first_bytes[:4] else 8])
            file.seek(tags.next)
            tags.load(file)
            starts = tags.get(tiff.STRIPOFFSETS) or tags[tiff.TILEOFFSETS]
            lengths = tags.get(tiff.STRIPBYTECOUNTS) or tags[tiff.TILEBYTECOUNTS]
            is_whole = max(map(sum, zip(starts, lengths, strict=True))) <= size
        if is_whole:
            return UNREAD, f"an unusual pixel layout: {_CONVERT}"
        return "truncated", "the file ends too early"
    if suffix == "heic" and "HEIF" not in _prepare_pillow():
        return UNREAD, "HEIC: pip install 'lit-classics[heif]', or convert to .jpg"
    if suffix:
        return UNREAD, f"{suffix.upper()} inside"
    content = next(text for pattern, text in _CONTENT_PATTERNS.items() if re.match(pattern, first_bytes.lower()))
    return "not a picture", f"{content} inside"


def read_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation: 2 to 8 mean flipped or rotated, all other values mean upright."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # the tag is damaged, but the picture can be used
        return 1


def to_upright_rgb(image: Image.Image) -> Image.Image:
    """Decode `image` and convert it to mode RGB, 8 bits per channel, upright, with transparent pixels on white."""
    _check_layout(image)
    image.load()
    eight_bits = _to_eight_bits(image) if image.mode[0] in "IF" else image
    if eight_bits.has_transparency_data:
        rgb = Image.new("RGB", image.size)
        rows = max(1, _PIXELS_PER_STRIP // image.width)  # the whole picture at once would need too much memory
        for top in range(0, image.height, rows):
            box = (0, top, image.width, min(top + rows, image.height))
            strip = eight_bits.crop(box)
            layer = (strip.convert("LA") if strip.mode == "La" else strip).convert("RGBA")
            rgb.paste(Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB"), box)
    else:
        rgb = eight_bits.convert("RGB")
    rgb.info.clear()  # removes the EXIF tag, so that other code does not rotate the picture a second time
    steps = (Image.Transpose.TRANSPOSE, Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM)
    for step, needed in zip(steps, STEPS_TO_UPRIGHT.get(read_orientation(image), ()), strict=False):
        rgb = rgb.transpose(step) if needed else rgb
    return rgb


def _check_layout(image: Image.Image) -> None:
    """Raise BadPicture for a TIFF that Pillow decodes to wrong pixels, or to the first of many channels."""
    tags: Any = getattr(image, "tag_v2", {})
    bits, channels = tags.get(tiff.BITSPERSAMPLE, (1,))[0], tags.get(tiff.SAMPLESPERPIXEL, 1)
    is_planar, is_compressed = tags.get(tiff.PLANAR_CONFIGURATION) == 2, image.info.get("compression") != "raw"
    is_ycbcr = tags.get(tiff.PHOTOMETRIC_INTERPRETATION) == 6 and not is_compressed
    is_subsampled = sum(tags.get(tiff.STRIPBYTECOUNTS, ())) < 3 * image.width * image.height
    for problem, is_present in (
        (f"{bits} bits per channel in separate planes", is_planar and channels > 1 and bits > 8),
        (f"{channels} channels without a meaning", channels > 2 and len(image.getbands()) == 1),
        ("signed 8-bit values", image.mode == "L" and 2 in tags.get(tiff.SAMPLEFORMAT, ())),
        ("compressed big-endian values", image.mode in "IF" and tags and tags.prefix == b"MM" and is_compressed),
        ("uncompressed YCbCr colors", is_ycbcr and (image.mode != "YCbCr" or is_subsampled)),  # Pillow 12 says RGB
    ):
        if is_present:
            raise BadPicture("", UNREAD, f"{problem}: {_CONVERT}")


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Convert a picture of mode I;16, I or F to mode L. Raise BadPicture if its values are not those of a picture."""
    tags: Any = getattr(image, "tag_v2", {})
    values = np.array(image, np.float32)
    low, high = values.min(), values.max()
    if not 0 <= low <= high <= 65535:  # also NaN
        raise BadPicture("", UNREAD, f"values from {low:g} to {high:g}: {_CONVERT}")
    white = 4095 if tags.get(tiff.BITSPERSAMPLE) == (12,) else 65535
    if image.mode in "IF" and (image.mode, image.format) != ("I", "PPM"):  # no format says which value is white
        white = 1 if high <= 1 else 255 if high <= 255 else 65535
    values[values == image.info.get("transparency", -1)] = white
    values *= 255 / white
    gray = Image.fromarray((values + 0.5).astype(np.uint8))
    # In a TIFF of photometric interpretation 0, 0 means white. Pillow inverts it only if it has at most 8 bits.
    return ImageOps.invert(gray) if tags.get(tiff.PHOTOMETRIC_INTERPRETATION) == 0 else gray
