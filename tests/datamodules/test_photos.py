"""A folder of photos: every bad input, the layouts, the split, the memory between runs."""

from __future__ import annotations

import csv
import io
import os
import pickle
import socket
import struct
import subprocess
import sys
import tempfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datamodules import examination
from datamodules.errors import DataError
from datamodules.photos.decode import read_picture
from datamodules.photos.find import TEST, TRAIN, VAL, LeftOut, find_class_names, find_photos
from datamodules.photos.folder import Photos, class_names, examine
from datamodules.photos.paths import Paths
from datamodules.photos.split import content_groups, stratified_split


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test finds what another one, or the person at this machine, has examined."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def noise(seed: int, width: int = 40, height: int = 30) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def encoded(seed: int, form: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    noise(seed).save(file, form, **options)
    return file.getvalue()


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def fill(root: Path, counts: dict[str, int], seed: int = 0) -> Path:
    """`counts` pictures, all different, in each folder of `root`."""
    for folder, count in counts.items():
        for i in range(count):
            seed += 1
            put(root / folder / f"{i}.jpg", encoded(seed))
    return root


def two(root: Path, count: int = 6) -> Path:
    return fill(root, {"cat": count, "dog": count})


def look_at(root: Path, **options: object) -> Photos:
    return examine(root, **{"max_bad_fraction": 0.9, "num_workers": 0, **options})  # type: ignore[arg-type]


def names(photos: Photos, split: int) -> set[str]:
    return set(photos.paths.take(photos.select(split)))


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb() -> bytes:
    head = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*c) for c in ((b"IHDR", head), (b"IDAT", pixels), (b"IEND", b"")))


def spoilt() -> bytes:
    """A PNG whose checksums are right and whose pixels cannot be unpacked."""
    head = struct.pack(">IIBBBBB", 40, 30, 8, 2, 0, 0, 0)
    pixels = zlib.compress(noise(1).tobytes())[:99] + bytes(99)
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*c) for c in ((b"IHDR", head), (b"IDAT", pixels), (b"IEND", b"")))


# --- files that are no whole pictures ------------------------------------------------------------

