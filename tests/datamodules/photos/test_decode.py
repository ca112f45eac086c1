"""Every bad file gets a reason, and every good one is decoded to upright RGB."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from datamodules.errors import DataError
from datamodules.photos import decode
from datamodules.photos.decode import read_picture
from tests.support.photos import (
    BROKEN,
    DECOMPRESSION_BOMB,
    JPEG,
    examine_leniently,
    exif_with_orientation,
    scene,
    write_cats_and_dogs,
    write_file,
)

# --- bad files ------------------------------------------------------------


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_left_out_with_its_reason(tmp_path: Path, name: str) -> None:
    content, kind, reason = BROKEN[name]
    write_file(write_cats_and_dogs(tmp_path) / "cat" / name, content)
    (left,) = examine_leniently(tmp_path).left_out
    assert (left.path, left.kind) == (f"cat/{name}", kind)
    assert left.reason.startswith(reason)
    with pytest.raises(DataError, match=rf"^\S*cat/{name}: {kind} \({reason}.*\): replace the file or leave it"):
        read_picture(tmp_path / "cat" / name)


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # as some programs do
    with pytest.raises(DataError, match="too large"):
        read_picture(write_file(tmp_path / "bomb.png", DECOMPRESSION_BOMB))


def test_a_very_long_strip_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (70_000, 1)).save(tmp_path / "strip.png")
    with pytest.raises(DataError, match=r"too large .a side of more than 65,535 pixels"):
        read_picture(tmp_path / "strip.png")


def test_a_missing_file_gets_a_reason(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.jpg: unreadable \(No such file or directory\)"):
        read_picture(tmp_path / "gone.jpg")


# --- unusual pictures ------------------------------------------------------------


@pytest.mark.parametrize("mode", ["CMYK", "L", "1", "P", "RGBA", "LA", "I;16", "I", "F", "YCbCr"])
def test_every_mode_is_decoded(tmp_path: Path, mode: str) -> None:
    if mode == "I;16":
        picture = Image.fromarray(np.full((30, 40), 51 * 257, np.uint16))
    elif mode == "F":
        picture = Image.fromarray(np.full((30, 40), 0.2, np.float32))
    elif mode == "I":
        picture = Image.fromarray(np.full((30, 40), 51 * 257, np.int32))
    else:
        picture = Image.new("RGB", (40, 30), (51, 51, 51)).convert(mode)
    path = write_cats_and_dogs(tmp_path) / "cat" / "odd.tif"
    picture.save(path, compression="tiff_lzw" if mode == "YCbCr" else "raw")
    assert Image.open(path).mode == ("RGB" if mode == "YCbCr" else mode)  # the decoder converts compressed YCbCr
    assert examine_leniently(tmp_path).left_out == []
    rgb = read_picture(path)
    assert (rgb.mode, rgb.size) == ("RGB", (40, 30))
    if mode != "1":
        np.testing.assert_allclose(np.asarray(rgb), 51, atol=1)


def test_sixteen_bit_png_is_scaled(tmp_path: Path) -> None:
    ramp = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    Image.fromarray(ramp).save(tmp_path / "x.png")
    np.testing.assert_allclose(np.asarray(read_picture(tmp_path / "x.png"))[..., 0], ramp / 257, atol=0.51)


def test_transparency_becomes_white(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "rgba.png")
    palette = Image.new("P", (8, 8), 3)
    palette.putpalette([255, 0, 0] * 4)
    palette.save(tmp_path / "p.png", transparency=3)
    for name in ("rgba.png", "p.png"):
        assert read_picture(tmp_path / name).getpixel((4, 4)) == (255, 255, 255)


def test_large_pictures_are_converted_in_strips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without strips, a file of 854 bytes with 11 x 10,616,841 transparent pixels needed 4 GB."""
    clear = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 7, 4), np.uint8))
    grey = clear.getchannel(0)
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    made = [
        (clear, "png"),
        (clear.convert("LA"), "png"),
        (deep, "png"),
        (grey.convert("F").point(lambda v: v / 99), "tif"),
    ]
    palette = clear.convert("RGB").quantize(9)
    palette.info["transparency"] = 3
    sizes: list[int] = []
    composite = Image.alpha_composite

    def noted(under: Image.Image, over: Image.Image) -> Image.Image:
        sizes.append(over.height)
        return composite(under, over)

    for number, (image, suffix) in enumerate([*made, (palette, "png")]):
        path = tmp_path / f"{number}.{suffix}"
        image.save(path)
        whole = np.asarray(read_picture(path))
        with monkeypatch.context() as patch:
            patch.setattr(decode, "_PIXELS_PER_STRIP", 29)
            patch.setattr(Image, "alpha_composite", noted)
            assert np.array_equal(np.asarray(read_picture(path)), whole)
    assert sizes == [4, 4, 4, 4, 4, 4, 4, 2] * 3


