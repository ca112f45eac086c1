"""Every mode, depth, range and layout of pixels is decoded faithfully or refused by name, never white or scrambled."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from PIL import Image

from datamodules.photos.check import find_problems
from datamodules.photos.dataset import read_pixels
from datamodules.photos.decode import BLANK, HAS_PAGES, UNREAD, BadPicture, inspect_picture, read_picture
from datamodules.photos.find import find_photos
from tests.support.commands import run_well
from tests.support.photos import examine_leniently, noise, write_cats_and_dogs, write_file
from tests.support.tiff import tiff_bytes

ROWS, COLUMNS = np.mgrid[:30, :40]
GRAY = (ROWS * 5 + COLUMNS * 2).astype(np.uint8)  # 0 to 223
COLOR = np.dstack([GRAY, 255 - GRAY, (COLUMNS * 6).astype(np.uint8)])
ALPHA = (COLUMNS * 6).astype(np.uint8)
ON_WHITE = COLOR * (ALPHA[..., None] / 255) + 255 * (1 - ALPHA[..., None] / 255)
DEEP, DEEP_COLOR = GRAY.astype(np.uint16) * 257, COLOR.astype(np.uint16) * 257
INK = np.dstack([255 - COLOR, 0 * GRAY])
NEUTRAL = 0 * GRAY + 128
TWELVE = (GRAY.astype(int) * 4095 / 255).round().astype(np.uint16)
FLOAT = GRAY.astype(np.float32)


def pair_of_twelve_bits() -> bytes:
    """Return the values of TWELVE packed, two in three bytes."""
    left, right = TWELVE[:, ::2], TWELVE[:, 1::2]
    packed = np.dstack([left >> 4, (left & 15) << 4 | right >> 8, right & 255])
    return packed.astype(np.uint8).tobytes()


def saved(picture: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def png(pixels: np.ndarray, depth: int, color_type: int, transparent: bytes = b"") -> bytes:
    """Return a PNG of 16 bits, which Pillow cannot write in every mode."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 40, 30, depth, color_type, 0, 0, 0)
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    chunks = chunk(b"IHDR", head) + (chunk(b"tRNS", transparent) if transparent else b"")
    return b"\x89PNG\r\n\x1a\n" + chunks + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


READ: dict[str, tuple[bytes, np.ndarray]] = {
    "white is zero": (tiff_bytes(255 - GRAY, 0), GRAY),
    "16 bits": (tiff_bytes(DEEP), GRAY),
    "16 bits, big endian": (tiff_bytes(DEEP, big_endian=True), GRAY),
    "16 bits, white is zero": (tiff_bytes(65535 - DEEP, 0), GRAY),
    "12 bits packed": (tiff_bytes(TWELVE, bits=12, data=pair_of_twelve_bits()), GRAY),
    "signed 32 bits": (tiff_bytes(DEEP.astype(np.int32)), GRAY),
    "signed 32 bits to 255": (tiff_bytes(GRAY.astype(np.int32), big_endian=True), GRAY),
    "unsigned 32 bits": (tiff_bytes(DEEP.astype(np.uint32)), GRAY),
    "signed 16 bits to 255": (tiff_bytes(GRAY.astype(np.int16)), GRAY),
    "float to 1": (tiff_bytes(FLOAT / 255), GRAY),
    "float to 255": (tiff_bytes(FLOAT), GRAY),
    "float to 65535, big endian": (tiff_bytes(FLOAT * 257, big_endian=True), GRAY),
    "float, white is zero": (tiff_bytes(255 - FLOAT, 0), GRAY),
    "RGB of 16 bits": (tiff_bytes(DEEP_COLOR, 2, big_endian=True), COLOR),
    "RGB in planes": (tiff_bytes(COLOR, 2, planar=True), COLOR),
    "RGB and a channel without meaning": (tiff_bytes(np.dstack([COLOR, ALPHA]), 2, tags={338: [0]}), COLOR),
    "RGB and two channels": (tiff_bytes(np.dstack([COLOR, ALPHA, GRAY]), 2, tags={338: [0, 0]}), COLOR),
    "transparent": (tiff_bytes(np.dstack([COLOR, ALPHA]), 2, tags={338: [2]}), ON_WHITE),
    "premultiplied": (
        tiff_bytes(np.dstack([(COLOR * (ALPHA[..., None] / 255) + 0.5).astype(np.uint8), ALPHA]), 2, tags={338: [1]}),
        ON_WHITE,
    ),
    "premultiplied gray": (
        tiff_bytes(np.dstack([(GRAY * (ALPHA / 255) + 0.5).astype(np.uint8), ALPHA]), 1, tags={338: [1]}),
        ON_WHITE[..., 0],
    ),
    "CMYK": (tiff_bytes(INK, 5), COLOR),
    "CMYK in planes": (tiff_bytes(INK, 5, planar=True), COLOR),
    "YCbCr": (tiff_bytes(np.dstack([GRAY, NEUTRAL, NEUTRAL]), 6, tags={530: [1, 1]}), GRAY),
    "CMYK JPEG": (saved(Image.fromarray(INK, "CMYK"), "JPEG", quality=100), COLOR),
    "16-bit RGB PNG": (png(DEEP_COLOR, 16, 2), COLOR),
    "16-bit gray PNG, 0 transparent": (png(DEEP, 16, 0, b"\0\0"), np.where(GRAY == 0, 255, GRAY)),
    "16-bit RGBA PNG": (png(np.dstack([DEEP_COLOR, ALPHA.astype(np.uint16) * 257]), 16, 6), ON_WHITE),
    "16-bit PGM": (b"P5 40 30 65535\n" + DEEP.astype(">u2").tobytes(), GRAY),
    "12-bit PGM": (b"P5 40 30 4095\n" + TWELVE.astype(">u2").tobytes(), GRAY),
    "PFM": (b"Pf 40 30 -1.0\n" + (FLOAT[::-1] / 255).tobytes(), GRAY),
}