JPEG, PNG, WEBP = encoded(900), encoded(901, "PNG"), encoded(902, "WEBP")
BROKEN = {
    "truncated.jpg": (JPEG[: len(JPEG) // 2], "truncated", "image file is truncated"),
    "late.jpg": (JPEG[:-60], "truncated", "image file is truncated"),
    "progressive.jpg": (encoded(903, progressive=True)[:-300], "truncated", "image file is truncated"),
    "head.jpg": (JPEG[:4], "truncated", "breaks off in its header"),
    "truncated.png": (PNG[: len(PNG) // 2], "truncated", "image file is truncated"),
    "truncated.webp": (WEBP[:300], "truncated", f"300 of {len(WEBP)} bytes"),
    "empty.jpg": (b"", "empty", "0 bytes"),
    "text.jpg": (b"not a picture at all", "not a picture", "text inside"),
    "page.jpg": (b"<!DOCTYPE html><p>404</p>", "not a picture", "a web page inside"),
    "gif.jpg": (encoded(904, "GIF"), "not a picture", "a GIF inside"),
    "postscript.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture", "text inside"),
    "spoilt.png": (spoilt(), "damaged", "unrecognized data stream"),
    "bomb.png": (bomb(), "too large", "more than 178,956,970 pixels"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_file_is_left_out_and_named(tmp_path: Path, name: str) -> None:
    content, kind, reason = BROKEN[name]
    put(two(tmp_path) / "cat" / name, content)
    (left,) = look_at(tmp_path).left_out
    assert (left.path, left.kind) == (f"cat/{name}", kind)
    assert left.reason.startswith(reason)
    with pytest.raises(DataError, match=rf"^\S*cat/{name}: {kind} \({reason}.*\): replace the file or leave it"):
        read_picture(tmp_path / "cat" / name)


def test_bomb_is_refused_by_our_own_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # as programs do
    with pytest.raises(DataError, match="too large"):
        read_picture(put(tmp_path / "bomb.png", bomb()))


def test_a_strip_that_no_camera_takes_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (70_000, 1)).save(tmp_path / "strip.png")
    with pytest.raises(DataError, match=r"too large .a side of more than 65,535 pixels"):
        read_picture(tmp_path / "strip.png")


@pytest.mark.parametrize("suffix", ["gif", "svg", "heic", "GIF"])
def test_other_formats_are_named_and_not_called_broken(tmp_path: Path, suffix: str) -> None:
    put(two(tmp_path) / "cat" / f"x.{suffix}", b"placeholder")
    photos = look_at(tmp_path, max_bad_fraction=0.0)
    assert photos.left_out == [
        LeftOut(f"cat/x.{suffix}", "not a format we read", f".{suffix.lower()}: convert to .jpg")
    ]


def test_text_files_and_loose_pictures_are_named(tmp_path: Path) -> None:
    put(two(tmp_path) / "cat" / "labels.txt", b"x")
    put(tmp_path / "loose.jpg", JPEG)
    assert look_at(tmp_path).left_out == [
        LeftOut("cat/labels.txt", "not a picture by its name", "ends in .txt"),
        LeftOut("loose.jpg", "in no class folder", "lies beside the class folders, not in one"),
    ]


def test_permission() -> None:
    """Root may read everything, so the examination runs as nobody."""
    code = (
        "import os, sys; from datamodules.photos import examine\n"
        "if os.getuid() == 0: os.setgid(65534); os.setuid(65534)\n"
        "photos = examine(sys.argv[1], num_workers=0, max_bad_fraction=0.9, cache=False)\n"
        "print([tuple(file) for file in photos.left_out])\n"
    )
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to nobody
        root = two(Path(folder))
        root.chmod(0o755)
        (root / "cat" / "0.jpg").chmod(0)
        closed = fill(root, {"dog/closed": 1}, seed=50) / "dog" / "closed"
        closed.chmod(0)
        done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True)
        closed.chmod(0o755)
    assert done.stdout.strip() == str(
        [
            ("dog/closed", "unreadable", "folder cannot be read: allow it with chmod u+rx"),
            ("cat/0.jpg", "unreadable", "Permission denied"),
        ]
    ), done.stderr


def test_file_that_is_gone_or_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two(tmp_path)
    (tmp_path / "cat" / "dangling.jpg").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "cat" / "pipe.jpg")
    (tmp_path / "cat" / "null.jpg").symlink_to("/dev/null")
    (tmp_path / "cat" / "self.jpg").symlink_to(tmp_path / "cat" / "self.jpg")
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(tmp_path / "cat")  # a socket's address is short
        listener.bind("socket.jpg")
    assert look_at(tmp_path).left_out == [
        LeftOut("cat/dangling.jpg", "unreadable", "No such file or directory"),
        LeftOut("cat/null.jpg", "no file", "a device: move it out of the folder"),
        LeftOut("cat/pipe.jpg", "no file", "a named pipe: move it out of the folder"),
        LeftOut("cat/self.jpg", "unreadable", "Too many levels of symbolic links"),
        LeftOut("cat/socket.jpg", "no file", "a socket: move it out of the folder"),
    ]
    with pytest.raises(DataError, match=r"gone\.jpg: unreadable \(No such file or directory\)"):
        read_picture(tmp_path / "gone.jpg")


# --- unusual pictures that are fine ------------------------------------------------------------


@pytest.mark.parametrize("mode", ["CMYK", "L", "1", "P", "RGBA", "LA", "I;16", "I", "F", "YCbCr"])
def test_every_mode_is_read(tmp_path: Path, mode: str) -> None:
    if mode == "I;16":
        picture = Image.fromarray(np.full((30, 40), 51 * 257, np.uint16))
    elif mode == "F":
        picture = Image.fromarray(np.full((30, 40), 0.2, np.float32))
    elif mode == "I":
        picture = Image.fromarray(np.full((30, 40), 51 * 257, np.int32))
    else:
        picture = Image.new("RGB", (40, 30), (51, 51, 51)).convert(mode)
    path = two(tmp_path) / "cat" / "odd.tif"
    picture.save(path)
    assert Image.open(path).mode == mode
    assert look_at(tmp_path).left_out == []
    rgb = read_picture(path)
    assert (rgb.mode, rgb.size) == ("RGB", (40, 30))
    if mode != "1":
        np.testing.assert_allclose(np.asarray(rgb), 51, atol=1)


def test_sixteen_bit_png_is_scaled(tmp_path: Path) -> None:
    ramp = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    Image.fromarray(ramp).save(tmp_path / "x.png")
    np.testing.assert_allclose(np.asarray(read_picture(tmp_path / "x.png"))[..., 0], ramp / 257, atol=0.51)


def test_transparency_lies_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "rgba.png")
    palette = Image.new("P", (8, 8), 3)
    palette.putpalette([255, 0, 0] * 4)
    palette.save(tmp_path / "p.png", transparency=3)
    for name in ("rgba.png", "p.png"):
        assert read_picture(tmp_path / name).getpixel((4, 4)) == (255, 255, 255)


def test_large_pictures_are_converted_in_strips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of 854 bytes, 11 x 10,616,841 pixels of nothing, took 4 GB: scripts/fuzz.py found it."""
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
            patch.setattr(examination, "_STRIP", 29)
            patch.setattr(Image, "alpha_composite", noted)
            assert np.array_equal(np.asarray(read_picture(path)), whole)
    assert sizes == [4, 4, 4, 4, 4, 4, 4, 2] * 3


def test_first_picture_of_an_animation(tmp_path: Path) -> None:
    red, blue = Image.new("RGB", (9, 9), "red"), Image.new("RGB", (9, 9), "blue")
    for suffix in ("png", "webp", "tif"):
        path = two(tmp_path) / "cat" / f"moving.{suffix}"
        red.save(path, save_all=True, append_images=[blue], lossless=True)
        r, _, b = read_picture(path).getpixel((4, 4))  # type: ignore[misc]
        assert r > 250 > 5 > b
    assert len(look_at(tmp_path).paths) == 15


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_exif_rotation_is_honoured_once(tmp_path: Path, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = two(tmp_path) / "cat" / f"phone.{suffix}"
    picture = Image.new("RGB", (40, 30), "red")
    picture.paste("blue", (0, 0, 20, 30))  # left, so on top when turned a quarter clockwise
    picture.save(path, exif=exif)
    upright = read_picture(path)
    assert upright.size == (30, 40)
    assert upright.getpixel((15, 3))[2] > 200  # type: ignore[index]
    assert upright.getexif().get(0x0112) is None
    assert "1 picture turned by an EXIF tag, as phones do: used upright" in look_at(tmp_path).notes


def test_broken_exif_does_not_break_a_picture(tmp_path: Path) -> None:
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\xee" * 14
    path = put(tmp_path / "x.jpg", b"\xff\xd8\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + JPEG[2:])
    assert read_picture(path).size == (40, 30)
    assert examination.look(path, False).kind == ""


def test_wrong_suffix_is_a_note(tmp_path: Path) -> None:
    put(two(tmp_path) / "cat" / "really_png.jpg", PNG)
    photos = look_at(tmp_path)
    assert len(photos.paths) == 13
    assert "1 picture of another format than the name says: used all the same (cat/really_png.jpg)" in photos.notes


def test_read_picture_from_an_open_file() -> None:
    assert read_picture(io.BytesIO(JPEG)).size == (40, 30)
    with pytest.raises(DataError, match=r"^the picture: empty"):
        read_picture(io.BytesIO())


# --- the same picture twice ------------------------------------------------------------


def test_same_picture_under_two_classes_is_left_out_and_named(tmp_path: Path) -> None:
    two(tmp_path)
    for path in ("cat/a.jpg", "cat/b.jpg", "dog/c.jpg"):
        put(tmp_path / path, JPEG)
    assert look_at(tmp_path).left_out == [
        LeftOut("cat/a.jpg", "same picture under two classes", "also dog/c.jpg"),
        LeftOut("cat/b.jpg", "same picture under two classes", "also dog/c.jpg"),
        LeftOut("dog/c.jpg", "same picture under two classes", "also cat/a.jpg"),
    ]


def test_copies_across_given_splits_are_kept_and_noted(tmp_path: Path) -> None:
    fill(tmp_path, {"train/a": 3, "train/b": 3, "val/a": 3, "val/b": 3})
    put(tmp_path / "train/a/x.jpg", JPEG)
    put(tmp_path / "val/a/y.jpg", JPEG)
    photos = look_at(tmp_path)
    assert photos.counts().tolist() == [[4, 3], [4, 3], [0, 0]]
    assert photos.notes == [
        "1 picture of val or test with a copy in another split (val/a/y.jpg): the score will be too good"
    ]


# --- layouts ------------------------------------------------------------


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_given_splits(tmp_path: Path, val: str) -> None:
    fill(tmp_path, {"train/a": 3, "train/b": 2, f"{val}/a": 1, f"{val}/b": 1, "test/a": 1, "test/b": 2})
    photos = look_at(tmp_path)
    assert photos.class_names == class_names(tmp_path) == ("a", "b")
    assert photos.counts().tolist() == [[3, 2], [1, 1], [1, 2]]
    assert photos.notes == []
    assert all(path.startswith(val) for path in names(photos, VAL))


def test_train_without_val_is_cut(tmp_path: Path) -> None:
    fill(tmp_path, {"train/a": 10, "train/b": 5, "test/a": 2, "test/b": 2})
    photos = look_at(tmp_path)
    assert photos.counts().tolist() == [[8, 4], [2, 1], [2, 2]]
    assert photos.notes == ["no folder val/: 20% of each class became val (seed 0)"]


def test_class_only_in_val_and_class_missing_from_val(tmp_path: Path) -> None:
    fill(tmp_path, {"train/a": 3, "train/b": 3, "train/c": 3, "val/a": 1, "val/aa": 2, "val/c": 1, "test/aa": 1})
    photos = look_at(tmp_path)
    assert photos.class_names == class_names(tmp_path) == find_class_names(tmp_path) == ("a", "b", "c")
    assert photos.counts()[VAL].tolist() == [1, 0, 1]
    assert [file.path for file in photos.left_out] == ["test/aa/0.jpg", "val/aa/0.jpg", "val/aa/1.jpg"]
    assert {file[1:] for file in photos.left_out} == {("class not in train", "class aa is only in val and test")}
    assert photos.notes == [
        "class aa is only in val and test: it cannot be learned, 3 pictures left out",
        "no picture in val, so accuracy is not measured, for 1 class: b",
    ]


def test_empty_class_folder_is_a_note(tmp_path: Path) -> None:
    (two(tmp_path) / "empty").mkdir()
    photos = look_at(tmp_path)
    assert photos.class_names == class_names(tmp_path) == ("cat", "dog")
    assert "empty/ holds no pictures: passed over" in photos.notes


def test_hidden_and_system_files_are_passed_over(tmp_path: Path) -> None:
    two(tmp_path)
    for path in (".x/0.jpg", ".ipynb_checkpoints/0.jpg", "__MACOSX/0.jpg", "cat/.ipynb_checkpoints/0.jpg"):
        put(tmp_path / path, JPEG)
    for path in ("cat/._0.jpg", "cat/.DS_Store", "cat/Thumbs.db"):
        put(tmp_path / path, b"x")
    photos = look_at(tmp_path)
    assert (len(photos.paths), photos.class_names, photos.left_out) == (12, ("cat", "dog"), [])


def test_nested_folders_belong_to_the_class(tmp_path: Path) -> None:
    put(two(tmp_path) / "cat" / "2019" / "may" / "x.jpg", JPEG)
    assert "cat/2019/may/x.jpg" in list(look_at(tmp_path).paths)


def test_a_class_called_train(tmp_path: Path) -> None:
    fill(tmp_path, {"train": 3, "plane": 3})
    assert look_at(tmp_path).class_names == ("plane", "train")


def test_odd_names_survive(tmp_path: Path) -> None:
    bad = os.fsdecode(b"na\xefve.jpg")
    odd = ["with space.jpg", 'comma, quote".jpg', "größe.jpg", "猫.jpg", "new\nline.jpg", "[red]x.jpg", bad]
    for i, name in enumerate(odd):
        put(two(tmp_path / "root") / "ca t, é" / name, encoded(100 + i))
    photos = look_at(tmp_path / "root")
    assert photos.class_names == ("ca t, é", "cat", "dog")
    assert set(photos.paths) >= {f"ca t, é/{name}" for name in odd}
    assert not photos.left_out
    photos.write_split(tmp_path / "split.csv")
    again = look_at(tmp_path / "root", split_file=str(tmp_path / "split.csv"))
    assert again.fingerprint() == photos.fingerprint()
    put(tmp_path / "root" / "cat" / f"{bad}.gif", b"")
    put(tmp_path / "root" / "cat" / "a\x1b[31m\n.gif", b"")
    report = look_at(tmp_path / "root").report()
    assert all(line.isprintable() for line in report.split("\n"))
    assert "cat/na\\udcefve.jpg.gif" in report


def test_links_are_followed_once_and_loops_end(tmp_path: Path) -> None:
    root = two(tmp_path / "root", 2)
    fill(tmp_path, {"elsewhere": 3}, seed=50)
    fill(root, {"cat/sub": 1}, seed=60)
    links = {
        "cat/loop": root / "cat",
        "cat/up": root,
        "cat/higher": tmp_path,
        "cat/aaa": root / "cat" / "sub",  # sorts before what it links to
        "cat/far": tmp_path / "elsewhere",
        "cat/farther": tmp_path / "elsewhere",
        "dog/cats": root / "cat",
        "dog/self": root / "dog" / "self",
    }
    for link, target in links.items():
        (root / link).symlink_to(target)
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "elsewhere")
    assert list(find_photos(root).paths) == [
        *("cat/0.jpg", "cat/1.jpg", "cat/sub/0.jpg"),
        *("cat/far/0.jpg", "cat/far/1.jpg", "cat/far/2.jpg"),
        *("dog/0.jpg", "dog/1.jpg"),
    ]


def test_linked_class_folder(tmp_path: Path) -> None:
    two(tmp_path / "store", 3)
    (tmp_path / "root").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "root" / name).symlink_to(tmp_path / "store" / name)
    assert len(look_at(tmp_path / "root").paths) == 6


# --- refusals: one line that ends with what to type ------------------------------------------------------------


def refused(root: Path, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        look_at(root, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(str(root), "DIR")


def test_refused_folders(tmp_path: Path) -> None:
    assert refused(tmp_path / "x") == "DIR does not exist: name the folder that holds your class folders"
    put(tmp_path / "file", b"")
    assert refused(tmp_path / "file") == "DIR is no folder: name the folder that holds your class folders"
    (tmp_path / "no").mkdir()
    no_folders = "DIR has no class folders: make one for each class, DIR/<class>/<picture>.jpg"
    assert refused(tmp_path / "no") == no_folders
    put(tmp_path / "no" / "x.jpg", JPEG)
    assert refused(tmp_path / "no") == no_folders
    (tmp_path / "bare" / "cat").mkdir(parents=True)
    assert refused(tmp_path / "bare") == "no pictures to train on in DIR: put some in DIR/cat/"
    with pytest.raises(DataError, match="no pictures to train on"):
        class_names(tmp_path / "bare")
    fill(tmp_path / "val", {"val/a": 1})
    assert refused(tmp_path / "val") == "DIR has val but no train: make DIR/train/<class>/<picture>.jpg"
    fill(tmp_path / "twice", {"train/a": 1, "val/a": 1, "valid/a": 1})
    assert refused(tmp_path / "twice") == "DIR has val and valid, which mean the same: keep one of them"
    put(tmp_path / "flat" / "train" / "x.jpg", JPEG)
    put(tmp_path / "flat" / "val" / "x.jpg", JPEG)
    assert refused(tmp_path / "flat") == no_folders.replace("<class>", "train/<class>")


def test_one_class_only(tmp_path: Path) -> None:
    fill(tmp_path, {"photos": 3})
    assert refused(tmp_path) == (
        "DIR has one class only, photos, and a classifier needs two: add a second class folder, or, if the classes "
        "are inside it, --data DIR/photos"
    )


def test_class_that_would_be_empty(tmp_path: Path) -> None:
    put(two(tmp_path) / "bird" / "a.jpg", b"")
    put(tmp_path / "bird" / "b.gif", b"")
    assert class_names(tmp_path) == ("bird", "cat", "dog")
    assert refused(tmp_path) == (
        "class bird would be empty, nothing in it can be trained on (bird/b.gif (not a format we read), bird/a.jpg "
        "(empty)): add pictures to its folder or delete the folder"
    )


def test_too_many_broken(tmp_path: Path) -> None:
    put(two(tmp_path, 9) / "cat" / "a.jpg", b"")
    put(tmp_path / "dog" / "b.jpg", b"text")
    assert refused(tmp_path, max_bad_fraction=0.05) == (
        "broken: 2 of 20 pictures, more than 5% (cat/a.jpg (empty), dog/b.jpg (not a picture)): mend or delete "
        "them, or --data.max_bad_fraction 0.1"
    )
    assert len(look_at(tmp_path, max_bad_fraction=0.1).paths) == 18


def test_of_many_broken_the_first_ten_are_named(tmp_path: Path) -> None:
    for number in range(11):
        put(two(tmp_path) / "cat" / f"bad{number:02}.jpg", b"")
    said = refused(tmp_path, max_bad_fraction=0.05)
    assert said.count("(empty)") == 10
    assert "cat/bad09.jpg (empty), ...; all of them: python scripts/check.py DIR --json): mend" in said


@pytest.mark.parametrize("options", [{"val_size": 0.0}, {"val_size": 1.0}, {"max_bad_fraction": 1.5}])
def test_arguments_out_of_range(tmp_path: Path, options: dict[str, float]) -> None:
    name, value = next(iter(options.items()))
    assert refused(tmp_path, **options).startswith(f"{name} lies between 0 and 1, not at {value}: --data.{name} ")


# --- the split ------------------------------------------------------------


@st.composite
def folders(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, content groups and ranks of a made-up folder, in any order."""
    sizes = draw(st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=12), min_size=1, max_size=5))
    rows = [(label, (label, i)) for label, groups in enumerate(sizes) for i, n in enumerate(groups) for _ in range(n)]
    rows = draw(st.permutations(rows))
    first: dict[tuple[int, int], int] = {}
    groups = np.array([first.setdefault(group, i) for i, (_, group) in enumerate(rows)])
    ranks = np.array(draw(st.permutations(range(len(rows)))))
    return np.array([label for label, _ in rows]), groups, ranks