def test_the_first_picture_of_an_animation_is_used(tmp_path: Path) -> None:
    red, blue = Image.new("RGB", (9, 9), "red"), Image.new("RGB", (9, 9), "blue")
    for suffix in ("png", "webp", "tif"):
        path = write_cats_and_dogs(tmp_path) / "cat" / f"moving.{suffix}"
        red.save(path, save_all=True, append_images=[blue], lossless=True)
        r, _, b = read_picture(path).getpixel((4, 4))  # type: ignore[misc]
        assert r > 250 > 5 > b
    assert len(examine_leniently(tmp_path).paths) == 15


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_an_exif_tag_rotates_a_picture_once(tmp_path: Path, suffix: str) -> None:
    path = write_cats_and_dogs(tmp_path) / "cat" / f"phone.{suffix}"
    picture = Image.new("RGB", (40, 30), "red")
    picture.paste("blue", (0, 0, 20, 30))  # left, so on top after a rotation by 90 degrees clockwise
    picture.save(path, exif=exif_with_orientation(6))
    upright = read_picture(path)
    assert upright.size == (30, 40)
    assert upright.getpixel((15, 3))[2] > 200  # type: ignore[index]
    assert upright.getexif().get(0x0112) is None
    note = f"1 picture rotated by an EXIF tag, as phones do: used upright (cat/phone.{suffix})"
    assert note in examine_leniently(tmp_path).notes


def test_a_thumbnail_has_no_frame_but_keeps_an_even_background(tmp_path: Path) -> None:
    inner = scene(3, (160, 120))

    def thumbnail(picture: Image.Image) -> np.ndarray:
        picture.save(tmp_path / "x.png")
        return np.array(decode.inspect_picture(tmp_path / "x.png").thumbnail, float)

    framed = ImageOps.expand(ImageOps.expand(ImageOps.expand(inner, (0, 30), "white"), (25, 0), "black"), 9, "teal")
    assert np.abs(thumbnail(framed) - thumbnail(inner)).max() < 1
    one_side = Image.new("RGB", (200, 120), (20, 20, 20))
    one_side.paste(inner)
    assert np.abs(thumbnail(one_side) - thumbnail(inner)).max() < 1
    on_white = Image.new("RGB", (240, 240), "white")
    on_white.paste(inner.resize((80, 60)), (80, 120))  # most of its first row is background
    assert thumbnail(on_white)[0].tolist() == [255] * 24
    noisy = np.asarray(ImageOps.expand(inner, 20, (90, 90, 90)), int)
    noisy += np.random.default_rng(0).integers(-2, 3, noisy.shape[:2])[..., None]
    assert np.abs(thumbnail(Image.fromarray(noisy.clip(0, 255).astype(np.uint8))) - thumbnail(inner)).mean() < 2
    assert np.ptp(thumbnail(Image.new("RGB", (50, 40), "red"))) == 0


def test_broken_exif_does_not_break_a_picture(tmp_path: Path) -> None:
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\xee" * 14
    path = write_file(tmp_path / "x.jpg", b"\xff\xd8\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + JPEG[2:])
    assert read_picture(path).size == (40, 30)
    assert decode.inspect_picture(path).kind == ""