SINCE_PILLOW_13 = {"YCbCr": "uncompressed YCbCr colors", "premultiplied gray": "an unusual pixel layout"}


def test_pixels_are_decoded_faithfully(tmp_path: Path) -> None:
    for name, (content, shows) in READ.items():
        path = write_file(tmp_path / name, content)
        if name in SINCE_PILLOW_13 and int(PIL.__version__.split(".")[0]) < 13:
            with pytest.raises(BadPicture, match=SINCE_PILLOW_13[name]):
                read_pixels(path)
            continue
        pixels = read_pixels(path)
        expected = np.atleast_3d(shows).astype(float)
        apart = np.abs(pixels.permute(1, 2, 0).numpy() - expected)
        assert apart.mean() <= 5 if "JPEG" in name else apart.max() <= 2.1, name
        assert np.array_equal(np.asarray(read_picture(path)), pixels.permute(1, 2, 0).numpy()), name
        assert (inspect_picture(path).kind, inspect_picture(path).flags & BLANK) == ("", 0), name


REFUSED = {
    "negative": (tiff_bytes(FLOAT - 100), "values from -100 to 123"),
    "not a number": (tiff_bytes(np.where(GRAY == 9, np.nan, FLOAT)), "values from nan to nan"),
    "infinite": (tiff_bytes(np.where(GRAY == 9, np.inf, FLOAT)), "values from 0 to inf"),
    "large": (tiff_bytes(FLOAT * 1e6), r"values from 0 to 2\.23e\+08"),
    "signed": (tiff_bytes(GRAY.astype(np.int32) - 100), "values from -100 to 123"),
    "signed 8 bits": (tiff_bytes(GRAY.astype(np.int8)), "signed 8-bit values"),
    "planes of 16 bits": (tiff_bytes(DEEP_COLOR, 2, planar=True), "16 bits per channel in separate planes"),
    "subsampled": (tiff_bytes(COLOR, 6, data=bytes(1800), tags={530: [2, 2]}), "uncompressed YCbCr colors"),
    "five channels": (tiff_bytes(np.dstack([COLOR, INK[..., :2]])), "an unusual pixel layout"),
    "five planes": (tiff_bytes(np.dstack([COLOR, INK[..., :2]]), planar=True), "an unusual pixel layout"),
    "64 bits": (tiff_bytes(FLOAT.astype(np.float64)), "an unusual pixel layout"),
    "float RGB": (tiff_bytes(COLOR.astype(np.float32), 2), "an unusual pixel layout"),
    "white is zero, big endian": (tiff_bytes(65535 - DEEP, 0, big_endian=True), "an unusual pixel layout"),
    "JPEG of 12 bits": (
        saved(noise(1), "JPEG").replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c"),
        "an unusual pixel layout",
    ),
}