@given(folders(), st.floats(0.01, 0.99))
@settings(deadline=None)
def test_split_is_stratified_and_keeps_copies_together(
    folder: tuple[np.ndarray, np.ndarray, np.ndarray], val_size: float
) -> None:
    labels, groups, ranks = folder
    val = stratified_split(labels, groups, ranks, val_size)
    assert (val == val[groups]).all()
    for label in np.unique(labels):
        own = labels == label
        chosen, count = int(val[own].sum()), int(own.sum())
        group_sizes = np.bincount(groups[own])
        group_sizes = group_sizes[group_sizes > 0]
        if len(group_sizes) == 1:
            assert chosen == 0
            continue
        assert 0 < chosen < count
        if group_sizes.max() == 1:
            assert chosen == min(max(int(val_size * count + 0.5), 1), count - 1)
        else:
            assert abs(chosen - val_size * count) <= max(group_sizes.max(), 1)


@pytest.mark.parametrize(("count", "val"), [(1, 0), (2, 1), (3, 1), (10, 2), (100, 20)])
def test_split_sizes(count: int, val: int) -> None:
    rows = np.arange(count)
    assert stratified_split(np.zeros(count, int), rows, rows, 0.2).sum() == val


def test_split_is_a_function_of_seed_and_pictures(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for root, order in ((first, range(20)), (second, reversed(range(20)))):
        for i in order:
            put(root / ("cat" if i % 2 else "dog") / f"{i}.jpg", encoded(i))
    a, b = look_at(first), look_at(second)
    assert a.fingerprint() == b.fingerprint()
    assert a.counts().tolist() == [[8, 8], [2, 2], [0, 0]]
    assert len({frozenset(names(look_at(first, seed=seed), VAL)) for seed in range(4)}) > 1


def test_copies_stay_on_one_side(tmp_path: Path) -> None:
    for i in range(24):
        put(tmp_path / ("cat" if i % 2 else "dog") / f"{i}.jpg", encoded(i // 6 * 2 + i % 2))
    for seed in range(5):
        photos = look_at(tmp_path, seed=seed)
        sides: dict[bytes, set[int]] = {}
        for path, split in zip(photos.paths, photos.splits, strict=True):
            sides.setdefault((tmp_path / path).read_bytes(), set()).add(int(split))
        assert len(sides) == 8
        assert all(len(side) == 1 for side in sides.values())


def test_three_pictures_of_a_class_are_on_both_sides(tmp_path: Path) -> None:
    assert look_at(fill(tmp_path, {"a": 3, "b": 3})).counts().tolist() == [[2, 2], [1, 1], [0, 0]]


def test_a_thousand_classes(tmp_path: Path) -> None:
    for number in range(3000):
        pixels = np.random.default_rng(number).integers(0, 256, (4, 4, 3), np.uint8)
        head = b"P6 4 4 255\n"
        put(tmp_path / f"class{number % 1000:03}" / f"{number}.ppm", head + pixels.tobytes())
    photos = look_at(tmp_path, cache=False)
    assert photos.counts().tolist() == [[2] * 1000, [1] * 1000, [0] * 1000]
    assert photos.report().startswith(f"3,000 pictures in 1,000 classes: {tmp_path}")


def test_one_picture_of_a_class_is_trained_on(tmp_path: Path) -> None:
    fill(tmp_path, {"a": 1, "b": 3})
    photos = look_at(tmp_path)
    assert photos.counts().tolist() == [[1, 2], [0, 1], [0, 0]]
    assert photos.notes[-1] == "no picture in val, so accuracy is not measured, for 1 class: a"


def test_uneven_classes_are_a_note(tmp_path: Path) -> None:
    fill(tmp_path, {"train/a": 20, "train/b": 2, "val/a": 1, "val/b": 1})
    assert look_at(tmp_path).notes == [
        "classes are uneven: 2 to 20 training pictures; --data.balance loss weighs them alike"
    ]


def test_split_file_gives_the_same_split(tmp_path: Path) -> None:
    root = two(tmp_path / "root")
    photos = look_at(root, seed=5)
    photos.write_split(tmp_path / "split.csv")
    with (tmp_path / "split.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["path", "label", "split"]
    assert rows[1][:2] == ["cat/0.jpg", "cat"]
    assert Counter(row[2] for row in rows[1:]) == {"train": 10, "val": 2}
    split_file = str(tmp_path / "split.csv")
    assert look_at(root, split_file=split_file).fingerprint() == photos.fingerprint()
    assert class_names(root, split_file) == ("cat", "dog")
    put(root / "cat" / "new.jpg", JPEG)
    again = look_at(root, split_file=split_file)
    assert again.fingerprint() == photos.fingerprint()
    assert again.notes == [f"1 picture left out: not in {split_file}"]
    assert again.left_out == [LeftOut("cat/new.jpg", "not in the split file", split_file)]


def test_split_file_that_does_not_fit(tmp_path: Path) -> None:
    root, split_file = two(tmp_path / "root"), tmp_path / "s.csv"

    def message(text: str) -> str:
        split_file.write_text(text)
        return refused(root, split_file=str(split_file)).replace(str(split_file), "CSV")

    head = "path,label,split\n"
    assert message("a,b\n") == "CSV does not begin with path,label,split: give a run's split.csv"
    assert message(head + "cat/0.jpg,cat,trian\n") == (
        "CSV, line 2, is not understood: its lines are path,label,split with split train, val or test"
    )
    assert message(head + "cat/gone.jpg,cat,val\n") == (
        "1 picture of CSV missing from DIR (cat/gone.jpg): put back what is missing, or leave --data.split_file out"
    )
    assert message(head + "cat/0.jpg,dog,train\n") == (
        "CSV says cat/0.jpg is dog, its folder says cat: move the file or mend the line"
    )
    assert message(head) == "CSV has no line with split train: give a run's split.csv"
    assert message(head + "cat/0.jpg,cat,train\ncat/1.jpg,cat,val\ncat/0.jpg,cat,val\n") == (
        "CSV names 1 picture more than once (cat/0.jpg): keep one line for each"
    )
    assert message(head + "x" * 200_000 + ",cat,train\n") == (
        "CSV cannot be read (field larger than field limit (131072)): give a run's split.csv"
    )
    split_file.unlink()
    assert refused(root, split_file="x.csv") == (
        "x.csv cannot be read (No such file or directory): give a run's split.csv"
    )


# --- what is kept and told ------------------------------------------------------------


@given(st.lists(st.binary(max_size=20).map(os.fsdecode), max_size=20), st.data())
@settings(deadline=None)
def test_paths_are_a_sequence(strings: list[str], data: st.DataObject) -> None:
    paths = Paths.from_iterable(strings)
    assert list(paths) == strings == [paths[i] for i in range(len(paths))]
    assert list(pickle.loads(pickle.dumps(paths))) == strings
    if strings:
        chosen = data.draw(st.lists(st.integers(0, len(strings) - 1)))
        assert list(paths.take(np.array(chosen, int))) == [strings[i] for i in chosen]
        assert paths[-1] == strings[-1]
    with pytest.raises(IndexError):
        paths[len(strings)]


def test_paths_are_small() -> None:
    paths = Paths.from_iterable(f"class_{i % 100}/picture_{i}.jpg" for i in range(10_000))
    assert len(pickle.dumps(paths)) < 10_000 * 40


def test_content_groups() -> None:
    content = np.array([7, 0, 9, 7, 0, 9, 7], np.uint64)
    assert content_groups(content).tolist() == [0, 1, 2, 0, 4, 2, 0]


def test_fingerprint_tells_folders_apart(tmp_path: Path) -> None:
    photos = look_at(two(tmp_path))
    seen = {photos.fingerprint(), look_at(tmp_path, seed=1).fingerprint()}
    put(tmp_path / "cat" / "0.jpg", (tmp_path / "cat" / "0.jpg").read_bytes() + b"x")
    seen.add(look_at(tmp_path).fingerprint())
    (tmp_path / "cat").rename(tmp_path / "lion")
    seen.add(look_at(tmp_path).fingerprint())
    assert len(seen) == 4


def test_report(tmp_path: Path) -> None:
    for i in range(12):
        put(tmp_path / "a" / f"bad{i:02}.jpg", b"")
    report = look_at(fill(tmp_path, {"a": 10, "b": 5})).report()
    assert report.replace(str(tmp_path), "DIR").split("\n") == [
        "15 pictures in 2 classes: DIR",
        "  class     train       val",
        "  a             8         2",
        "  b             4         1",
        "  all          12         3",
        "left out: 12 files",
        "  12 empty",
        *(f"    a/bad{i:02}.jpg: 0 bytes" for i in range(10)),
        "    and 2 more",
        "note: no folder val/: 20% of each class became val (seed 0)",
    ]


def test_one_is_no_plural(tmp_path: Path) -> None:
    """Each note of one and of two."""
    fill(tmp_path, {"train/a": 60, "train/b": 3, "train/c": 1, "val/a": 2, "test/aa": 1})
    turned = Image.Exif()
    turned[0x0112] = 3
    (noise(700)).save(tmp_path / "train/a/turned0.jpg", exif=turned)
    put(tmp_path / "train/a/png0.jpg", encoded(701, "PNG"))
    put(tmp_path / "train/a/x0.jpg", encoded(702))
    put(tmp_path / "val/a/y0.jpg", encoded(702))
    (tmp_path / "val/c").mkdir()
    put(tmp_path / "val/c/0.jpg", encoded(703))
    one = look_at(tmp_path).notes
    assert one == [
        "class aa is only in test: it cannot be learned, 1 picture left out",
        "1 picture turned by an EXIF tag, as phones do: used upright",
        "1 picture of another format than the name says: used all the same (train/a/png0.jpg)",
        "1 picture of val or test with a copy in another split (val/a/y0.jpg): the score will be too good",
        "no picture in val, so accuracy is not measured, for 1 class: b",
        "classes are uneven: 1 to 63 training pictures; --data.balance loss weighs them alike",
    ]
    fill(tmp_path, {"test/aa": 2}, seed=800)
    noise(710).save(tmp_path / "train/a/turned1.jpg", exif=turned)
    put(tmp_path / "train/a/png1.jpg", encoded(711, "PNG"))
    put(tmp_path / "val/a/y1.jpg", encoded(702))
    (tmp_path / "val/c/0.jpg").unlink()
    assert look_at(tmp_path).notes == [
        "val/c/ holds no pictures: passed over",
        "class aa is only in test: it cannot be learned, 2 pictures left out",
        "2 pictures turned by an EXIF tag, as phones do: used upright",
        "2 pictures of another format than the name says: used all the same (train/a/png0.jpg, train/a/png1.jpg)",
        "2 pictures of val or test with a copy in another split (val/a/y0.jpg, val/a/y1.jpg): the score will be too "
        "good",
        "no picture in val, so accuracy is not measured, for 2 classes: b, c",
        "classes are uneven: 1 to 65 training pictures; --data.balance loss weighs them alike",
    ]


def test_report_of_many_classes_is_short(tmp_path: Path) -> None:
    fill(tmp_path, {f"class{i:02}": 2 for i in range(20)})
    report = look_at(tmp_path).report()
    assert "  ... 8 classes between these ..." in report
    assert len(report.split("\n")) < 20
    fill(tmp_path / "other", {f"class{i:02}": 2 for i in range(13)})
    assert "  ... 1 class between these ..." in look_at(tmp_path / "other").report()


def test_left_out_is_written(tmp_path: Path) -> None:
    put(two(tmp_path / "root") / "cat" / "x.jpg", b"")
    look_at(tmp_path / "root").write_left_out(tmp_path / "left_out.csv")
    assert (tmp_path / "left_out.csv").read_text().split() == ["path,kind,reason", "cat/x.jpg,empty,0", "bytes"]


# --- processes and memory ------------------------------------------------------------


def test_result_does_not_depend_on_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = two(tmp_path, 80)
    for name, (content, _, _) in BROKEN.items():
        put(root / "cat" / name, content)
    monkeypatch.setattr(examination, "_WORTH_A_PROCESS", 1)
    calls: list[tuple[int, int]] = []
    alone = look_at(root, num_workers=0, cache=False)
    many = look_at(root, num_workers=3, cache=False, progress=lambda *numbers: calls.append(numbers))
    assert many.fingerprint() == alone.fingerprint()
    assert many.left_out == alone.left_out
    assert many.report() == alone.report()
    assert calls == [(64, 173), (128, 173), (173, 173)]


def test_a_crashing_decoder_costs_one_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = two(tmp_path / "root", 40)
    put(root / "dog" / "crash.jpg", JPEG)
    fake = tmp_path / "worker.py"
    fake.write_text(
        "import os, sys; sys.path.insert(0, os.getcwd())\n"
        "from datamodules import examination\n"
        "real = examination.look\n"
        "examination.look = lambda path, c: os.abort() if path.name == 'crash.jpg' else real(path, c)\n"
        "examination._serve_requests()\n"
    )
    start = subprocess.Popen
    monkeypatch.setattr(
        examination.subprocess, "Popen", lambda command, **rest: start([sys.executable, str(fake)], **rest)
    )
    monkeypatch.setattr(examination, "_WORTH_A_PROCESS", 1)
    photos = look_at(root, num_workers=2, cache=False)
    assert photos.left_out == [LeftOut("dog/crash.jpg", "damaged", "its decoder crashed")]
    assert len(photos.paths) == 80


def test_second_examination_opens_only_what_changed(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(two(tmp_path) / "cat" / "broken.jpg", b"")
    first = look_at(tmp_path)
    opened: list[str] = []
    real = examination.look

    def watched(path: Path, with_content: bool) -> examination.Look:
        opened.append(path.name)
        return real(path, with_content)

    monkeypatch.setattr(examination, "look", watched)
    second = look_at(tmp_path)
    assert opened == ["broken.jpg"]
    assert second.report() == first.report()
    put(tmp_path / "dog" / "3.jpg", encoded(77, quality=30))
    opened.clear()
    look_at(tmp_path)
    assert sorted(opened) == ["3.jpg", "broken.jpg"]
    opened.clear()
    look_at(tmp_path, cache=False)
    assert len(opened) == 13
    (file,) = (own_cache / "lit-classics").iterdir()
    file.write_bytes(file.read_bytes()[:-100])  # a damaged cache is no cache
    assert look_at(tmp_path).class_names == first.class_names


def test_unwritable_cache_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(put(tmp_path / "a file", b"")))
    assert len(look_at(two(tmp_path / "root")).paths) == 12


def test_an_interrupted_examination_is_remembered(tmp_path: Path, own_cache: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    two(tmp_path, 40)
    with pytest.raises(KeyboardInterrupt):
        look_at(tmp_path, progress=stop)
    (file,) = (own_cache / "lit-classics").iterdir()
    assert len(np.load(file)) == 64


def test_no_torch() -> None:
    code = "import sys, datamodules.photos; sys.exit('torch' in sys.modules or 'lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_constants_are_indices_of_counts() -> None:
    assert (TRAIN, VAL, TEST) == (0, 1, 2)
