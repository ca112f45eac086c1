"""examine: copies, the split, refusals, notes and the report."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from datamodules.photos.find import VAL, LeftOut, find_photos
from datamodules.text import command
from tests.support.photos import (
    JPEG,
    PNG,
    content,
    encoded,
    examine_leniently,
    exif_with_orientation,
    names,
    noise,
    refusal_of,
    write_cats_and_dogs,
    write_file,
    write_pictures,
)

# --- copies of a picture ------------------------------------------------------------


def test_a_picture_in_two_classes_is_left_out(tmp_path: Path) -> None:
    write_cats_and_dogs(tmp_path)
    for path in ("cat/a.jpg", "cat/b.jpg", "dog/c.jpg"):
        write_file(tmp_path / path, JPEG)
    assert examine_leniently(tmp_path).left_out == [
        LeftOut("cat/a.jpg", "same picture under two classes", "also dog/c.jpg"),
        LeftOut("cat/b.jpg", "same picture under two classes", "also dog/c.jpg"),
        LeftOut("dog/c.jpg", "same picture under two classes", "also cat/a.jpg"),
    ]


def test_copies_in_different_split_folders_are_kept_and_noted(tmp_path: Path) -> None:
    write_pictures(tmp_path, {"train/a": 3, "train/b": 3, "val/a": 3, "val/b": 3})
    write_file(tmp_path / "train/a/x.jpg", JPEG)
    write_file(tmp_path / "val/a/y.jpg", JPEG)
    photos = examine_leniently(tmp_path)
    assert photos.counts().tolist() == [[4, 3], [4, 3], [0, 0]]
    assert photos.notes == [
        "1 picture in val or test with a copy in another split: the score will be too good (val/a/y.jpg)"
    ]


def test_copies_are_in_the_same_split(tmp_path: Path) -> None:
    for i in range(24):
        write_file(tmp_path / ("cat" if i % 2 else "dog") / f"{i}.jpg", encoded(i // 6 * 2 + i % 2))
    for seed in range(5):
        photos = examine_leniently(tmp_path, seed=seed)
        sides: dict[bytes, set[int]] = {}
        for path, split in zip(photos.paths, photos.splits, strict=True):
            sides.setdefault((tmp_path / path).read_bytes(), set()).add(int(split))
        assert len(sides) == 8
        assert all(len(side) == 1 for side in sides.values())


# --- the split ------------------------------------------------------------


def test_a_folder_without_val_is_split(tmp_path: Path) -> None:
    write_pictures(tmp_path, {"train/a": 10, "train/b": 5, "test/a": 2, "test/b": 2})
    photos = examine_leniently(tmp_path)
    assert photos.counts().tolist() == [[8, 4], [2, 1], [2, 2]]
    assert photos.notes == ["no usable folder val/: 20% of each class became val (seed 0)"]


def test_split_depends_only_on_seed_and_pictures(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for root, order in ((first, range(20)), (second, reversed(range(20)))):
        for i in order:
            write_file(root / ("cat" if i % 2 else "dog") / f"{i}.jpg", encoded(i))
    a, b = examine_leniently(first), examine_leniently(second)
    assert content(a) == content(b)
    assert a.counts().tolist() == [[8, 8], [2, 2], [0, 0]]
    assert len({frozenset(names(examine_leniently(first, seed=seed), VAL)) for seed in range(4)}) > 1


def test_a_class_of_three_pictures_is_in_train_and_val(tmp_path: Path) -> None:
    assert examine_leniently(write_pictures(tmp_path, {"a": 3, "b": 3})).counts().tolist() == [[2, 2], [1, 1], [0, 0]]


def test_a_class_of_one_picture_is_in_train(tmp_path: Path) -> None:
    write_pictures(tmp_path, {"a": 1, "b": 3})
    photos = examine_leniently(tmp_path)
    assert photos.counts().tolist() == [[1, 2], [0, 1], [0, 0]]
    assert photos.notes[-1] == "accuracy is not measured for 1 class without pictures in val: a"


def test_a_thousand_classes(tmp_path: Path) -> None:
    for number in range(3000):
        pixels = np.random.default_rng(number).integers(0, 256, (4, 4, 3), np.uint8)
        head = b"P6 4 4 255\n"
        write_file(tmp_path / f"class{number % 1000:03}" / f"{number}.ppm", head + pixels.tobytes())
    photos = examine_leniently(tmp_path)
    assert photos.counts().tolist() == [[2] * 1000, [1] * 1000, [0] * 1000]
    assert photos.report().startswith(f"3,000 pictures in 1,000 classes: {tmp_path}")


# --- refusals: one line that says what to do ------------------------------------------------------------


def test_one_class_only(tmp_path: Path) -> None:
    write_pictures(tmp_path, {"photos": 3})
    assert refusal_of(tmp_path) == (
        "DIR has only one class, photos, but a classifier needs two: add a second class folder, or, if the classes "
        "are inside photos, --data DIR/photos"
    )


def test_class_without_a_usable_picture(tmp_path: Path) -> None:
    write_file(write_cats_and_dogs(tmp_path) / "bird" / "a.jpg", b"")
    write_file(tmp_path / "bird" / "b.gif", b"")
    assert find_photos(tmp_path).class_names == ("bird", "cat", "dog")
    assert refusal_of(tmp_path) == (
        "class bird has no usable training picture (bird/a.jpg (empty), bird/b.gif (not a format we read)): add "
        "pictures to its folder or delete the folder"
    )


def test_too_many_broken(tmp_path: Path) -> None:
    write_file(write_cats_and_dogs(tmp_path, 9) / "cat" / "a.jpg", b"")
    write_file(tmp_path / "dog" / "b.jpg", b"text")
    assert refusal_of(tmp_path, max_bad_fraction=0.05) == (
        "2 of 20 pictures cannot be read, more than 5% or half of a class (1 of 10 pictures of cat in train, 1 of 10 "
        "pictures of dog in train), such as cat/a.jpg (empty), dog/b.jpg (not a picture): repair, convert or delete "
        "them or use --data.max_bad_fraction 0.1"
    )
    assert len(examine_leniently(tmp_path, max_bad_fraction=0.1).paths) == 18


def test_the_error_names_ten_of_many_broken_files(tmp_path: Path) -> None:
    for number in range(11):
        write_file(write_cats_and_dogs(tmp_path) / "cat" / f"bad{number:02}.jpg", b"")
    said = refusal_of(tmp_path, max_bad_fraction=0.05)
    assert said.count("(empty)") == 10
    assert "cat/bad09.jpg (empty), ...: repair" in said
    assert said.endswith(command("check.py", "DIR", "--json"))


@pytest.mark.parametrize("options", [{"val_size": 0.0}, {"val_size": 1.0}, {"max_bad_fraction": 1.5}])
def test_arguments_out_of_range(tmp_path: Path, options: dict[str, float]) -> None:
    name, value = next(iter(options.items()))
    assert refusal_of(tmp_path, **options).startswith(f"{name} must be between 0 and 1, but is {value}: --data.{name} ")


# --- notes, report and files ------------------------------------------------------------


def test_wrong_suffix_is_a_note(tmp_path: Path) -> None:
    write_file(write_cats_and_dogs(tmp_path) / "cat" / "really_png.jpg", PNG)
    photos = examine_leniently(tmp_path)
    assert len(photos.paths) == 13
    assert "1 picture whose suffix does not match the format: still used (cat/really_png.jpg)" in photos.notes


def test_uneven_classes_are_a_note(tmp_path: Path) -> None:
    write_pictures(tmp_path, {"train/a": 20, "train/b": 2, "val/a": 1, "val/b": 1})
    assert examine_leniently(tmp_path).notes == [
        "classes are uneven: 2 to 20 training pictures; --data.balance loss gives them equal weight"
    ]


def test_notes_use_singular_and_plural(tmp_path: Path) -> None:
    write_pictures(tmp_path, {"train/a": 60, "train/b": 3, "train/c": 1, "val/a": 2, "test/aa": 1})
    noise(700).save(tmp_path / "train/a/turned0.jpg", exif=exif_with_orientation(3))
    write_file(tmp_path / "train/a/png0.jpg", encoded(701, "PNG"))
    write_file(tmp_path / "train/a/x0.jpg", encoded(702))
    write_file(tmp_path / "val/a/y0.jpg", encoded(702))
    (tmp_path / "val/c").mkdir()
    write_file(tmp_path / "val/c/0.jpg", encoded(703))
    one = examine_leniently(tmp_path).notes
    assert one == [
        "class aa is only in test: it cannot be learned, 1 picture left out",
        "1 picture rotated by an EXIF tag, as phones do: used upright (train/a/turned0.jpg)",
        "1 picture whose suffix does not match the format: still used (train/a/png0.jpg)",
        "1 picture in val or test with a copy in another split: the score will be too good (val/a/y0.jpg)",
        "accuracy is not measured for 1 class without pictures in val: b",
        "classes are uneven: 1 to 63 training pictures; --data.balance loss gives them equal weight",
    ]
    write_pictures(tmp_path, {"test/aa": 2}, seed=800)
    noise(710).save(tmp_path / "train/a/turned1.jpg", exif=exif_with_orientation(3))
    write_file(tmp_path / "train/a/png1.jpg", encoded(711, "PNG"))
    write_file(tmp_path / "val/a/y1.jpg", encoded(702))
    (tmp_path / "val/c/0.jpg").unlink()
    assert examine_leniently(tmp_path).notes == [
        "val/c/ contains no pictures: ignored",
        "class aa is only in test: it cannot be learned, 2 pictures left out",
        "2 pictures rotated by an EXIF tag, as phones do: used upright (train/a/turned0.jpg, train/a/turned1.jpg)",
        "2 pictures whose suffix does not match the format: still used (train/a/png0.jpg, train/a/png1.jpg)",
        "2 pictures in val or test with a copy in another split: the score will be too good (val/a/y0.jpg, "
        "val/a/y1.jpg)",
        "accuracy is not measured for 2 classes without pictures in val: b, c",
        "classes are uneven: 1 to 65 training pictures; --data.balance loss gives them equal weight",
    ]


def test_report(tmp_path: Path) -> None:
    for i in range(12):
        write_file(tmp_path / "a" / f"bad{i:02}.jpg", b"")
    report = examine_leniently(write_pictures(tmp_path, {"a": 10, "b": 5})).report()
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
        "note: left out, because they cannot be read: 12 of 22 pictures of a in train",
        "note: no usable folder val/: 20% of each class became val (seed 0)",
    ]


def test_report_of_many_classes_is_short(tmp_path: Path) -> None:
    write_pictures(tmp_path, {f"class{i:02}": 2 for i in range(20)})
    report = examine_leniently(tmp_path).report()
    assert "  ... 8 classes between these ..." in report
    assert len(report.split("\n")) < 20
    write_pictures(tmp_path / "other", {f"class{i:02}": 2 for i in range(13)})
    assert "  ... 1 class between these ..." in examine_leniently(tmp_path / "other").report()


def test_write_left_out(tmp_path: Path) -> None:
    write_file(write_cats_and_dogs(tmp_path / "root") / "cat" / "x.jpg", b"")
    examine_leniently(tmp_path / "root").write_left_out(tmp_path / "left_out.csv")
    assert (tmp_path / "left_out.csv").read_text().split() == ["path,kind,reason", "cat/x.jpg,empty,0", "bytes"]


def test_unusual_file_names_are_kept(tmp_path: Path) -> None:
    bad = os.fsdecode(b"na\xefve.jpg")
    odd = ["with space.jpg", 'comma, quote".jpg', "größe.jpg", "猫.jpg", "new\nline.jpg", "[red]x.jpg", bad]
    for i, name in enumerate(odd):
        write_file(write_cats_and_dogs(tmp_path / "root") / "ca t, é" / name, encoded(100 + i))
    photos = examine_leniently(tmp_path / "root")
    assert photos.class_names == ("ca t, é", "cat", "dog")
    assert set(photos.paths) >= {f"ca t, é/{name}" for name in odd}
    assert not photos.left_out
    photos.write_split(tmp_path / "split.csv")
    again = examine_leniently(tmp_path / "root", split_file=str(tmp_path / "split.csv"))
    assert content(again) == content(photos)
    write_file(tmp_path / "root" / "cat" / f"{bad}.gif", b"")
    write_file(tmp_path / "root" / "cat" / "a\x1b[31m\n.gif", b"")
    report = examine_leniently(tmp_path / "root").report()
    assert all(line.isprintable() for line in report.split("\n"))
    assert "cat/na\\udcefve.jpg.gif" in report


def test_examining_needs_no_torch() -> None:
    code = "import sys, datamodules.photos.folder; sys.exit('torch' in sys.modules or 'lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