def test_what_cannot_be_read_faithfully_is_refused_by_name(tmp_path: Path) -> None:
    for name, (content, reason) in REFUSED.items():
        path = write_file(tmp_path / name, content)
        with pytest.raises(BadPicture, match=rf"{name}: {UNREAD} \({reason}: save it as an 8-bit PNG\)"):
            read_pixels(path)
        assert inspect_picture(path).kind == UNREAD, name


def test_a_tiff_whose_header_ends_early_is_truncated(tmp_path: Path) -> None:
    whole = REFUSED["five channels"][0]
    for length in (60, 150, len(whole) - 1):
        assert inspect_picture(write_file(tmp_path / "cut.tif", whole[:length])).kind == "truncated"


BLANKS = {
    "white.png": saved(Image.new("RGB", (300, 200), "white"), "PNG"),
    "nearly_white.tif": tiff_bytes(FLOAT / 223 * 0.04 + 0.96),
    "twelve_in_sixteen.tif": tiff_bytes(TWELVE),
    "clear.png": saved(Image.fromarray(np.dstack([COLOR, 0 * GRAY])), "PNG"),
    "white_on_clear.png": saved(Image.fromarray(np.dstack([np.full_like(COLOR, 255), ALPHA])), "PNG"),
    "mask.png": saved(Image.fromarray(GRAY // 200), "PNG"),
    "noise.jpg": saved(noise(5, 400, 300).point(lambda value: value // 32 + 20), "JPEG", quality=95),
}


def drawings() -> dict[str, Image.Image]:
    """Return thin strokes on a small black and on large white pages."""
    digit, page, line = np.zeros((28, 28), np.uint8), np.full((1754, 1240), 255, np.uint8), np.full((900, 700), 255)
    digit[5:20, 14] = 255
    page[600:603, 300:700] = 0
    line[450, 200:600] = 0
    return {
        "blue.png": Image.fromarray(COLOR * np.array([0, 0, 1], np.uint8)),  # blank in two of three channels
        "digit.png": Image.fromarray(digit),
        "page.png": Image.fromarray(page),
        "page.jpg": Image.fromarray(page),
        "line.png": Image.fromarray(line.astype(np.uint8)),
    }


def test_blank_pictures_are_findings_and_drawings_are_not(tmp_path: Path) -> None:
    write_cats_and_dogs(tmp_path / "photos")
    for name, content in BLANKS.items():
        write_file(tmp_path / "photos/cat" / name, content)
    for name, picture in drawings().items():
        picture.save(tmp_path / "photos/dog" / name)
    noise(3).save(tmp_path / "photos/dog/pages.tif", save_all=True, append_images=[noise(4)])
    assert inspect_picture(tmp_path / "photos/dog/pages.tif").flags == HAS_PAGES
    kinds = {
        finding.kind: finding.items for finding in find_problems(find_photos(tmp_path / "photos"), num_workers=0)[1]
    }
    assert kinds["blank or nearly blank"] == [(f"cat/{name}",) for name in sorted(BLANKS)]
    assert kinds["several pages"] == [("dog/pages.tif",)]
    notes = examine_leniently(tmp_path / "photos").notes
    assert (
        "7 pictures blank or nearly blank as the network sees it: still used "
        "(cat/clear.png, cat/mask.png, cat/nearly_white.tif, ...)"
    ) in notes
    assert "1 picture with several pages or frames: only the first is used (dog/pages.tif)" in notes


def test_fit_trains_on_float_pictures_and_says_what_is_blank_or_not_read(tmp_path: Path) -> None:
    for number in range(12):
        pixels = np.asarray(noise(number).convert("L"), np.float32)
        write_file(tmp_path / "photos" / "ab"[number % 2] / f"{number}.tif", tiff_bytes(pixels))
    write_file(tmp_path / "photos/a/clear.png", BLANKS["clear.png"])
    write_file(tmp_path / "photos/a/five.tif", REFUSED["five channels"][0])
    flags = "--max_epochs 1 --accelerator cpu --dashboard false --data.max_bad_fraction 0.1"
    said = run_well(f"fit.py --data photos --model LitCNN {flags}")
    assert "1 picture blank or nearly blank as the network sees it: still used (a/clear.png)" in said
    assert f"1 {UNREAD}\n" in said
    assert "a/five.tif: an unusual pixel layout: save it as an 8-bit PNG" in said
